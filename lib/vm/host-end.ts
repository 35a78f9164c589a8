/**
 * The host's side of an interface: its end of the veth pair, and whether the host forwards for it.
 *
 * @module
 */

import type { Firewall } from "../firewall/firewall.ts";
import type { GuestRules } from "../firewall/model.ts";
import { parseCidr } from "../inet/ip.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { getLink, type Link } from "../netlink/link.ts";
import { getRoute, linkTowards } from "../netlink/route.ts";
import { readSysctl } from "../sys/sysctl.ts";
import type { VmAddress, VmInterface } from "./types.ts";

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
  const isLocal = ({ gateway }: VmAddress) =>
    gateway !== undefined && getRoute(hostNl, gateway)?.type === "local";
  const forwards = link.addresses.some(isLocal) ||
    towards === findHostEnd(link.name, ends)?.link.name;
  return forwards ? { ...rules, link: towards, forward: true } : rules;
}

/**
 * Says where the host only bridges for a guest, and filters what bridges pass as if it forwarded it:
 * who may send what to whom is then not for tapkit to say.
 */
export function noteFilteredBridge(
  firewall: Firewall,
  { forward }: GuestRules,
  { name }: VmInterface,
  { note, ...ends }: LinkEnds & { note(text: string): void },
): void {
  if (forward || readSysctl("net/bridge/bridge-nf-call-iptables") !== "1") return;
  const master = findHostEnd(name, ends)?.master;
  if (master?.kind !== "bridge" || !firewall.dropsForwarded()) return;
  const bridge = master.name;
  note(
    `warning: a firewall of this host drops what "${bridge}" passes to and from "${name}" ` +
      "(net.bridge.bridge-nf-call-iptables is 1): set that to 0, or let it pass: " +
      `iptables -I FORWARD -i ${bridge} -o ${bridge} -j ACCEPT`,
  );
}
