/**
 * Directories that may have thousands of files, of which only the first matter.
 *
 * @module
 */

import { closeFd, libc, syscall } from "./libc.ts";
import { openIfThere } from "./text.ts";

/** Offsets in `struct linux_dirent64` (getdents(2)). */
const DIRENT = { LENGTH: 16, NAME: 19 } as const;

/** Some twenty names, of which the kernel gives as many at a time as fit. */
const buffer = new Uint8Array(1024);
const view = new DataView(buffer.buffer);
const decoder = new TextDecoder();

/**
 * Counts the files of a directory whose names end in `suffix`, and stops at `most`; 0 if there is no such
 * directory.
 *
 * @throws {SyscallError} when it cannot be read
 */
export function countFiles(directory: string, suffix: string, most: number): number {
  const fd = openIfThere(directory);
  if (fd === undefined) return 0;
  try {
    let count = 0;
    while (count < most) {
      const size = BigInt(buffer.length);
      const end = syscall("getdents64", directory, () => libc().getdents64(fd, buffer, size));
      if (end === 0) break;
      for (let at = 0; at < end && count < most; at += view.getUint16(at + DIRENT.LENGTH, true)) {
        if (nameAt(at + DIRENT.NAME).endsWith(suffix)) count++;
      }
    }
    return count;
  } finally {
    closeFd(fd);
  }
}

function nameAt(start: number): string {
  return decoder.decode(buffer.subarray(start, buffer.indexOf(0, start)));
}
