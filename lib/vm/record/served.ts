/**
 * The rules and kernel settings that the host needs for a VM or an address, derived from its
 * attachment. Pure.
 *
 * @module
 */

import { hasExecuted } from "../../cni/runtime.ts";
import { publisherOf } from "../../cni/plan.ts";
import type { EgressRule, GuestRules } from "../../firewall/model.ts";
import type { FirewallKind } from "../../firewall/store.ts";
import { type Family, isIp, parseCidr } from "../../inet/ip.ts";
import {
  bindPorts,
  formatPort,
  isWildcard,
  type PortMapping,
  subtractPorts,
} from "../../inet/ports.ts";
import type { Both, Claim, GuestLink, NetworkFact, Policy } from "./attachment.ts";
import { claimsBy, portsOf } from "./derive.ts";
import { ownerTag } from "./identity.ts";

/** The rules and kernel settings for one VM or address. */
export interface Served {
  /** The backend of its rules. */
  readonly firewall: FirewallKind;
  /** The owner tags of all interfaces, including those that do not exist yet. */
  readonly owners: readonly string[];
  /** The rules of each interface. The first has the ports that tapkit publishes. */
  readonly guests: readonly GuestRules[];
  /** Whether a guest may answer on another link than the request came from. */
  readonly asymmetric: boolean;
  /** All ports of the first interface, if a plugin publishes some of them. */
  readonly shown?: readonly PortMapping[];
  /** Whether executed plugins or Docker are involved: they turn forwarding on. */
  readonly executed: boolean;
  /** The command that opens its ports: `"attach-vm web"`. */
  readonly command: string;
}

/** Binds claims to the address families of an interface, once these are known. */
export function bindClaims(claims: readonly Claim[], first: NetworkFact | undefined): Claim[] {
  if (first?.link === undefined) return [...claims];
  const families = first.link.addresses.map(({ address }) => parseCidr(address).family);
  return bindPorts(claims, families) as Claim[];
}

/** Binds ports to the families of these addresses. The addresses have no prefix length. */
export function bindTo(ports: readonly PortMapping[], addresses: readonly string[]): PortMapping[] {
  return bindPorts(ports, addresses.map(isIp).filter((family): family is Family => family !== 0));
}

/** The ports that tapkit publishes: those that neither a plugin nor Docker does. */
export function publishedPorts(
  { spec: { claims }, facts: { networks: [first] } }: Both,
): readonly PortMapping[] {
  if (first?.docker !== undefined) return subtractPorts(portsOf(claims), first.docker.ports);
  if (first === undefined || publisherOf(first.attachment) === "tapkit") return portsOf(claims);
  return subtractPorts(claimsBy(claims, "map"), claimsBy(claims, "attach"));
}

/** Ports as plugins get them: a port of all addresses of all the VM's families appears once. */
export function unboundPorts(
  ports: readonly PortMapping[],
  link: Pick<GuestLink, "addresses"> | undefined,
): PortMapping[] {
  const families = new Set(
    (link?.addresses ?? []).map(({ address }) => parseCidr(address).family),
  );
  if (families.size === 0) return [...ports];
  const wildcards = [...families].map((family) => family === 4 ? "0.0.0.0" : "::");
  const keyOf = (port: PortMapping, hostIP: string) => formatPort({ ...port, hostIP });
  const bound = new Set(ports.map((port) => keyOf(port, port.hostIP)));
  const told = new Map(ports.map((port) => {
    const isOfAll = isWildcard(port.hostIP) &&
      wildcards.every((hostIP) => bound.has(keyOf(port, hostIP)));
    const one = isOfAll ? { ...port, hostIP: "" } : port;
    return [formatPort(one), one];
  }));
  return [...told.values()];
}

/** The egress rules of a policy. */
export function egressOf({ denyEgress, allowEgress }: Policy): EgressRule[] {
  return [
    ...denyEgress.map((prefix): EgressRule => ({ prefix, action: "deny" })),
    ...allowEgress.map((prefix): EgressRule => ({ prefix, action: "allow" })),
  ];
}

/** Whether a guest is isolated, or its egress is restricted. */
export function isPoliced({ isolated, denyEgress }: Policy): boolean {
  return isolated || denyEgress.length > 0;
}

/** The rules of each existing interface. */
export function guestsOf(both: Both): GuestRules[] {
  const { spec, facts: { networks } } = both;
  const { isolated, reachableFrom } = spec.policy;
  const egress = egressOf(spec.policy);
  const policed = isPoliced(spec.policy);
  return networks.flatMap(({ attachment, link, reach, limits }, index) => {
    if (link === undefined || reach === undefined) return [];
    const { hostEnd, bridge, ...reached } = reach;
    return [{
      ...reached,
      owner: ownerTag(spec.id, attachment.ifName),
      link: reach.link || (policed ? bridge ?? hostEnd ?? "" : ""),
      ports: index === 0 ? publishedPorts(both) : [],
      openPorts: spec.openPorts,
      ...policed || limits !== undefined ? { mac: link.mac } : {},
      ...isolated && hostEnd !== undefined ? { isolatedPort: hostEnd } : {},
      ...egress.length > 0 ? { egress } : {},
      ...reachableFrom.length > 0 ? { reachableFrom } : {},
      ...limits === undefined ? {} : { limits },
    }];
  });
}

/** The rules and kernel settings for a VM. */
export function servedVm(both: Both): Served {
  const { spec, facts: { networks } } = both;
  const guests = guestsOf(both);
  const published = networks[0] !== undefined && publisherOf(networks[0].attachment) === "plugin";
  return {
    firewall: spec.firewall,
    owners: networks.map(({ attachment }) => ownerTag(spec.id, attachment.ifName)),
    guests,
    asymmetric: guests.length > 1 && !spec.antispoof,
    ...published ? { shown: portsOf(spec.claims) } : {},
    executed: spec.docker !== undefined ||
      networks.some(({ attachment }) => hasExecuted(attachment)),
    command: `attach-vm ${spec.id.name}`,
  };
}

/** The rules with all ports, including those that a plugin publishes. */
export function shownRules({ guests, shown }: Served): readonly GuestRules[] {
  if (shown === undefined) return guests;
  return guests.map((rules, index) => index === 0 ? { ...rules, ports: shown } : rules);
}
