/**
 * The identity of a network namespace.
 *
 * @module
 */

import type { Netns } from "../sys/netns.ts";
import type { NetlinkConnection } from "./connection.ts";

/** The identity of a namespace, whatever its path. No other namespace has the same. */
export interface NetnsIdentity {
  /** The kernel's random ID of this boot. */
  readonly boot: string;
  /** The inode number of its file, which is reused when the namespace is gone. */
  readonly dev: number;
  readonly ino: number;
  /** The kernel's cookie, in decimal, which is never reused; since Linux 5.14. */
  readonly cookie?: string;
}

let boot: string | undefined;

/** The kernel's random ID of this boot. */
export function bootId(): string {
  return boot ??= Deno.readTextFileSync("/proc/sys/kernel/random/boot_id").trim();
}

/** @param nl a connection of the namespace */
export function netnsIdentity(netns: Netns, nl: NetlinkConnection): NetnsIdentity {
  const { dev, ino } = Deno.statSync(`/proc/self/fd/${netns.fd}`);
  const boot = bootId();
  const { netnsCookie: cookie } = nl;
  return { boot, dev, ino: ino ?? 0, ...cookie === undefined ? {} : { cookie } };
}

/** Whether two identities are of the same namespace. */
export function isSameNetns(one: NetnsIdentity, other: NetnsIdentity): boolean {
  return one.boot === other.boot && one.dev === other.dev && one.ino === other.ino &&
    one.cookie === other.cookie;
}
