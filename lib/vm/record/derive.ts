/**
 * The record that is printed, derived from an attachment. Pure.
 *
 * @module
 */

import { type PortMapping, subtractPorts } from "../../inet/ports.ts";
import type { NetworkPlugin, VmAddress, VmInterface, VmRecord } from "../types.ts";
import type { Both, Claim, Policy, Spec } from "./attachment.ts";
import { linkNames } from "./identity.ts";

/** The guest derives its link-local address from its MAC. */
export const DEFAULT_LINK_LOCAL = "eui64";

/** The existing interfaces, as they are printed. */
export function interfacesOf({ spec, facts }: Both): VmInterface[] {
  const { antispoof, linkLocal, queues } = spec;
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
      ...queues === undefined ? {} : { queues },
      addresses,
      routes,
      ...antispoof ? {} : { antispoof },
      ...linkLocal === DEFAULT_LINK_LOCAL ? {} : { linkLocal },
      ...wire.guarded ? {} : { dhcpGuard: false as const },
    }];
  });
}

/** The first IPv4 address of an interface, which DHCP gives to the guest. */
export function ipv4Of({ addresses }: Pick<VmInterface, "addresses">): VmAddress | undefined {
  return addresses.find(({ address }) => !address.includes(":"));
}

/** What makes a VM's network. */
export function pluginOf({ docker }: Pick<Spec, "docker">): NetworkPlugin {
  return docker === undefined ? "cni" : "docker-bridge";
}

/** The record of an attachment, as it is printed. */
export function recordOf(both: Both): VmRecord {
  const { spec: { id, policy, claims }, facts: { netns, dns } } = both;
  return {
    version: 1,
    vm: id.name,
    id: id.containerId,
    networkPlugin: pluginOf(both.spec),
    netns: netns.path,
    interfaces: interfacesOf(both),
    dns,
    ports: portsOf(claims),
    ...recordedPolicy(policy),
  };
}

function recordedPolicy(policy: Policy): Partial<VmRecord> {
  const { isolated, denyEgress, allowEgress, reachableFrom } = policy;
  const limit = (key: "maxConnections" | "newConnections") => {
    const value = policy[key];
    return value === "default" ? {} : { [key]: value === "unlimited" ? "none" : value };
  };
  return {
    ...isolated ? { isolated } : {},
    ...denyEgress.length > 0 ? { denyEgress } : {},
    ...allowEgress.length > 0 ? { allowEgress } : {},
    ...reachableFrom.length > 0 ? { reachableFrom } : {},
    ...limit("maxConnections"),
    ...limit("newConnections"),
  };
}

/** The ports of claims, without duplicates. Those of attach-vm come first. */
export function portsOf(claims: readonly Claim[]): readonly PortMapping[] {
  const known = knownPorts.get(claims);
  if (known !== undefined) return known;
  const [attach, map] = [claimsBy(claims, "attach"), claimsBy(claims, "map")];
  const ports = [...attach, ...subtractPorts(map, attach)];
  knownPorts.set(claims, ports);
  return ports;
}

/** They are asked for at each step, and may be ten thousand. */
const knownPorts = new WeakMap<readonly Claim[], readonly PortMapping[]>();

/** The ports that one of the commands asked for. */
export function claimsBy(claims: readonly Claim[], by: Claim["by"]): PortMapping[] {
  return claims.filter((claim) => claim.by === by).map(plainPort);
}

function plainPort({ hostIP, hostPort, vmPort, protocol, range }: Claim): PortMapping {
  const port = { hostIP, hostPort, vmPort, protocol };
  return range === undefined ? port : { ...port, range };
}
