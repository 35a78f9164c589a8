/**
 * A guest's share of the connections that the kernel tracks, and of new connections per second.
 *
 * The defaults are fractions of the kernel's limit. A closed connection stays tracked for two
 * minutes. So a hostile guest has at most a quarter open, nearly a quarter closed, and its burst.
 * Half is left to the other guests.
 *
 * @module
 */

import type { GuestLimits } from "../firewall/model.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { linkTowards } from "../netlink/route.ts";
import { readSysctl } from "../sys/sysctl.ts";
import type { Limit, Policy, Reach } from "./record/attachment.ts";

/** If conntrack is not loaded yet: its size on a machine of 1 to 4 GB. */
const USUAL_MAX = 65_536;
/** A guest may have 1/4 of the kernel's limit, and open 1/512 of it per second. */
const PART = { CONNECTIONS: 4, OPENINGS: 512 } as const;
const FEWEST_OPENINGS = 100;

/** Whether limits were requested, so that it is an error if they cannot be applied. */
export function asksForLimits({ maxConnections, newConnections }: Policy): boolean {
  return typeof maxConnections === "number" || typeof newConnections === "number";
}

/** The limits of a guest by its policy and this host; undefined for none. */
export function limitsOf(
  { link, addresses }: Reach,
  { maxConnections, newConnections }: Policy,
  hostNl: NetlinkConnection,
): GuestLimits | undefined {
  if (maxConnections === "unlimited" && newConnections === "unlimited") return undefined;
  // The host does not track packets that reach the guest without it.
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
