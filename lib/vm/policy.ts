/**
 * A VM's isolation, egress and reach, as the firewall's rules of each of its interfaces.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import type { EgressRule, GuestRules } from "../firewall/model.ts";
import { asPrefix, cidrContains, cidrsOverlap, type Family, parseCidr } from "../inet/ip.ts";
import { ownAddresses } from "../netlink/address.ts";
import { readSysctl } from "../sys/sysctl.ts";
import { findHostEnd, type LinkEnds } from "./host-end.ts";
import type { AttachRequest, VmInterface, VmRecord } from "./types.ts";

/** Where an interface's two ends are, and who is told of what a policy does not reach. */
export interface PolicyEnds extends LinkEnds {
  note(text: string): void;
}

/** Whether two requests want the same isolation, egress and reach. */
export function samePolicy(a: AttachRequest, b: AttachRequest): boolean {
  const policyOf = (request: AttachRequest) =>
    JSON.stringify([isIsolated(request), egressOf(request), listed(request.reachableFrom)]);
  return policyOf(a) === policyOf(b);
}

/** What a record says of a request's policy. */
export function recordedPolicy(
  request: AttachRequest,
): Pick<VmRecord, "isolated" | "denyEgress" | "allowEgress" | "reachableFrom"> {
  const denyEgress = listed(request.denyEgress);
  const allowEgress = listed(request.allowEgress);
  const reachableFrom = listed(request.reachableFrom);
  return {
    ...isIsolated(request) ? { isolated: true } : {},
    ...denyEgress.length > 0 ? { denyEgress } : {},
    ...allowEgress.length > 0 ? { allowEgress } : {},
    ...reachableFrom.length > 0 ? { reachableFrom } : {},
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
  ends: PolicyEnds,
): GuestRules {
  const { mac: _, isolatedPort: __, egress: ___, reachableFrom: ____, ...kept } = guest;
  const reachableFrom = listed(request.reachableFrom);
  const rules = reachableFrom.length === 0 ? kept : { ...kept, reachableFrom };
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
  return prefixes === undefined || prefixes === "none" ? [] : prefixes.map(asPrefix);
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
  ends: LinkEnds,
): { readonly name: string; readonly bridge?: string } | undefined {
  const end = findHostEnd(ifName, ends);
  if (end === undefined) return undefined;
  const { link, master } = end;
  return { name: link.name, ...master?.kind === "bridge" ? { bridge: master.name } : {} };
}

/** What the host does not route it cannot restrict. */
function requireRouting(
  { name, network, addresses, dhcpGuard }: VmInterface,
  hostLink: string | undefined,
  { hostNl }: LinkEnds,
): void {
  const own = ownAddresses(hostNl);
  const routers = addresses.flatMap(({ gateway }) => gateway ?? []);
  const prefixes = addresses.map(({ address }) => parseCidr(address));
  // Without a default route the guest may still make the host its router.
  const hops = routers.length > 0
    ? routers
    : [...own].filter((ip) => prefixes.some((prefix) => cidrContains(prefix, ip)));
  const why = hostLink === undefined || hops.length === 0 || !hops.every((ip) => own.has(ip))
    ? `this host is not the router of network "${network}"`
    : dhcpGuard === false
    ? "this kernel lacks CONFIG_NET_CLS_BPF, and the guest may take another MAC address"
    : undefined;
  if (why === undefined) return;
  throw new TapkitError(`the egress of "${name}" cannot be restricted: ${why}`, {
    mend: "leave --deny-egress out, or use a network whose gateway is this host",
  });
}

/** Whether what passes from one port of a bridge to another meets the rules of what is forwarded. */
function bridgesByRules(family: Family): boolean {
  return readSysctl(`net/bridge/bridge-nf-call-${family === 4 ? "ip" : "ip6"}tables`) === "1";
}

function noteNeighbours(
  { name, addresses }: VmInterface,
  egress: readonly EgressRule[],
  { note }: PolicyEnds,
): void {
  const prefixes = addresses.map(({ address }) => parseCidr(address));
  const reached = egress.find(({ prefix, action }) =>
    action === "deny" &&
    prefixes.some((own) => cidrsOverlap(own, parseCidr(prefix)) && !bridgesByRules(own.family))
  );
  if (reached === undefined) return;
  note(
    `warning: ${reached.prefix} holds neighbours of "${name}", which are reached past the host: ` +
      "--isolated keeps them apart",
  );
}
