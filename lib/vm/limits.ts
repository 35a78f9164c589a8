/**
 * How much a VM may have of what all guests of a host share: connections, and new ones a second.
 *
 * The defaults are parts of what the kernel tracks at most. A closed connection stays tracked for
 * two minutes, so that a guest that does its worst has the quarter that it may have open, nearly
 * another of closed ones, and what it opens at once: half is left to the others.
 *
 * @module
 */

import type { Firewall } from "../firewall/firewall.ts";
import type { GuestLimits, GuestRules } from "../firewall/model.ts";
import { LimitsError } from "../firewall/policy.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { linkTowards } from "../netlink/route.ts";
import { readSysctl } from "../sys/sysctl.ts";
import type { AttachRequest, VmInterface, VmRecord } from "./types.ts";

/** Where conntrack is not loaded yet: its size on a machine of 1 to 4 GB. */
const USUAL_MAX = 65_536;
/** One part in so many may be tracked for a guest, and as many are opened a second. */
const PART = { CONNECTIONS: 4, OPENINGS: 512 } as const;
const FEWEST_OPENINGS = 100;

/** What a record says of the limits that were asked for. */
export function recordedLimits(
  { maxConnections = "default", newConnections = "default" }: AttachRequest,
): Pick<VmRecord, "maxConnections" | "newConnections"> {
  return {
    ...maxConnections === "default" ? {} : { maxConnections },
    ...newConnections === "default" ? {} : { newConnections },
  };
}

/** The rules of an interface with a request's limits in place of what they had. */
export function withLimits(
  guest: GuestRules,
  { mac }: VmInterface,
  request: AttachRequest,
  hostNl: NetlinkConnection,
): GuestRules {
  const { limits: _, ...rules } = guest;
  const limits = limitsOf(rules, request, hostNl);
  return limits === undefined ? rules : { ...rules, mac, limits };
}

/** Whether all of an attached VM's rules have the limits that are wanted. */
export function hasLimits(
  guests: readonly GuestRules[],
  request: AttachRequest,
  hostNl: NetlinkConnection,
): boolean {
  return guests.every((guest) => {
    const wanted = limitsOf(guest, request, hostNl);
    return wanted?.connections === guest.limits?.connections &&
      wanted?.openings === guest.limits?.openings;
  });
}

function limitsOf(
  { link, addresses }: GuestRules,
  { maxConnections = "default", newConnections = "default" }: AttachRequest,
  hostNl: NetlinkConnection,
): GuestLimits | undefined {
  if (maxConnections === "none" && newConnections === "none") return undefined;
  // What reaches the guest past the host is not tracked by it.
  const by = link || (addresses[0] && linkTowards(hostNl, addresses[0]));
  if (!by) return undefined;
  const max = Number(readSysctl("net/netfilter/nf_conntrack_max") ?? USUAL_MAX);
  const connections = maxConnections === "default"
    ? Math.max(1, Math.floor(max / PART.CONNECTIONS))
    : maxConnections;
  const openings = newConnections === "default"
    ? Math.max(FEWEST_OPENINGS, Math.floor(max / PART.OPENINGS))
    : newConnections;
  return {
    link: by,
    ...connections === "none" ? {} : { connections },
    ...openings === "none" ? {} : { openings },
  };
}

/**
 * Brings a guest's rules into the firewall. Where the kernel has no means to limit, what nobody asked
 * for is left out, and said.
 *
 * @param old what it had; absent, it had none
 * @returns the rules that it has now
 */
export function applyRules(
  firewall: Firewall,
  { old, wanted, request, note }: {
    readonly old?: GuestRules;
    readonly wanted: GuestRules;
    readonly request: AttachRequest;
    note(text: string): void;
  },
): GuestRules {
  const apply = (rules: GuestRules) => {
    if (old === undefined) firewall.add(rules);
    else firewall.replace(old, rules);
    return rules;
  };
  try {
    return apply(wanted);
  } catch (error) {
    const asked = Object.values(recordedLimits(request)).some((value) => value !== "none");
    if (!(error instanceof LimitsError) || asked) throw error;
    note(`warning: ${error.message}: one guest may take the network from all: ${error.mend}`);
    const { limits: _, ...rest } = wanted;
    return apply(rest);
  }
}
