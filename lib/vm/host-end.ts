/**
 * The host's side of an interface: its end of the veth pair, and whether the host forwards for it.
 *
 * @module
 */

import type { GuestRules } from "../firewall/model.ts";
import { parseCidr } from "../inet/ip.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { getLink, type Link } from "../netlink/link.ts";
import { getRoute, linkTowards } from "../netlink/route.ts";
import type { VmInterface } from "./types.ts";

/** Connections of the namespaces that an interface's two ends are in. */
export interface LinkEnds {
  readonly hostNl: NetlinkConnection;
  readonly vmNl: NetlinkConnection;
}

/** The host's end of a veth pair. */
export interface HostEnd {
  readonly link: Link;
  /** What it is a port of. */
  readonly master?: Link;
}

/** The host's end of an interface's veth pair; undefined where it has none. */
export function findHostEnd(ifName: string, { hostNl, vmNl }: LinkEnds): HostEnd | undefined {
  const inner = getLink(vmNl, ifName);
  if (inner?.kind !== "veth" || inner.peerIndex === undefined) return undefined;
  const link = getLink(hostNl, inner.peerIndex);
  // The same number may be another link's, where the peer is in a third namespace.
  if (link?.kind !== "veth" || link.peerIndex !== inner.index) return undefined;
  const master = link.master === undefined ? undefined : getLink(hostNl, link.master);
  return { link, ...master === undefined ? {} : { master } };
}

/**
 * The rules of a guest, with what lets it pass other firewalls and the kernel where this host
 * forwards for it: its gateway is an address of the host's, or the host routes straight to it.
 */
export function asForwarded(rules: GuestRules, link: VmInterface, ends: LinkEnds): GuestRules {
  const [first] = link.addresses;
  if (rules.relayed || first === undefined || (rules.forward && rules.link !== "")) return rules;
  const { hostNl } = ends;
  const towards = rules.link || linkTowards(hostNl, parseCidr(first.address).address);
  if (!towards) return rules;
  const { gateway } = first;
  const forwards = gateway !== undefined && getRoute(hostNl, gateway)?.type === "local" ||
    towards === findHostEnd(link.name, ends)?.link.name;
  return forwards ? { ...rules, link: towards, forward: true } : rules;
}
