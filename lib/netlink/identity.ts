/**
 * Telling network namespaces apart.
 *
 * @module
 */

import type { Netns } from "../sys/netns.ts";
import type { NetlinkConnection } from "./connection.ts";

/** Which namespace one is: no other has the same, whatever leads to it. */
export interface NetnsIdentity {
  /** When this machine was started: the kernel's random number for that. */
  readonly boot: string;
  /** Of its file. An inode's number is given out again as soon as its namespace is gone. */
  readonly dev: number;
  readonly ino: number;
  /** The kernel's own number, which is never given out again, in decimal; from Linux 5.14 on. */
  readonly cookie?: string;
}

/** The kernel's random number for this boot. */
export function bootId(): string {
  return Deno.readTextFileSync("/proc/sys/kernel/random/boot_id").trim();
}

/** @param nl a connection of the namespace */
export function netnsIdentity(netns: Netns, nl: NetlinkConnection): NetnsIdentity {
  const { dev, ino } = Deno.statSync(`/proc/self/fd/${netns.fd}`);
  const boot = bootId();
  const { netnsCookie: cookie } = nl;
  return { boot, dev, ino: ino ?? 0, ...cookie === undefined ? {} : { cookie } };
}

/** Whether two descriptions are of one namespace. */
export function isSameNetns(one: NetnsIdentity, other: NetnsIdentity): boolean {
  return one.boot === other.boot && one.dev === other.dev && one.ino === other.ino &&
    one.cookie === other.cookie;
}
