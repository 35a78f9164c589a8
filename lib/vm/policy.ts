/**
 * A VM's isolation and egress, as the firewall's rules of each of its interfaces.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import type { EgressRule, GuestRules } from "../firewall/model.ts";
import { cidrsOverlap, parseCidr } from "../inet/ip.ts";
import { ownAddresses } from "../netlink/address.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { getLink } from "../netlink/link.ts";
import type { AttachRequest, VmInterface, VmRecord } from "./types.ts";

/** Connections of the namespaces that an interface's two ends are in. */
export interface LinkEnds {
  readonly hostNl: NetlinkConnection;
  readonly vmNl: NetlinkConnection;
  note(text: string): void;
}

/** Whether two requests want the same isolation and egress. */
export function samePolicy(a: AttachRequest, b: AttachRequest): boolean {
  return JSON.stringify([isIsolated(a), egressOf(a)]) ===
    JSON.stringify([isIsolated(b), egressOf(b)]);
}

/** What a record says of a request's policy. */
export function recordedPolicy(
  request: AttachRequest,
): Pick<VmRecord, "isolated" | "denyEgress" | "allowEgress"> {
  const denyEgress = listed(request.denyEgress);
  const allowEgress = listed(request.allowEgress);
  return {
    ...isIsolated(request) ? { isolated: true } : {},
    ...denyEgress.length > 0 ? { denyEgress } : {},
    ...allowEgress.length > 0 ? { allowEgress } : {},
  };
}

/**
 * The rules of an interface with a request's policy in place of what they had.
 *
 * @throws {TapkitError} where the interface's network leaves no means to enforce it
 */
export function withPolicy(
  guest: GuestRules,
  link: VmInterface,
  request: AttachRequest,
  ends: LinkEnds,
): GuestRules {
  const { mac: _, isolatedPort: __, egress: ___, ...rules } = guest;
  const egress = egressOf(request);
  const isolated = isIsolated(request);
  if (!isolated && egress.length === 0) return rules;
  const port = hostPort(link.name, ends);
  if (isolated && port?.bridge === undefined) {
    throw new TapkitError(
      `"${link.name}" cannot be isolated: network "${link.network}" is no bridge of this host`,
      { mend: "leave --isolated out, or use a network of the bridge plugin" },
    );
  }
  if (egress.length > 0) {
    requireRouting(link, port?.bridge ?? port?.name, ends);
    if (!isolated) noteNeighbours(link, egress, ends);
  }
  return {
    ...rules,
    link: rules.link || (port!.bridge ?? port!.name),
    mac: link.mac,
    ...isolated ? { isolatedPort: port!.name } : {},
    ...egress.length > 0 ? { egress } : {},
  };
}

function isIsolated({ isolated = false }: AttachRequest): boolean {
  return isolated;
}

function listed(prefixes: AttachRequest["denyEgress"]): readonly string[] {
  return prefixes === undefined || prefixes === "none" ? [] : prefixes;
}

function egressOf({ denyEgress, allowEgress }: AttachRequest): EgressRule[] {
  return [
    ...listed(denyEgress).map((prefix): EgressRule => ({ prefix, action: "deny" })),
    ...listed(allowEgress).map((prefix): EgressRule => ({ prefix, action: "allow" })),
  ];
}

/** The host's end of an interface's veth pair, and the bridge that it is a port of. */
function hostPort(
  ifName: string,
  { hostNl, vmNl }: LinkEnds,
): { readonly name: string; readonly bridge?: string } | undefined {
  const inner = getLink(vmNl, ifName);
  if (inner?.kind !== "veth" || inner.peerIndex === undefined) return undefined;
  const outer = getLink(hostNl, inner.peerIndex);
  if (outer?.kind !== "veth" || outer.peerIndex !== inner.index) return undefined;
  const master = outer.master === undefined ? undefined : getLink(hostNl, outer.master);
  return { name: outer.name, ...master?.kind === "bridge" ? { bridge: master.name } : {} };
}

/** What the host does not route it cannot restrict. */
function requireRouting(
  { name, network, addresses, dhcpGuard }: VmInterface,
  hostLink: string | undefined,
  { hostNl }: LinkEnds,
): void {
  const own = ownAddresses(hostNl);
  const gateways = addresses.flatMap(({ gateway }) => gateway ?? []);
  const why =
    hostLink === undefined || gateways.length === 0 || !gateways.every((ip) => own.has(ip))
      ? `this host is not the router of network "${network}"`
      : dhcpGuard === false
      ? "this kernel lacks CONFIG_NET_CLS_BPF, and the guest may take another MAC address"
      : undefined;
  if (why === undefined) return;
  throw new TapkitError(`the egress of "${name}" cannot be restricted: ${why}`, {
    mend: "leave --deny-egress out, or use a network whose gateway is this host",
  });
}

function noteNeighbours(
  { name, addresses }: VmInterface,
  egress: readonly EgressRule[],
  { note }: LinkEnds,
): void {
  const prefixes = addresses.map(({ address }) => parseCidr(address));
  const reached = egress.find(({ prefix, action }) =>
    action === "deny" && prefixes.some((own) => cidrsOverlap(own, parseCidr(prefix)))
  );
  if (reached === undefined) return;
  note(
    `warning: ${reached.prefix} holds neighbours of "${name}", which are reached past the host: ` +
      "--isolated keeps them apart",
  );
}
