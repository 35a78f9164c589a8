/**
 * tapkit's nftables table, pure: what it consists of, and which elements a guest adds to it.
 *
 * Rules are the same on every host. What belongs to a guest is elements of sets and maps, each
 * with its owner's tag as comment, so that a port costs the same with ten thousand others.
 *
 * @module
 */

import { type Family, isIp } from "../inet/ip.ts";
import {
  expandPorts,
  isWildcard,
  portFamilies,
  type PortMapping,
  type Protocol,
} from "../inet/ports.ts";
import { LAYOUT, MESSAGES } from "./main-table.ts";
import type { GuestRules } from "./model.ts";

/** The table's name; its family is inet. */
export const TABLE = "tapkit";

/** A table of the same family for ports that are closed where firewalld would let them pass. */
export const CLOSED_TABLE = "tapkit_closed";

/**
 * The mark of what answers connections from 127.0.0.1, by which the filter of a link that is open to
 * 127.0.0.0/8 knows it: with bridge-nf-call-iptables it is translated back before it comes there.
 */
export const ANSWER_MARK = 0x746b6c6f;

/** How a field of a key or value is stored: padded to four bytes, numbers in network order. */
export type Field =
  | "ipv4_addr"
  | "ipv6_addr"
  /** A range of addresses that is a prefix: `"10.0.0.0/8"`. */
  | "ipv4_prefix"
  | "ipv6_prefix"
  | "inet_proto"
  | "inet_service"
  | "ifname"
  | "ether_addr"
  /** Stands alone: `"drop"` or `"return"`. */
  | "verdict";

/** A set, or a map where it has values. */
export interface SetDefinition {
  readonly key: readonly Field[];
  readonly value?: readonly Field[];
  /**
   * What each element counts, by itself: tracked connections, or packets a second. A lookup finds
   * the element only once it has more than its limit.
   */
  readonly limit?: "connections" | "rate";
}

/**
 * What nft needs for reading its own listing. The kernel takes an element that counts no connection
 * out of a hash table, but not out of a set of intervals.
 */
const LIMIT_FLAGS = {
  rate: "flags dynamic;",
  connections: "flags interval; ct count over 1;",
} as const;

/** How many seconds' worth of its rate an element lets pass at once. */
export const BURST_SECONDS = 16;

/** The sets and maps. Names of IPv6 ones end in 6. */
export const SETS = {
  /** Ports on all of the host's addresses, and where they lead. */
  ports4: { key: ["inet_proto", "inet_service"], value: ["ipv4_addr", "inet_service"] },
  ports6: { key: ["inet_proto", "inet_service"], value: ["ipv6_addr", "inet_service"] },
  /** Ports on one address. */
  ports_at4: {
    key: ["ipv4_addr", "inet_proto", "inet_service"],
    value: ["ipv4_addr", "inet_service"],
  },
  ports_at6: {
    key: ["ipv6_addr", "inet_proto", "inet_service"],
    value: ["ipv6_addr", "inet_service"],
  },
  /** Which guest is behind which link. */
  guests4: { key: ["ipv4_addr", "ifname"] },
  guests6: { key: ["ipv6_addr", "ifname"] },
  /** Guests of private networks. */
  private4: { key: ["ipv4_addr"] },
  private6: { key: ["ipv6_addr"] },
  /** Who is reached by ports under the host's address. */
  relayed4: { key: ["ipv4_addr"] },
  relayed6: { key: ["ipv6_addr"] },
  /** From which link to which the host did not forward before tapkit had it forward. */
  apart4: { key: ["ifname", "ifname"] },
  apart6: { key: ["ifname", "ifname"] },
  /** From where guests are reached by their own addresses. */
  reachable4: { key: ["ipv4_addr", "ipv4_prefix"] },
  reachable6: { key: ["ipv6_addr", "ipv6_prefix"] },
} as const satisfies Readonly<Record<string, SetDefinition>>;

type MainSetName = keyof typeof SETS;

/** The sets and maps of the tables that are made only where a guest has a policy, or limits. */
export type PolicySetName =
  | "isolated_ports"
  | "isolated_macs"
  | "isolated_senders"
  | "isolated_pairs"
  | "isolated_names"
  | "isolated_holders"
  | "isolated_links"
  | `isolated_guests${Family}`
  | `isolated_selves${Family}`
  | "restricted"
  | `egress_hosts${Family}`
  | `egress_prefixes${Family}`
  | "openers"
  | "openings"
  | "opened"
  | "opened_sample"
  | `reached${Family}`
  | `reached_sample${Family}`;

