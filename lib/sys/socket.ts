/**
 * A raw socket with a lifetime, for netlink and packet sockets.
 *
 * @module
 */

import { closeFd, libc, syscall } from "./libc.ts";

/** Address families, socket types and options of the kernel (linux/socket.h, asm-generic). */
export const SocketConst = {
  AF_PACKET: 17,
  AF_NETLINK: 16,
  SOCK_RAW: 3,
  SOCK_NONBLOCK: 0o4000,
  SOCK_CLOEXEC: 0o2000000,
  SOL_SOCKET: 1,
  SO_RCVBUF: 8,
  SO_ATTACH_FILTER: 26,
  MSG_TRUNC: 0x20,
} as const;

/** A socket of the network namespace in which it was opened; close-on-exec. */
export class Socket implements Disposable {
  readonly fd: number;
  #closed = false;
  readonly #name: string;
  readonly #slow: boolean;

  private constructor(fd: number, name: string, slow: boolean) {
    this.fd = fd;
    this.#name = name;
    this.#slow = slow;
  }

  /**
   * Opens a socket in the calling thread's network namespace.
   *
   * @param name its name in errors: `"NETLINK_ROUTE socket"`
   * @param slow whether the kernel takes some 10 ms to close it, as it does with those of nf_tables and of
   * packets
   */
  static open(
    domain: number,
    type: number,
    protocol: number,
    name: string,
    { slow = false } = {},
  ): Socket {
    const flags = type | SocketConst.SOCK_CLOEXEC;
    const fd = syscall("socket", name, () => libc().socket(domain, flags, protocol));
    return new Socket(fd, name, slow);
  }

  /** Binds to a `struct sockaddr` given as bytes. */
  bind(address: Uint8Array<ArrayBuffer>): void {
    syscall("bind", this.#name, () => libc().bind(this.fd, address, address.length));
  }

  /** Sets an option to bytes, or to an int in host order. */
  setOption(level: number, option: number, value: Uint8Array<ArrayBuffer> | number): void {
    const bytes = typeof value === "number"
      ? new Uint8Array(new Int32Array([value]).buffer)
      : value;
    syscall(
      "setsockopt",
      this.#name,
      () => libc().setsockopt(this.fd, level, option, bytes, bytes.length),
    );
  }

  /** Reads an option into bytes. */
  getOption(level: number, option: number, value: Uint8Array<ArrayBuffer>): void {
    const length = new Uint32Array([value.length]);
    syscall(
      "getsockopt",
      this.#name,
      () => libc().getsockopt(this.fd, level, option, value, length),
    );
  }

  /** Sends one datagram; to a `struct sockaddr` if the socket has no peer. Returns its length. */
  send(bytes: Uint8Array<ArrayBuffer>, address: Uint8Array<ArrayBuffer> | null = null): number {
    return syscall(
      "sendto",
      this.#name,
      () => libc().sendto(this.fd, bytes, BigInt(bytes.length), 0, address, address?.length ?? 0),
    );
  }

  /**
   * Sends one datagram on another thread, because the kernel may take long. Does not say why it
   * failed.
   *
   * @returns whether it was sent
   */
  async sendAside(bytes: Uint8Array<ArrayBuffer>): Promise<boolean> {
    return Number(await libc().send_wait(this.fd, bytes, BigInt(bytes.length), 0)) >= 0;
  }

  /**
   * Receives one datagram.
   *
   * @param flags with MSG_TRUNC, the result is the full length of the datagram, even if the buffer
   * is shorter
   * @param address receives the sender's `struct sockaddr`
   * @returns its length in bytes
   * @throws {SyscallError} EAGAIN when a nonblocking socket has nothing
   */
  receive(
    buffer: Uint8Array<ArrayBuffer>,
    flags = 0,
    address: Uint8Array<ArrayBuffer> | null = null,
  ): number {
    const length = address === null ? null : new Uint32Array([address.length]);
    return syscall(
      "recvfrom",
      this.#name,
      () => libc().recvfrom(this.fd, buffer, BigInt(buffer.length), flags, address, length),
    );
  }

  [Symbol.dispose](): void {
    // By then the number may be another file's.
    if (this.#closed) return;
    this.#closed = true;
    if (aside === undefined || !this.#slow) return closeFd(this.fd);
    // A thread that began now would be in the network namespace that this one is in for a moment.
    if (aside.push(this.fd) === 1) queueMicrotask(closeAside);
  }
}

/** The slow sockets to close, if another thread is to do it. */
let aside: number[] | undefined;

function closeAside(): void {
  for (const fd of aside?.splice(0) ?? []) libc().close_wait(fd);
}

/** From now on other threads close the slow sockets: meanwhile this process would answer nobody. */
export function closeSocketsAside(): void {
  aside ??= [];
}
