/**
 * The table of guests' limits, pure: how many connections are tracked for a guest, how fast it
 * opens them, and how fast it makes the host look for neighbours. The kernel's tables of these are
 * one for all guests, and who fills them takes the network from all.
 *
 * It comes last where packets are forwarded or taken, so that what others drop does not count. What
 * belongs to a connection that is answered is not looked at.
 *
 * The kernel looks through all connections of a list whenever one is added to it, once in a tick:
 * with ten thousand that is a millisecond or two. So a large limit counts one connection in
 * {@linkcode SAMPLE}, chosen by chance, against as large a part of the limit. Who was above it has
 * every one counted for {@linkcode PROBATION}, or some would pass each time.
 *
 * What is dropped is on the list too until the kernel finds that it came to nothing, some in a tick.
 * So a list that is full is left alone for {@linkcode PAUSE}, and does not grow by a flood.
 *
 * @module
 */

import { familyOf } from "../inet/ip.ts";
import { LIMITS_LAYOUT, LIMITS_MESSAGES } from "./main-table.ts";
import type { GuestRules } from "./model.ts";
import type { SetDefinition } from "../netlink/nftables/fields.ts";
import type { Entry } from "./place.ts";
import type { Chain, Table } from "./table.ts";

/** Of how many connections one is counted, where the limit is above {@linkcode EXACT}. */
const SAMPLE = 16;
const EXACT = 1000;
const PAUSE = "1s";
const PROBATION = "1h";

/**
 * Of the 1,024 neighbours that the kernel has room for by default, a guest has the host look for
 * 256 at once and 20 more a second; those of the last ten seconds are asked for freely.
 */
const SOUGHT = "limit rate over 20/second burst 256 packets";
const KNOWN_FOR = "10s";

const SETS: Readonly<Record<string, SetDefinition>> = {
  /** Guests whose openings are limited, by the MAC that their guard holds them to. */
  openers: { key: ["ether_addr", "ifname"] },
  openings: { key: ["ether_addr", "ifname"], limit: "rate" },
  /**
   * Connections that a guest opened, and ones to it. Of one field each: a set of intervals of several
   * is copied at each change.
   */
  opened: { key: ["ether_addr"], limit: "connections" },
  reached4: { key: ["ipv4_addr"], limit: "connections" },
  reached6: { key: ["ipv6_addr"], limit: "connections" },
  opened_sample: { key: ["ether_addr"], limit: "connections" },
  reached_sample4: { key: ["ipv4_addr"], limit: "connections" },
  reached_sample6: { key: ["ipv6_addr"], limit: "connections" },
};

const LEARNT: Readonly<Record<string, string>> = {
  /** Where packets of guests went lately: the next router, or on the same link the destination. */
  hops4: `type ipv4_addr; flags dynamic,timeout; timeout ${KNOWN_FOR};`,
  hops6: `type ipv6_addr; flags dynamic,timeout; timeout ${KNOWN_FOR};`,
  seekers: "type ether_addr . ifname; flags dynamic,timeout; timeout 1m;",
  /** Who is above a limit, and who was. */
  full: `type ether_addr . ifname; flags dynamic,timeout; timeout ${PAUSE};`,
  full4: `type ipv4_addr . ifname; flags dynamic,timeout; timeout ${PAUSE};`,
  full6: `type ipv6_addr . ifname; flags dynamic,timeout; timeout ${PAUSE};`,
  probed: `type ether_addr . ifname; flags dynamic,timeout; timeout ${PROBATION};`,
  probed4: `type ipv4_addr . ifname; flags dynamic,timeout; timeout ${PROBATION};`,
  probed6: `type ipv6_addr . ifname; flags dynamic,timeout; timeout ${PROBATION};`,
};

const [SENDER, TO, TO6] = [
  "ether saddr . iifname",
  "ip daddr . oifname",
  "ip6 daddr . oifname",
];

/** A connection is counted once, by its first packet, whoever answers it. */
const FIRST_PACKETS = "ct state new ct status & confirmed == 0 jump count";

