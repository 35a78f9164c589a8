/**
 * The record that is printed, derived from an attachment. Pure.
 *
 * @module
 */

import { type PortMapping, subtractPorts } from "../../inet/ports.ts";
import type { VmInterface, VmRecord } from "../types.ts";
import type { Both, Claim, Limit, Policy } from "./attachment.ts";
import { linkNames } from "./identity.ts";

/** What "eui64" means of a link-local address: the guest makes it of its MAC. */
export const DEFAULT_LINK_LOCAL = "eui64";

/** The interfaces as they are printed, as far as they are there. */
export function interfacesOf({ spec, facts }: Both): VmInterface[] {
  const { antispoof, linkLocal } = spec;
  return facts.networks.flatMap(({ attachment: { ifName, network }, link, wire }) => {
    if (link === undefined || wire === undefined) return [];
    const { tap, bridge } = linkNames(ifName);
    const { leased, mac, mtu, addresses, routes } = link;
    return [{
      name: ifName,
      network,
      mode: wire.mode,
      tap,
      ...wire.mode === "dhcp-bridge" ? { bridge } : {},
      ...leased ? { leased } : {},
      mac,
      mtu,
      addresses,
      routes,
      ...antispoof ? {} : { antispoof },
      ...linkLocal === DEFAULT_LINK_LOCAL ? {} : { linkLocal },
      ...wire.guarded ? {} : { dhcpGuard: false as const },
    }];
  });
}

/** The record of an attachment as it is printed. */
export function recordOf(both: Both): VmRecord {
  const { spec: { id, policy, claims }, facts: { netns, dns } } = both;
  return {
    version: 1,
    vm: id.name,
    id: id.containerId,
    networkPlugin: "cni",
    netns: netns.path,
    interfaces: interfacesOf(both),
    dns,
    ports: portsOf(claims),
    ...recordedPolicy(policy),
  };
}

function recordedPolicy(policy: Policy): Partial<VmRecord> {
  const { isolated, denyEgress, allowEgress, reachableFrom } = policy;
  const limit = (value: Limit) => value === "unlimited" ? "none" : value;
  const { maxConnections, newConnections } = policy;
  return {
    ...isolated ? { isolated } : {},
    ...denyEgress.length > 0 ? { denyEgress } : {},
    ...allowEgress.length > 0 ? { allowEgress } : {},
    ...reachableFrom.length > 0 ? { reachableFrom } : {},
    ...maxConnections === "default" ? {} : { maxConnections: limit(maxConnections) as number },
    ...newConnections === "default" ? {} : { newConnections: limit(newConnections) as number },
  };
}

/** The ports of claims, each once: attach-vm's first. */
export function portsOf(claims: readonly Claim[]): PortMapping[] {
  const [attach, map] = [claimsBy(claims, "attach"), claimsBy(claims, "map")];
  return [...attach, ...subtractPorts(map, attach)];
}

/** The ports that one of the two asked for. */
export function claimsBy(claims: readonly Claim[], by: Claim["by"]): PortMapping[] {
  return claims.filter((claim) => claim.by === by).map(plainPort);
}

function plainPort({ by: _, chosen: __, ...port }: Claim): PortMapping {
  return port;
}
