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
    const rest = bytes.subarray(length);
    const [size, offset] = [BigInt(rest.length), BigInt(length)];
    const count = syscall("pread", path, () => libc().pread(fd, rest, size, offset));
    if (count === 0) break;
    length += count;
  }
  return decoder.decode(bytes.subarray(0, length));
}
