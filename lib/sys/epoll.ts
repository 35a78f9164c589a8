/**
 * epoll: waits for many descriptors.
 *
 * @module
 */

import { closeFd, libc, readFd, syscall, writeFd } from "./libc.ts";

/** linux/eventpoll.h. */
const EPOLLIN = 0x1;
const EPOLLET = 0x8000_0000;
/** poll.h. */
const POLLIN = 0x1;
const EPOLL_CLOEXEC = 0o2000000;
const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
/** `struct epoll_event` is packed on x86-64 only. */
const EVENT_SIZE = Deno.build.arch === "x86_64" ? 12 : 16;
const DATA_OFFSET = EVENT_SIZE - 8;
const MAX_EVENTS = 64;

/** One epoll instance; close-on-exec. */
export class Epoll implements Disposable {
  readonly #fd: number;
  /** The eventfd that ends a wait. */
  readonly #wake: number;
  readonly #events = new Uint8Array(EVENT_SIZE * MAX_EVENTS);
  readonly #pollfd: Uint8Array<ArrayBuffer>;

  constructor() {
    this.#fd = syscall("epoll_create1", "epoll", () => libc().epoll_create1(EPOLL_CLOEXEC));
    try {
      this.#wake = syscall("eventfd", "epoll", () => {
        return libc().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
      });
    } catch (error) {
      closeFd(this.#fd);
      throw error;
    }
    this.add(this.#wake);
    this.#pollfd = new Uint8Array(new Int32Array([this.#fd, POLLIN]).buffer);
  }

  /**
   * Watches whether a descriptor is readable, until it is removed or closed.
   *
   * @param once whether that is reported only when something new came, for who then reads all of it;
   * else for as long as it is so
   */
  add(fd: number, { once = false } = {}): void {
    const event = new Uint8Array(EVENT_SIZE);
    const view = new DataView(event.buffer);
    view.setUint32(0, once ? EPOLLIN | EPOLLET : EPOLLIN, true);
    view.setInt32(DATA_OFFSET, fd, true);
    syscall("epoll_ctl", `descriptor ${fd}`, () => {
      return libc().epoll_ctl(this.#fd, EPOLL_CTL_ADD, fd, event);
    });
  }

  /** Stops watching a descriptor. It need not be watched. */
  remove(fd: number): void {
    libc().epoll_ctl(this.#fd, EPOLL_CTL_DEL, fd, null);
  }

  /** Makes the current wait return, or else the next one. */
  wake(): void {
    writeFd(this.#wake, new Uint8Array(new BigUint64Array([1n]).buffer));
  }

  /** Whether a wait would return at once. */
  isReady(): boolean {
    return libc().poll(this.#pollfd, 1n, 0) > 0;
  }

  /**
   * Waits on another thread until a descriptor is ready or the time is over.
   *
   * @param timeoutMs -1 waits without a limit
   * @returns the descriptors that are ready; none after a timeout, a signal or {@linkcode wake}
   */
  async wait(timeoutMs: number): Promise<number[]> {
    const count = await libc().epoll_wait(this.#fd, this.#events, MAX_EVENTS, timeoutMs);
    // The errno of that thread cannot be read here. The only possible failure is a signal.
    if (count < 0) return [];
    const view = new DataView(this.#events.buffer);
    const ready: number[] = [];
    for (let index = 0; index < count; index++) {
      const offset = index * EVENT_SIZE;
      const fd = view.getInt32(offset + DATA_OFFSET, true);
      if (fd === this.#wake) readFd(fd, new Uint8Array(8));
      else ready.push(fd);
    }
    return ready;
  }

  [Symbol.dispose](): void {
    closeFd(this.#fd);
    closeFd(this.#wake);
  }
}
