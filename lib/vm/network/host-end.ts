/**
 * The host's side of an interface: its end of the veth pair, and whether the host forwards for it.
 *
 * @module
 */

import type { Firewall } from "../../firewall/firewall.ts";
import type { GuestRules } from "../../firewall/model.ts";
import { addressOf } from "../../inet/ip.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import { getLink, type Link } from "../../netlink/link.ts";
import { getRoute, linkTowards } from "../../netlink/route.ts";
import { readSysctl } from "../../sys/sysctl.ts";
import type { Both, GuestLink, Reach } from "../record/attachment.ts";
import { publishedPorts } from "../record/served.ts";
import type { VmAddress } from "../types.ts";

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
 * How the host reaches an interface, as its network and the kernel say. Where this host forwards for it,
 * that lets it pass other firewalls: its gateway is an address of the host's, or the host routes straight
 * to it.
 *
 * @param said what its plugins say of the firewall; absent where they ask nothing of it
 * @param policed whether the host's end has to be known where its plugins say all else
 */
export function reachOf(
  said: GuestRules | undefined,
  { ifName, link: { addresses }, policed, ...ends }: LinkEnds & {
    readonly ifName: string;
    readonly link: GuestLink;
    readonly policed: boolean;
  },
): Reach {
  const known = said?.forward === true && said.link !== "";
  const end = known && !policed ? undefined : findHostEnd(ifName, ends);
  const own = addresses.map(({ address }) => addressOf(address));
  const reach: Reach = {
    link: said?.link ?? "",
    addresses: said?.addresses ?? own,
    masquerade: said?.masquerade ?? false,
    forward: said?.forward ?? false,
    ...end === undefined ? {} : { hostEnd: end.link.name },
    ...end?.master?.kind === "bridge" ? { bridge: end.master.name } : {},
  };
  const [first] = own;
  if (first === undefined || known) return reach;
  const { hostNl } = ends;
  const towards = reach.link || linkTowards(hostNl, first);
  if (!towards) return reach;
  const isLocal = ({ gateway }: VmAddress) =>
    gateway !== undefined && getRoute(hostNl, gateway)?.type === "local";
  const forwards = addresses.some(isLocal) || towards === reach.hostEnd;
  return forwards ? { ...reach, link: towards, forward: true } : reach;
}

/**
 * A VM whose ports tapkit publishes, with how they reach it where its network does not say: by which
 * link, and whether its answers come back by the host. Where another firewall drops what is forwarded,
 * it is let pass.
 */
export function reachableByPorts(hostNl: NetlinkConnection, at: Both): Both {
  const [first, ...others] = at.facts.networks;
  if (first?.reach === undefined || first.link === undefined) return at;
  if (publishedPorts(at).length === 0) return at;
  const reach = reachByPorts(hostNl, first.reach, first.link);
  return { ...at, facts: { ...at.facts, networks: [{ ...first, reach }, ...others] } };
}

function reachByPorts(hostNl: NetlinkConnection, reach: Reach, link: GuestLink): Reach {
  const [first] = link.addresses;
  if (reach.link !== "" || reach.relayed || first === undefined) return reach;
  const { gateway } = first;
  if (gateway === undefined || getRoute(hostNl, gateway)?.type !== "local") {
    return { ...reach, forward: true, relayed: true };
  }
  return { ...reach, forward: true, link: linkTowards(hostNl, addressOf(first.address)) ?? "" };
}

/**
 * Says where the host only bridges for a guest, and filters what bridges pass as if it forwarded it:
 * who may send what to whom is then not for tapkit to say.
 */
export function noteFilteredBridge(
  firewall: Firewall,
  { ifName, reach, note }: {
    readonly ifName: string;
    readonly reach: Reach;
    note(text: string): void;
  },
): void {
  const { forward, bridge } = reach;
  if (forward || bridge === undefined || !firewall.dropsForwarded()) return;
  if (readSysctl("net/bridge/bridge-nf-call-iptables") !== "1") return;
  note(
    `warning: a firewall of this host drops what "${bridge}" passes to and from "${ifName}" ` +
      "(net.bridge.bridge-nf-call-iptables is 1): set that to 0, or let it pass: " +
      `iptables -I FORWARD -i ${bridge} -o ${bridge} -j ACCEPT`,
  );
}