/** The name of a set or map. */
export type SetName = MainSetName | PolicySetName;

/** Those of the table that every guest has elements in. */
export const SET_NAMES = Object.keys(SETS) as MainSetName[];

/** Those of them that are of guests. */
export const GUEST_SET_NAMES = SET_NAMES.filter((set) => !set.startsWith("apart"));

/** A link, and another, which what comes from the first is not forwarded to. */
export type LinkPair = readonly [from: string, to: string];

/** The owner of elements that are of no guest. */
const HOST_OWNER = "host";

/** The elements that keep links apart. */
export function apartElements(family: Family, pairs: readonly LinkPair[]): Element[] {
  return pairs.map((key) => ({ set: `apart${family}`, key, owner: HOST_OWNER }));
}

/** One element. `key` and `value` are its fields, written canonically. */
export interface Element {
  readonly set: SetName;
  readonly key: readonly string[];
  /** Where the port leads; sets have none. */
  readonly value?: readonly string[];
  /** Of a set with limits: how many, or how many a second. */
  readonly limit?: number;
  readonly owner: string;
}

/** A chain of a table, and its rules. */
export interface Chain {
  readonly name: string;
  /** Where it is hooked; a chain without is jumped to. */
  readonly hook?: string;
  /** Each with the comment it is recognised by. */
  readonly rules: readonly (readonly [comment: string, rule: string])[];
}

const CHAINS: readonly Chain[] = [
  {
    name: "published",
    rules: [
      ["ports of one IPv4 address", "dnat ip to ip daddr . meta l4proto . th dport map @ports_at4"],
      ["ports of all IPv4 addresses", "dnat ip to meta l4proto . th dport map @ports4"],
      // The kernel does not translate what comes from ::1: refused is better than lost.
      ["IPv6 loopback", "ip6 daddr ::1 return"],
      [
        "ports of one IPv6 address",
        "dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports_at6",
      ],
      ["ports of all IPv6 addresses", "dnat ip6 to meta l4proto . th dport map @ports6"],
    ],
  },
  {
    // route_localnet on a guests' link would open the host's loopback servers to guests.
    name: "loopback",
    hook: "filter hook prerouting priority -300",
    rules: [
      ["to loopback", 'iifname != "lo" ip daddr 127.0.0.0/8 drop'],
      ["from loopback", 'iifname != "lo" ip saddr 127.0.0.0/8 drop'],
    ],
  },
  {
    name: "answers",
    hook: "filter hook prerouting priority -150",
    rules: [[
      "to loopback by a port",
      `ct direction reply ct original ip saddr 127.0.0.0/8 meta mark set ${ANSWER_MARK}`,
    ]],
  },
  {
    name: "prerouting",
    hook: "nat hook prerouting priority -100",
    rules: [["to the host", "fib daddr type local jump published"]],
  },
  {
    name: "output",
    hook: "nat hook output priority -100",
    rules: [["from the host to itself", "fib daddr type local jump published"]],
  },
  {
    name: "forward",
    hook: "filter hook forward priority 0",
    rules: [
      ["known connections", "ct state established,related accept"],
      // What says that it is a guest, and comes by another link than the guest's.
      [
        "IPv4 guests elsewhere",
        "ct status dnat ip saddr @private4 ip saddr . iifname != @guests4 drop",
      ],
      [
        "IPv6 guests elsewhere",
        "ct status dnat ip6 saddr @private6 ip6 saddr . iifname != @guests6 drop",
      ],
      ["mapped ports", "ct status dnat accept"],
      ["IPv4 neighbours", "ip daddr . iifname @guests4 accept"],
      ["IPv6 neighbours", "ip6 daddr . iifname @guests6 accept"],
      ["IPv4 guests by a route", "ip daddr . ip saddr @reachable4 accept"],
      ["IPv6 guests by a route", "ip6 daddr . ip6 saddr @reachable6 accept"],
      ["private IPv4 guests", "ip daddr @private4 drop"],
      ["private IPv6 guests", "ip6 daddr @private6 drop"],
      ["IPv4 of others", "meta nfproto ipv4 iifname . oifname @apart4 drop"],
      ["IPv6 of others", "meta nfproto ipv6 iifname . oifname @apart6 drop"],
    ],
  },
  {
    name: "postrouting",
    hook: "nat hook postrouting priority 100",
    rules: [
      ["relayed to IPv4", "ct status dnat ip daddr @relayed4 masquerade"],
      ["relayed to IPv6", "ct status dnat ip6 daddr @relayed6 masquerade"],
      // A neighbour would answer past the host, and the answer would not be translated back.
      ["IPv4 neighbours by a port", "ct status dnat ip saddr . oifname @guests4 masquerade"],
      ["IPv6 neighbours by a port", "ct status dnat ip6 saddr . oifname @guests6 masquerade"],
      [
        "host loopback by a port",
        'ct status dnat ip saddr 127.0.0.0/8 oifname != "lo" masquerade',
      ],
      ["IPv4 neighbours", "ip saddr . oifname @guests4 return"],
      ["IPv6 neighbours", "ip6 saddr . oifname @guests6 return"],
      ["IPv4 multicast", "ip daddr 224.0.0.0/4 return"],
      ["IPv6 multicast", "ip6 daddr ff00::/8 return"],
      ["IPv4 guests by a route", "ip saddr . ip daddr @reachable4 return"],
      ["IPv6 guests by a route", "ip6 saddr . ip6 daddr @reachable6 return"],
      ["private IPv4 guests", "ip saddr @private4 masquerade"],
      ["private IPv6 guests", "ip6 saddr @private6 masquerade"],
    ],
  },
];

