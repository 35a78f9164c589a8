/**
 * Small files that may be missing, as those of /proc and /sys. Read by system calls: where a file is
 * missing, Deno's functions make an exception with its stack, which takes longer than all of it.
 *
 * @module
 */

import { attempt, closeFd, cstr, Errno, libc, O_CLOEXEC, O_RDONLY, syscall } from "./libc.ts";

/** One buffer for all files, most of which are shorter: each text is decoded at once. */
const buffer = new Uint8Array(16 * 1024);
const decoder = new TextDecoder();

/**
 * Opens a file for reading, close-on-exec; undefined if it does not exist.
 *
 * @throws {SyscallError} when it cannot be opened for another reason
 */
export function openIfThere(path: string, flags = O_RDONLY): number | undefined {
  const text = cstr(path);
  return attempt("open", path, [Errno.ENOENT], () => libc().open(text, flags | O_CLOEXEC, 0));
}

/** linux/fcntl.h: the calling process's directory, and no following of a link. */
const AT_FDCWD = -100;
const AT_SYMLINK_NOFOLLOW = 0x100;
/** unistd.h: whether it exists. */
const F_OK = 0;

/**
 * Whether a path exists. A dangling link exists.
 *
 * @throws {SyscallError} when that cannot be told
 */
export function isThere(path: string): boolean {
  const text = cstr(path);
  const look = () => libc().faccessat(AT_FDCWD, text, F_OK, AT_SYMLINK_NOFOLLOW);
  return attempt("faccessat", path, ABSENT, look) !== undefined;
}

const ABSENT = [Errno.ENOENT, Errno.ENOTDIR];

/**
 * The text of a file; undefined if it does not exist.
 *
 * @throws {SyscallError} when it cannot be read
 */
export function readText(path: string): string | undefined {
  const fd = openIfThere(path);
  if (fd === undefined) return undefined;
  try {
    return readAgain(fd, path);
  } finally {
    closeFd(fd);
  }
}

/**
 * The text of a short file that the kernel gives by one call, as it does settings; undefined if it does not
 * exist.
 *
 * @throws {SyscallError} when it cannot be read
 */
export function readShort(path: string): string | undefined {
  const fd = openIfThere(path);
  if (fd === undefined) return undefined;
  try {
    return decoder.decode(buffer.subarray(0, readAt(fd, path, buffer, 0)));
  } finally {
    closeFd(fd);
  }
}

/**
 * The text of an open file, from its beginning on.
 *
 * @param path its name in errors
 */
export function readAgain(fd: number, path: string): string {
  let bytes = buffer;
  let length = 0;
  while (true) {
    if (length === bytes.length) {
      const grown = new Uint8Array(2 * length);
      grown.set(bytes);
      bytes = grown;
    }
    const count = readAt(fd, path, bytes.subarray(length), length);
    if (count === 0) break;
    length += count;
  }
  return decoder.decode(bytes.subarray(0, length));
}

function readAt(fd: number, path: string, into: Uint8Array<ArrayBuffer>, offset: number): number {
  const [size, from] = [BigInt(into.length), BigInt(offset)];
  return syscall("pread", path, () => libc().pread(fd, into, size, from));
}
