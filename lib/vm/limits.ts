/**
 * How much a VM may have of what all guests of a host share: connections, and new ones a second.
 *
 * The defaults are parts of what the kernel tracks at most. A closed connection stays tracked for
 * two minutes, so that a guest that does its worst has the quarter that it may have open, nearly
 * another of closed ones, and what it opens at once: half is left to the others.
 *
 * @module
 */

import type { GuestLimits } from "../firewall/model.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { linkTowards } from "../netlink/route.ts";
import { readSysctl } from "../sys/sysctl.ts";
import type { Limit, Policy, Reach } from "./record/attachment.ts";

/** Where conntrack is not loaded yet: its size on a machine of 1 to 4 GB. */
const USUAL_MAX = 65_536;
/** One part in so many may be tracked for a guest, and as many are opened a second. */
const PART = { CONNECTIONS: 4, OPENINGS: 512 } as const;
const FEWEST_OPENINGS = 100;

/** Whether limits were asked for, and so must not be left out. */
export function asksForLimits({ maxConnections, newConnections }: Policy): boolean {
  return typeof maxConnections === "number" || typeof newConnections === "number";
}

/** The limits of a guest that a policy wants on this host; undefined for none. */
export function limitsOf(
  { link, addresses }: Reach,
  { maxConnections, newConnections }: Policy,
  hostNl: NetlinkConnection,
): GuestLimits | undefined {
  if (maxConnections === "unlimited" && newConnections === "unlimited") return undefined;
  // What reaches the guest past the host is not tracked by it.
  const by = link || (addresses[0] && linkTowards(hostNl, addresses[0]));
  if (!by) return undefined;
  const max = Number(readSysctl("net/netfilter/nf_conntrack_max") ?? USUAL_MAX);
  const number = (limit: Limit, usual: number) =>
    limit === "default" ? usual : limit === "unlimited" ? undefined : limit;
  const connections = number(maxConnections, Math.max(1, Math.floor(max / PART.CONNECTIONS)));
  const openings = number(
    newConnections,
    Math.max(FEWEST_OPENINGS, Math.floor(max / PART.OPENINGS)),
  );
  return {
    link: by,
    ...connections === undefined ? {} : { connections },
    ...openings === undefined ? {} : { openings },
  };
}