/** A table of tapkit's. */
export interface Table {
  readonly family: "inet" | "bridge";
  readonly name: string;
  readonly sets: Readonly<Partial<Record<SetName, SetDefinition>>>;
  /** Sets that rules fill as packets pass, as nft writes what they are: no owner has them. */
  readonly learnt?: Readonly<Record<string, string>>;
  readonly chains: readonly Chain[];
  /** What tells it from the same table of another version of tapkit. */
  readonly layout: string;
  /** The netlink messages that make its chains, sets and rules, in base64; absent, libnftables does. */
  readonly messages?: string;
}

/** A rule as it is recognised in the kernel. */
export interface RuleMark {
  readonly chain: string;
  readonly comment: string;
}

/** What a table's layout is made of. */
export function layoutText(): string {
  return JSON.stringify([SETS, CHAINS]);
}

/** The table that every guest has elements in. */
export const MAIN_TABLE: Table = {
  family: "inet",
  name: TABLE,
  sets: SETS,
  chains: CHAINS,
  layout: LAYOUT,
  messages: MESSAGES,
};

/** All rules of a table in the kernel's order. The first one's comment tells the layout. */
export function marksOf({ chains, layout }: Table): RuleMark[] {
  return chains.flatMap(({ name, rules }, index) =>
    rules.map(([comment], position) => ({
      chain: name,
      comment: index + position === 0 ? `${comment}, layout ${layout}` : comment,
    }))
  );
}

/** Those of the table that every guest has elements in. */
export const RULE_MARKS: readonly RuleMark[] = marksOf(MAIN_TABLE);

/** Whether a field of a key is a range. */
export function isPrefix(field: Field): boolean {
  return field === "ipv4_prefix" || field === "ipv6_prefix";
}

/** What a set or map of a table consists of. */
export function setDefinition(set: SetName, table = MAIN_TABLE): SetDefinition {
  return table.sets[set]!;
}

/** The names of a table's sets and maps. */
export function setNames({ sets }: Table): SetName[] {
  return Object.keys(sets) as SetName[];
}

/** Whether a table is one of tapkit's. */
export function isOwnTable({ family, name }: { readonly family: string; readonly name: string }) {
  return (family === "inet" || family === "bridge") &&
    (name === TABLE || name.startsWith(`${TABLE}_`));
}

/** What errors and sentences call a table. */
export function tableLabel({ family, name }: Table): string {
  return `nftables table "${family} ${name}"`;
}

