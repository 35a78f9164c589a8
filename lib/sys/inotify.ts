/**
 * inotify: reports changes in a directory.
 *
 * @module
 */

import { attempt, closeFd, cstr, Errno, libc, syscall } from "./libc.ts";

/** Event bits (linux/inotify.h). */
export const InotifyEvent = {
  CLOSE_WRITE: 0x8,
  MOVED_FROM: 0x40,
  MOVED_TO: 0x80,
  DELETE: 0x200,
} as const;

/** Bits that the kernel sets: events were lost; a watch ended with its directory. */
const IN_Q_OVERFLOW = 0x4000;
const IN_IGNORED = 0x8000;

/** `struct inotify_event` up to its name (linux/inotify.h). */
const EVENT = { MASK_OFFSET: 4, LEN_OFFSET: 12, SIZE: 16 } as const;

const IN_NONBLOCK = 0o4000;
const IN_CLOEXEC = 0o2000000;

const decoder = new TextDecoder();

/** One inotify instance, to be watched with epoll; close-on-exec. */
export class Inotify implements Disposable {
  readonly fd: number;
  readonly #buffer = new Uint8Array(4096);

  constructor() {
    this.fd = syscall("inotify_init1", "inotify", () => {
      return libc().inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    });
  }

  /**
   * Watches a directory for {@linkcode InotifyEvent} bits.
   *
   * @returns the number of the watch; the same one if the directory is watched already
   */
  watch(directory: string, events: number): number {
    const path = cstr(directory);
    return syscall("inotify_add_watch", directory, () => {
      return libc().inotify_add_watch(this.fd, path, events);
    });
  }

  /**
   * Reads all pending events.
   *
   * @returns the names that changed; undefined if events were lost and anything may have changed
   */
  drain(): Set<string> | undefined {
    const names = new Set<string>();
    let complete = true;
    for (let length; (length = this.#read()) > 0;) {
      const view = new DataView(this.#buffer.buffer);
      for (let offset = 0; offset < length;) {
        const mask = view.getUint32(offset + EVENT.MASK_OFFSET, true);
        const end = offset + EVENT.SIZE + view.getUint32(offset + EVENT.LEN_OFFSET, true);
        const name = decoder.decode(this.#buffer.subarray(offset + EVENT.SIZE, end));
        if ((mask & (IN_Q_OVERFLOW | IN_IGNORED)) !== 0) complete = false;
        else names.add(name.replace(/\0+$/, ""));
        offset = end;
      }
    }
    return complete ? names : undefined;
  }

  /** The length of what was read; 0 where no event is pending. */
  #read(): number {
    const size = BigInt(this.#buffer.length);
    const read = () => libc().read(this.fd, this.#buffer, size);
    return attempt("read", "inotify", [Errno.EAGAIN], read) ?? 0;
  }

  [Symbol.dispose](): void {
    closeFd(this.fd);
  }
}
