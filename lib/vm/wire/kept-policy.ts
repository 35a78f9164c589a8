/**
 * The part of a VM's isolation and egress rules that its guards enforce, from the record and from the
 * host's side of its bridges.
 *
 * @module
 */

import type { GuestRules } from "../../firewall/model.ts";
import type { PortMapping, Protocol } from "../../inet/ports.ts";
import { listAddresses } from "../../netlink/address.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import { getLink, setLink } from "../../netlink/link.ts";
import type { GuardPolicy } from "./guard.ts";
import { linkLocalOf } from "./guest-guard.ts";
import {
  type BridgeSide,
  MAX_GUARDED_RULES,
  type Policy,
  policyGuard,
  type PortRange,
} from "./policy-guard.ts";
import type { Both, GuestLink } from "../record/attachment.ts";
import { portsOf } from "../record/derive.ts";
import { guestsOf } from "../record/served.ts";

/** With more ranges of ports than this, a guard allows all ports. */
const MAX_RANGES = 64;

/** What the guards of each interface enforce; undefined if there is nothing to enforce. */
export function keptPolicies(
  hostNl: NetlinkConnection,
  at: Both,
): (GuardPolicy | undefined)[] {
  const ports = portsOf(at.spec.claims);
  return guestsOf(at).map((rules, index) => {
    const { addresses } = at.facts.networks[index]!.link!;
    // Ports lead to the first interface.
    const policy = policyOf(hostNl, addresses, rules, index === 0 ? ports : []);
    return policy && policyGuard(policy);
  });
}

function policyOf(
  hostNl: NetlinkConnection,
  addresses: GuestLink["addresses"],
  rules: GuestRules,
  ports: readonly PortMapping[],
): Policy | undefined {
  const { isolatedPort, egress = [], link, masquerade, reachableFrom = [] } = rules;
  const bridge = isolatedPort === undefined ? undefined : bridgeSide(hostNl, link);
  const guarded = egress.length > 0 && egress.length <= MAX_GUARDED_RULES;
  if (bridge === undefined && !guarded) return undefined;
  return {
    addresses: addresses.map(({ address }) => address),
    ...bridge === undefined ? {} : { bridge },
    ...guarded
      ? {
        egress: {
          rules: egress,
          askers: [...addresses.flatMap(({ gateway }) => gateway ?? []), ...reachableFrom],
          // A masqueraded network is only reached by published ports.
          reachable: !masquerade,
          udp: vmPorts(ports, "udp"),
          sctp: vmPorts(ports, "sctp"),
        },
      }
      : {},
  };
}

/**
 * Sets the MACs of isolated guests' bridges to what they are. Guards depend on them, and a bridge
 * whose MAC was never set takes that of its lowest port.
 *
 * Equivalent to: `ip link set BRIDGE address MAC`, with the present MAC
 */
export function fixBridges(nl: NetlinkConnection, guests: readonly GuestRules[]): void {
  for (const { isolatedPort, link } of guests) {
    const bridge = isolatedPort === undefined ? undefined : getLink(nl, link);
    if (bridge?.mac !== undefined) setLink(nl, bridge.index, { mac: bridge.mac });
  }
}

/** The host's MAC and addresses on a bridge; undefined if the bridge is missing. */
function bridgeSide(nl: NetlinkConnection, name: string): BridgeSide | undefined {
  const bridge = getLink(nl, name);
  if (bridge?.mac === undefined) return undefined;
  const addresses = listAddresses(nl, { index: bridge.index }).map(({ address }) => address);
  // The kernel may add it a moment after the bridge.
  const linkLocal = `${linkLocalOf(bridge.mac)}/64`;
  return {
    mac: bridge.mac,
    addresses: [...addresses.filter((address) => address !== linkLocal), linkLocal],
  };
}

/** The guest's published ports of a protocol, merged into ranges. */
function vmPorts(ports: readonly PortMapping[], protocol: Protocol): PortRange[] {
  const ranges = ports.filter((port) => port.protocol === protocol)
    .map(({ vmPort, range = 1 }): PortRange => [vmPort, vmPort + range - 1])
    .sort(([a], [b]) => a - b);
  const merged: PortRange[] = [];
  for (const [first, last] of ranges) {
    const before = merged.at(-1);
    if (before === undefined || first > before[1] + 1) merged.push([first, last]);
    else merged[merged.length - 1] = [before[0], Math.max(before[1], last)];
  }
  return merged.length > MAX_RANGES ? [[0, 0xffff]] : merged;
}
