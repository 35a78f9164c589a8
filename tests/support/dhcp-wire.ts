/**
 * A TAP and a guest behind it, as DHCP sees them: a second TAP in another namespace is the
 * guest's interface, and frames are carried between the two.
 *
 * @module
 */

import type { DhcpServer } from "../../lib/dhcp/server.ts";
import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import { requireLink, setLink } from "../../lib/netlink/link.ts";
import { Epoll } from "../../lib/sys/epoll.ts";
import { closeFd, failedWith, libc, readFd, writeFd } from "../../lib/sys/libc.ts";
import { type Netns, newNetns, withNetns } from "../../lib/sys/netns.ts";
import { createTap, openTap } from "../../lib/sys/tap.ts";

// Opened before the first test, which Deno 2.5 would otherwise blame for keeping it open.
libc();

export const GUEST_MAC = "02:00:00:00:00:0a";
export const TAP = "vm_eth0";

/** The path by which this process opens a namespace that has no name. */
export function pathOf(netns: Netns): string {
  return `/proc/self/fd/${netns.fd}`;
}

/** Serves until disposed. */
export function serving(server: DhcpServer): AsyncDisposable {
  const end = new AbortController();
  const run = server.run(end.signal);
  return {
    [Symbol.asyncDispose]: async () => {
      end.abort();
      await run;
    },
  };
}

/** Makes the TAP of a VM, up; returns the descriptor that the VMM would hold. */
export function plugTap(netns: Netns, name: string, mac?: string): number {
  return withNetns(netns, () => {
    createTap({ name });
    const fd = openTap({ name });
    using nl = NetlinkConnection.open();
    const { index } = requireLink(nl, name);
    setLink(nl, index, { ...mac === undefined ? {} : { mac }, up: true });
    return fd;
  });
}

/** Reads one frame if there is one. */
export function readFrame(fd: number, buffer = new Uint8Array(2048)): Uint8Array | undefined {
  try {
    return buffer.slice(0, readFd(fd, buffer));
  } catch (error) {
    if (failedWith(error, "EAGAIN")) return undefined;
    throw error;
  }
}

export class DhcpWire implements AsyncDisposable {
  readonly host = newNetns();
  readonly guest = newNetns();
  /** What the guest sent. */
  readonly sent: Uint8Array<ArrayBuffer>[] = [];
  /** What it was sent. */
  readonly received: Uint8Array<ArrayBuffer>[] = [];
  readonly #fds: readonly [number, number];
  readonly #epoll = new Epoll();
  readonly #end = new AbortController();
  readonly #carrying: Promise<void>;

  constructor() {
    this.#fds = [plugTap(this.host, TAP), plugTap(this.guest, "eth0", GUEST_MAC)];
    for (const fd of this.#fds) this.#epoll.add(fd);
    this.#carrying = this.#carry();
  }

  async #carry(): Promise<void> {
    const [host, guest] = this.#fds;
    while (!this.#end.signal.aborted) {
      for (const fd of await this.#epoll.wait(-1)) {
        const frame = readFrame(fd) as Uint8Array<ArrayBuffer> | undefined;
        if (frame === undefined) continue;
        (fd === guest ? this.sent : this.received).push(frame);
        writeFd(fd === guest ? host : guest, frame);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#end.abort();
    this.#epoll.wake();
    await this.#carrying;
    this.#epoll[Symbol.dispose]();
    this.#fds.forEach(closeFd);
    this.host[Symbol.dispose]();
    this.guest[Symbol.dispose]();
  }
}
