/**
 * Waiting for many descriptors at once.
 *
 * @module
 */

import { SyscallError } from "../errors.ts";
import { closeFd, Errno, libc, syscall } from "./libc.ts";

/** Event bits (linux/eventpoll.h). */
export const EpollEvent = { IN: 0x1, ERR: 0x8, HUP: 0x10 } as const;

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
/** `struct epoll_event` is packed on x86-64 alone. */
const EVENT_SIZE = Deno.build.arch === "x86_64" ? 12 : 16;
const DATA_OFFSET = EVENT_SIZE - 8;
const MAX_EVENTS = 64;

/** A descriptor that is ready, and for what. */
export interface ReadyFd {
  readonly fd: number;
  /** Bits of {@linkcode EpollEvent}. */
  readonly events: number;
}

/** One epoll instance; close-on-exec. */
export class Epoll implements Disposable {
  readonly #fd: number;
  readonly #events = new Uint8Array(EVENT_SIZE * MAX_EVENTS);

  constructor() {
    this.#fd = syscall("epoll_create1", "epoll", () => libc().epoll_create1(EPOLL_CLOEXEC));
  }

  /** Watches a descriptor (level-triggered) until it is removed or closed. */
  add(fd: number, events: number = EpollEvent.IN): void {
    const event = new Uint8Array(EVENT_SIZE);
    const view = new DataView(event.buffer);
    view.setUint32(0, events, true);
    view.setInt32(DATA_OFFSET, fd, true);
    syscall("epoll_ctl", `descriptor ${fd}`, () => {
      return libc().epoll_ctl(this.#fd, EPOLL_CTL_ADD, fd, event);
    });
  }

  /** Stops watching a descriptor; one that is not watched is no error. */
  remove(fd: number): void {
    libc().epoll_ctl(this.#fd, EPOLL_CTL_DEL, fd, null);
  }

  /**
   * Waits on a thread of its own until a descriptor is ready or the time is over.
   *
   * @param timeoutMs -1 waits for ever
   * @returns what is ready, nothing after a time-out or a signal
   */
  async wait(timeoutMs: number): Promise<ReadyFd[]> {
    const count = await libc().epoll_wait(this.#fd, this.#events, MAX_EVENTS, timeoutMs);
    // The thread's errno cannot be read from here; a signal is the one failure that can be met.
    if (count < 0) return [];
    const view = new DataView(this.#events.buffer);
    const ready: ReadyFd[] = [];
    for (let index = 0; index < count; index++) {
      const offset = index * EVENT_SIZE;
      ready.push({
        fd: view.getInt32(offset + DATA_OFFSET, true),
        events: view.getUint32(offset, true),
      });
    }
    return ready;
  }

  [Symbol.dispose](): void {
    closeFd(this.#fd);
  }
}

/** Whether an error says that a nonblocking descriptor has nothing to read. */
export function wouldBlock(error: unknown): boolean {
  return error instanceof SyscallError && error.errno === Errno.EAGAIN;
}
