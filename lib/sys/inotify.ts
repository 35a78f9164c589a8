/**
 * Being told of changes in a directory.
 *
 * @module
 */

import { wouldBlock } from "./epoll.ts";
import { closeFd, cstr, libc, readFd, syscall } from "./libc.ts";

/** Event bits (linux/inotify.h). */
export const InotifyEvent = {
  CLOSE_WRITE: 0x8,
  MOVED_FROM: 0x40,
  MOVED_TO: 0x80,
  CREATE: 0x100,
  DELETE: 0x200,
  DELETE_SELF: 0x400,
} as const;

const IN_NONBLOCK = 0o4000;
const IN_CLOEXEC = 0o2000000;

/** One inotify instance, for an epoll to wait on; close-on-exec. */
export class Inotify implements Disposable {
  readonly fd: number;
  readonly #buffer = new Uint8Array(4096);

  constructor() {
    this.fd = syscall("inotify_init1", "inotify", () => {
      return libc().inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    });
  }

  /** Watches a directory for {@linkcode InotifyEvent} bits. */
  watch(directory: string, events: number): void {
    const path = cstr(directory);
    syscall("inotify_add_watch", directory, () => {
      return libc().inotify_add_watch(this.fd, path, events);
    });
  }

  /** Takes all pending events away; what changed is found by looking. */
  drain(): void {
    try {
      while (readFd(this.fd, this.#buffer) > 0);
    } catch (error) {
      if (!wouldBlock(error)) throw error;
    }
  }

  [Symbol.dispose](): void {
    closeFd(this.fd);
  }
}