/** A list of connections: who it is about, and the end of the names of its sets. */
interface List {
  readonly field: string;
  readonly key: string;
  readonly set: string;
  readonly suffix: string;
}

/** A rule for each list of connections. */
function lists(
  rule: (list: List) => string,
  kind: "" | "_sample",
  comment = kind === "" ? "" : "probation, ",
): (readonly [string, string])[] {
  return [
    [
      `${comment}opened`,
      rule({ field: "ether saddr", key: SENDER, set: `opened${kind}`, suffix: "" }),
    ],
    [
      `${comment}reached over IPv4`,
      rule({ field: "ip daddr", key: TO, set: `reached${kind}4`, suffix: "4" }),
    ],
    [
      `${comment}reached over IPv6`,
      rule({ field: "ip6 daddr", key: TO6, set: `reached${kind}6`, suffix: "6" }),
    ],
  ];
}

function over({ field, key, set, suffix }: List): string {
  return `${field} @${set} add @full${suffix} { ${key} } update @probed${suffix} { ${key} } drop`;
}

const CHAINS: readonly Chain[] = [
  {
    name: "seek",
    rules: [
      ["IPv4 neighbours", `rt ip nexthop != @hops4 add @seekers { ${SENDER} ${SOUGHT} } drop`],
      ["IPv6 neighbours", `rt ip6 nexthop != @hops6 add @seekers { ${SENDER} ${SOUGHT} } drop`],
      ["IPv4 hops", "add @hops4 { rt ip nexthop }"],
      ["IPv6 hops", "add @hops6 { rt ip6 nexthop }"],
    ],
  },
  {
    name: "count",
    rules: [
      ["openers that are full", `${SENDER} @full drop`],
      ["full over IPv4", `${TO} @full4 drop`],
      ["full over IPv6", `${TO6} @full6 drop`],
      ["openings a second", `${SENDER} @openings drop`],
      ...lists(
        ({ field, key, set, suffix }) => `${field} @${set} add @full${suffix} { ${key} } drop`,
        "",
      ),
      ...lists((list) => `${list.key} @probed${list.suffix} ${over(list)}`, "_sample"),
      ["not of the sample", `numgen random mod ${SAMPLE} != 0 return`],
      ...lists(over, "_sample", "sample, "),
    ],
  },
  {
    name: "forward",
    hook: "filter hook forward priority 10",
    rules: [
      ["known connections", "ct state established,related accept"],
      ["neighbours of openers", `${SENDER} @openers jump seek`],
      ["new connections", FIRST_PACKETS],
    ],
  },
  {
    name: "input",
    hook: "filter hook input priority 10",
    rules: [["new connections", FIRST_PACKETS]],
  },
];

/** The table of limits. */
export const LIMITS_TABLE: Table = {
  family: "inet",
  name: "tapkit_limits",
  sets: SETS,
  learnt: LEARNT,
  chains: CHAINS,
  layout: LIMITS_LAYOUT,
  messages: LIMITS_MESSAGES,
};

/** The elements that the limits of checked rules are. */
export function limitElements({ owner, addresses, limits, mac = "" }: GuestRules): Entry[] {
  if (limits === undefined) return [];
  const { link, connections, openings } = limits;
  const key = [mac, link];
  const elements: Entry[] = [];
  if (openings !== undefined) {
    elements.push(
      { set: "openers", key, owner },
      { set: "openings", key, limit: openings, owner },
    );
  }
  if (connections === undefined) return elements;
  const exact = connections <= EXACT;
  const limit = exact ? connections : Math.round(connections / SAMPLE);
  elements.push({ set: exact ? "opened" : "opened_sample", key: [mac], limit, owner });
  for (const address of addresses) {
    const family = familyOf(address);
    const set = exact ? `reached${family}` as const : `reached_sample${family}` as const;
    elements.push({ set, key: [address], limit, owner });
  }
  return elements;
}

/** What a sentence calls an element of limits. */
export function describeLimit({ set, key, limit, owner }: Entry): string {
  return `the limit of ${owner} (${set}: ${key.join(" . ")}${
    limit === undefined ? "" : ` ${limit}`
  })`;
}
