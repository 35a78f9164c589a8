/**
 * Files in memory, for programs that read a file. A crash leaves nothing behind.
 *
 * @module
 */

import { closeFd, cstr, libc, syscall } from "./libc.ts";

const MFD_CLOEXEC = 1; // linux/memfd.h

/** A file that exists until it is disposed of. */
export interface MemoryFile extends Disposable {
  /** Its path for a child process, which inherits no descriptor. */
  readonly path: string;
}

/**
 * Creates a file with this content.
 *
 * @param name its name in /proc, for people
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