/** The commands that make a table, without elements. They fail when it is there already. */
export function planTable(table = MAIN_TABLE): string {
  const { family, name } = table;
  // `table … {` alone would add the rules once more.
  const lines = [
    `create table ${family} ${name}`,
    `table ${family} ${name} {`,
  ];
  for (const set of setNames(table)) {
    const { key, value, limit } = setDefinition(set, table);
    const fields = key.join(" . ").replaceAll("_prefix", "_addr");
    const type = fields + (value === undefined ? "" : ` : ${value.join(" . ")}`);
    const flags = limit !== undefined
      ? ` ${LIMIT_FLAGS[limit]}`
      : key.some(isPrefix)
      ? " flags interval;"
      : "";
    lines.push(`${value === undefined ? "set" : "map"} ${set} { type ${type};${flags} }`);
  }
  for (const [set, text] of Object.entries(table.learnt ?? {})) {
    lines.push(`set ${set} { ${text} }`);
  }
  const marks = marksOf(table);
  let rule = 0;
  for (const { name, hook, rules } of table.chains) {
    lines.push(`chain ${name} {`);
    if (hook !== undefined) lines.push(`type ${hook}; policy accept;`);
    for (const [, text] of rules) lines.push(`${text} comment "${marks[rule++]!.comment}"`);
    lines.push("}");
  }
  lines.push("}");
  return `${lines.join("\n")}\n`;
}

/** The commands that take a table away, whether it is there or not. */
export function planDropTable({ family, name } = MAIN_TABLE): string {
  return `add table ${family} ${name}\ndelete table ${family} ${name}\n`;
}

/** The commands that add elements to a table. */
export function planAdd(elements: readonly Element[], table = MAIN_TABLE): string {
  let commands = "";
  for (const set of setNames(table)) {
    const texts = elements.filter((element) => element.set === set).map((element) => {
      const value = element.value === undefined ? "" : ` : ${element.value.join(" . ")}`;
      return `${keyText(element, table)} comment "${element.owner}"${value}`;
    });
    if (texts.length === 0) continue;
    commands += `add element ${table.family} ${table.name} ${set} { ${texts.join(", ")} }\n`;
  }
  return commands;
}

function keyText({ set, key, limit = 0 }: Element, table: Table): string {
  const { key: fields, limit: kind } = setDefinition(set, table);
  const text = key.map((text, index) => fields[index] === "ifname" ? `"${text}"` : text).join(
    " . ",
  );
  return kind === undefined
    ? text
    : kind === "connections"
    ? `${text} ct count over ${limit}`
    : `${text} limit rate over ${limit}/second burst ${limit * BURST_SECONDS} packets`;
}

/** What identifies an element: its set and key. */
export function elementId({ set, key }: Pick<Element, "set" | "key">): string {
  return `${set} ${key.join(" . ")}`;
}

/** The host port that an element maps. */
export function hostPortOf({ set, key }: Pick<Element, "set" | "key">): {
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

/** The elements that checked rules consist of. */
export function elementsOf(rules: GuestRules): Element[] {
  const { owner, link, addresses, masquerade, ports, relayed = false, reachableFrom = [] } = rules;
  const elements: Element[] = [];
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

/** What has to be read to know whether host ports are mapped. */
export interface PortQuery {
  /** Elements by their keys. */
  readonly keys: readonly Element[];
  readonly whole: readonly SetName[];
}

/**
 * Where mappings that `wanted` could meet stand: under its own keys, and, as a wildcard meets
 * every address's mapping, of which there are few, among all of those.
 */
export function portQuery(wanted: readonly PortMapping[]): PortQuery {
  const keys: Element[] = [];
  const whole = new Set<SetName>();
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

/** The rules that elements were made of, by owner. `forward` is not kept in the kernel: true. */
export function rulesOf(elements: readonly Element[]): GuestRules[] {
  const byOwner = new Map<string, Element[]>();
  for (const element of elements) {
    const own = byOwner.get(element.owner);
    if (own === undefined) byOwner.set(element.owner, [element]);
    else own.push(element);
  }
  return [...byOwner].map(([owner, own]): GuestRules => {
    const guests = own.filter(({ set }) => set === "guests4" || set === "guests6");
    const ports = own.filter(({ value }) => value !== undefined);
    const addresses = own.flatMap(({ key, value }) => value ?? key).filter((text) => isIp(text));
    return {
      owner,
      link: guests[0]?.key[1] ?? "",
      addresses: [...new Set(addresses)],
      masquerade: own.some(({ set }) => set === "private4" || set === "private6"),
      forward: true,
      ports: ports.map((port) => ({ ...hostPortOf(port), vmPort: Number(port.value![1]) })),
      ...own.some(({ set }) => set === "relayed4" || set === "relayed6") ? { relayed: true } : {},
    };
  });
}

/** The families that elements are of. */
export function familiesOf(elements: readonly Element[]): Set<Family> {
  return new Set(elements.map(({ set }): Family => set.endsWith("6") ? 6 : 4));
}

function familyOf(address: string): Family {
  return isIp(address) === 6 ? 6 : 4;
}
