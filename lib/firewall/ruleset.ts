/**
 * tapkit's nftables table, pure: what it consists of, and where guests' elements stand in it.
 *
 * Rules are the same on every host. What belongs to a guest is elements of sets and maps, each
 * with its owner's tag as comment, so that a port costs the same with ten thousand others.
 *
 * @module
 */

import type { SetDefinition } from "../netlink/nftables/fields.ts";
import { LAYOUT, MESSAGES } from "./main-table.ts";
import type { Chain, Table } from "./table.ts";

/** The table's name; its family is inet. */
export const TABLE = "tapkit";

/** A table of the same family for ports that are closed where firewalld would let them pass. */
export const CLOSED_TABLE = "tapkit_closed";

/**
 * The mark of what answers connections from 127.0.0.1, by which the filter of a link that is open to
 * 127.0.0.0/8 knows it: with bridge-nf-call-iptables it is translated back before it comes there.
 */
export const ANSWER_MARK = 0x746b6c6f;

/** The sets and maps. Names of IPv6 ones end in 6. */
const SETS: Readonly<Record<string, SetDefinition>> = {
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
};

/** Those that are of guests. */
export const GUEST_SET_NAMES = Object.keys(SETS).filter((set) => !set.startsWith("apart"));

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

/** The table that every guest has elements in. */
export const MAIN_TABLE: Table = {
  family: "inet",
  name: TABLE,
  sets: SETS,
  chains: CHAINS,
  layout: LAYOUT,
  messages: MESSAGES,
};

/** Whether a table is one of tapkit's. */
export function isOwnTable({ family, name }: { readonly family: string; readonly name: string }) {
  return (family === "inet" || family === "bridge") &&
    (name === TABLE || name.startsWith(`${TABLE}_`));
}
