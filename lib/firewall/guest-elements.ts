/**
 * Guests' elements in the main table, from rules to elements and back (pure).
 *
 * @module
 */

import { type Family, familyOf, isIp } from "../inet/ip.ts";
import {
  expandPorts,
  isWildcard,
  portFamilies,
  type PortMapping,
  type Protocol,
} from "../inet/ports.ts";
import type { GuestRules } from "./model.ts";
import type { Entry } from "./place.ts";

/** The host port that an element maps. */
export function hostPortOf({ set, key }: Pick<Entry, "set" | "key">): {
  readonly hostIP: string;
  readonly hostPort: number;
  readonly protocol: Protocol;
} {
  return {
    hostIP: key.length === 3 ? key[0]! : set.endsWith("4") ? "0.0.0.0" : "::",
    hostPort: Number(key.at(-1)),
    protocol: key.at(-2) as Protocol,
  };
}

/** Two links: packets from the first are not forwarded to the second. */
export type LinkPair = readonly [from: string, to: string];

/** The owner of elements that belong to no guest. */
export const HOST_OWNER = "host";

/** The elements that keep links apart. */
export function apartElements(family: Family, pairs: readonly LinkPair[]): Entry[] {
  return pairs.map((key) => ({ set: `apart${family}`, key, owner: HOST_OWNER }));
}

/** The elements for valid rules. */
export function elementsOf(rules: GuestRules): Entry[] {
  const { owner, link, addresses, masquerade, ports, relayed = false, reachableFrom = [] } = rules;
  const elements: Entry[] = [];
  for (const address of addresses) {
    const family = familyOf(address);
    if (relayed) elements.push({ set: `relayed${family}`, key: [address], owner });
    else if (link !== "") elements.push({ set: `guests${family}`, key: [address, link], owner });
    if (masquerade) elements.push({ set: `private${family}`, key: [address], owner });
    for (const prefix of reachableFrom) {
      if (isIp(prefix.split("/")[0]!) !== family) continue;
      elements.push({ set: `reachable${family}`, key: [address, prefix], owner });
    }
  }
  const families = [...new Set(addresses.map(familyOf))];
  for (const mapping of ports) {
    for (const family of portFamilies(mapping, families)) {
      const target = addresses.find((address) => familyOf(address) === family)!;
      for (const { hostIP, hostPort, vmPort, protocol } of expandPorts(mapping)) {
        const port = [protocol, `${hostPort}`];
        const value = [target, `${vmPort}`];
        elements.push(
          isWildcard(hostIP)
            ? { set: `ports${family}`, key: port, value, owner }
            : { set: `ports_at${family}`, key: [hostIP, ...port], value, owner },
        );
      }
    }
  }
  return elements;
}

/** What to read to know whether host ports are mapped. */
export interface PortQuery {
  /** Elements by their keys. */
  readonly keys: readonly Entry[];
  readonly whole: readonly string[];
}

/**
 * Where to look for mappings that could conflict with `wanted`: at its own keys and, because a
 * wildcard conflicts with every address, in the whole sets of single addresses, which are small.
 */
export function portQuery(wanted: readonly PortMapping[]): PortQuery {
  const keys: Entry[] = [];
  const whole = new Set<string>();
  for (const mapping of wanted) {
    for (const family of portFamilies(mapping, [4, 6])) {
      for (const { hostIP, hostPort, protocol } of expandPorts(mapping)) {
        const port = [protocol, `${hostPort}`];
        keys.push({ set: `ports${family}`, key: port, owner: "" });
        if (isWildcard(hostIP)) whole.add(`ports_at${family}`);
        else keys.push({ set: `ports_at${family}`, key: [hostIP, ...port], owner: "" });
      }
    }
  }
  return { keys: keys.filter(({ set }) => !whole.has(set)), whole: [...whole] };
}

/** The rules for elements, by owner. The kernel does not keep `forward`: it is always true. */
export function rulesOf(elements: readonly Entry[]): GuestRules[] {
  const byOwner = new Map<string, Entry[]>();
  for (const element of elements) {
    const own = byOwner.get(element.owner);
    if (own === undefined) byOwner.set(element.owner, [element]);
    else own.push(element);
  }
  return [...byOwner].map(([owner, own]): GuestRules => {
    const guests = own.filter(({ set }) => set === "guests4" || set === "guests6");
    const ports = own.filter(({ value }) => value !== undefined);
    return {
      owner,
      link: guests[0]?.key[1] ?? "",
      addresses: addressesOf(own),
      masquerade: own.some(({ set }) => set === "private4" || set === "private6"),
      forward: true,
      ports: ports.map((port) => ({ ...hostPortOf(port), vmPort: Number(port.value![1]) })),
      ...own.some(({ set }) => set === "relayed4" || set === "relayed6") ? { relayed: true } : {},
    };
  });
}

/** The guests' addresses in elements. */
export function addressesOf(elements: readonly Entry[]): string[] {
  const texts = elements.flatMap(({ key, value }) => value ?? key);
  return [...new Set(texts.filter((text) => isIp(text) !== 0))];
}

/** The address families of elements. */
export function familiesOf(elements: readonly Entry[]): Set<Family> {
  return new Set(elements.map(({ set }): Family => set.endsWith("6") ? 6 : 4));
}

/** The name of an element in a finding. */
export function describeElement(element: Entry): string {
  const { set, key, value } = element;
  if (value === undefined) {
    if (set.startsWith("apart")) {
      return `the rule that IPv${set.at(-1)} is not forwarded from "${key[0]}" to "${key[1]}"`;
    }
    if (set.startsWith("reachable")) return `what lets ${key[1]} reach the guest ${key[0]}`;
    if (set.startsWith("relayed")) return `the host's address for what is mapped to ${key[0]}`;
    return set.startsWith("guests")
      ? `the guest ${key[0]} behind "${key[1]}"`
      : `the private guest ${key[0]}`;
  }
  const { protocol, hostIP, hostPort } = hostPortOf(element);
  const address = isIp(hostIP) === 6 ? `[${hostIP}]` : hostIP;
  return `the mapping of ${address}:${hostPort}/${protocol}`;
}
