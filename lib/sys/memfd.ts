/**
 * Files in memory, for programs that read one: a crash leaves nothing behind.
 *
 * @module
 */

import { closeFd, cstr, libc, syscall } from "./libc.ts";

const MFD_CLOEXEC = 1; // linux/memfd.h

/** A file that goes when it is disposed. */
export interface MemoryFile extends Disposable {
  /** Where a child, which inherits no descriptor, opens it. */
  readonly path: string;
}

/**
 * Makes a file with this content.
 *
 * @param name what the kernel calls it, for people who look
 */
export function memoryFile(name: string, content: string): MemoryFile {
  const fd = syscall("memfd_create", name, () => libc().memfd_create(cstr(name), MFD_CLOEXEC));
  const path = `/proc/${Deno.pid}/fd/${fd}`;
  const file = { path, [Symbol.dispose]: () => closeFd(fd) };
  try {
    Deno.writeTextFileSync(path, content, { create: false });
    return file;
  } catch (error) {
    file[Symbol.dispose]();
    throw error;
  }
}
