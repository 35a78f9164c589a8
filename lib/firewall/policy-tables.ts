/**
 * The tables of guests with a policy, pure: isolated ones, and ones whose connections are
 * restricted. They are there only where such a guest is, beside the table of all guests, whose
 * rules cannot let pass what these drop.
 *
 * What such a guest sends is known by its MAC, which its guard and its bridge port hold it to: that
 * covers its link-local addresses and all others.
 *
 * @module
 */

import { bigIntToIp, BITS, type Family, familyOf, ipToBigInt, parseCidr } from "../inet/ip.ts";
import type { EgressRule, GuestRules } from "./model.ts";
import type { SetDefinition } from "../netlink/nftables/fields.ts";
import type { Entry } from "./place.ts";
import type { Chain, Table } from "./table.ts";

const NAME = "tapkit_policy";

/** The fingerprints of the tables; a test compares them. */
export const POLICY_LAYOUTS = { bridge: "c7720d48", inet: "5056cf67" } as const;

type Sets = Readonly<Record<string, SetDefinition>>;

const BRIDGE_SETS: Sets = {
  /** The host's ends of isolated guests. */
  isolated_ports: { key: ["ifname"] },
  /** What leaves by the port it came in by is for the guest itself. */
  isolated_pairs: { key: ["ifname", "ifname"] },
  isolated_macs: { key: ["ether_addr"] },
  isolated_senders: { key: ["ifname", "ether_addr"] },
  /** Their IPv4 addresses, which ARP from elsewhere is not believed about. */
  isolated_names: { key: ["ipv4_addr"] },
  isolated_holders: { key: ["ifname", "ipv4_addr"] },
};

const BRIDGE_CHAINS: readonly Chain[] = [
  {
    // Before the bridge learns who is where.
    name: "prerouting",
    hook: "filter hook prerouting priority -300",
    rules: [
      ["an isolated guest's MAC elsewhere", sendersRule("ether saddr @isolated_macs")],
      ["another MAC of an isolated guest", sendersRule("iifname @isolated_ports")],
      [
        "an isolated guest's address elsewhere",
        "arp saddr ip @isolated_names iifname . arp saddr ip != @isolated_holders drop",
      ],
    ],
  },
  {
    // What the host sends and what is for the host does not come by here.
    name: "forward",
    hook: "filter hook forward priority -200",
    rules: [
      ["an isolated guest to itself", "iifname . oifname @isolated_pairs accept"],
      ["from isolated guests", "iifname @isolated_ports drop"],
      ["to isolated guests", "oifname @isolated_ports drop"],
    ],
  },
];

function sendersRule(condition: string): string {
  return `${condition} iifname . ether saddr != @isolated_senders drop`;
}

const INET_SETS: Sets = {
  /** The links of isolated guests: what they send does not leave by the one it came by. */
  isolated_links: { key: ["ether_addr", "ifname"] },
  isolated_guests4: { key: ["ipv4_addr", "ifname"] },
  isolated_guests6: { key: ["ipv6_addr", "ifname"] },
  /** An isolated guest may reach itself by a published port. */
  isolated_selves4: { key: ["ether_addr", "ipv4_addr"] },
  isolated_selves6: { key: ["ether_addr", "ipv6_addr"] },
  /** Guests that have egress rules. */
  restricted: { key: ["ether_addr"] },
  egress_hosts4: { key: ["ether_addr", "ipv4_addr"], value: ["verdict"] },
  egress_hosts6: { key: ["ether_addr", "ipv6_addr"], value: ["verdict"] },
  /** Prefixes as {@linkcode markedPrefix} writes them. */
  egress_prefixes4: { key: ["ether_addr", "ipv4_addr"], value: ["verdict"] },
  egress_prefixes6: { key: ["ether_addr", "ipv6_addr"], value: ["verdict"] },
};

/**
 * What a guest needs of the link itself, whatever is denied: by its type, and by the hop limit and the
 * destination that keep it there. What is routed has lost the hop limit of 255, and of 1 is not.
 */
const DISCOVERY = "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }";
const LISTENERS = "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report }";

function inetChains(): Chain[] {
  return [
    { name: "egress4", rules: ladder(4) },
    {
      name: "egress6",
      rules: [
        ["neighbour discovery", `${DISCOVERY} ip6 hoplimit 255 return`],
        ["multicast listeners", `${LISTENERS} ip6 hoplimit 1 ip6 daddr ff00::/8 return`],
        ...ladder(6),
      ],
    },
    {
      name: "egress",
      rules: [
        ["known connections", "ct state established,related return"],
        ["restricted over IPv4", "ether saddr @restricted meta nfproto ipv4 jump egress4"],
        ["restricted over IPv6", "ether saddr @restricted meta nfproto ipv6 jump egress6"],
      ],
    },
    {
      // Before translation: what the guest asked for …
      name: "prerouting",
      hook: "filter hook prerouting priority -150",
      rules: [["as sent", "jump egress"]],
    },
    {
      // … and after it: what that came to.
      name: "input",
      hook: "filter hook input priority -10",
      rules: [["as translated", "ct status dnat jump egress"]],
    },
    {
      name: "forward",
      hook: "filter hook forward priority -10",
      rules: [
        [
          "neighbour discovery that is routed",
          `ether saddr @restricted ${DISCOVERY} ip6 hoplimit != 255 drop`,
        ],
        ["as translated", "ct status dnat jump egress"],
        ["an IPv4 guest to itself", "ether saddr . ip daddr @isolated_selves4 accept"],
        ["an IPv6 guest to itself", "ether saddr . ip6 daddr @isolated_selves6 accept"],
        ["back to the network", "ether saddr . oifname @isolated_links drop"],
        ["from the IPv4 network", "ip daddr . iifname @isolated_guests4 drop"],
        ["from the IPv6 network", "ip6 daddr . iifname @isolated_guests6 drop"],
      ],
    },
  ];
}

/**
 * Rules that look a destination up by its longest prefix first. A lookup for each length costs a
 * restricted guest's new connections a few microseconds; a map of intervals would cost every
 * change more with every guest.
 */
function ladder(family: Family): (readonly [string, string])[] {
  const destination = family === 4 ? "ip daddr" : "ip6 daddr";
  const rungs: (readonly [string, string])[] = [
    [`/${BITS[family]}`, `ether saddr . ${destination} vmap @egress_hosts${family}`],
  ];
  const all = (1n << BigInt(BITS[family])) - 1n;
  for (let length = BITS[family] - 1; length >= 0; length--) {
    const mask = bigIntToIp(all ^ (all >> BigInt(length)), family);
    const marked = `${destination} & ${mask} | ${bigIntToIp(mark(family, length), family)}`;
    rungs.push([`/${length}`, `ether saddr . ${marked} vmap @egress_prefixes${family}`]);
  }
  return rungs;
}

/** The bit behind a prefix of a length, with which those of different lengths differ. */
function mark(family: Family, length: number): bigint {
  return 1n << BigInt(BITS[family] - 1 - length);
}

/** A prefix with a one behind it: 10.0.0.0/8 is 10.128.0.0. */
function markedPrefix(network: string, family: Family, length: number): string {
  return bigIntToIp(ipToBigInt(network) | mark(family, length), family);
}

/** The table on bridges' frames, which isolates. */
export function bridgePolicyTable(): Table {
  return {
    family: "bridge",
    name: NAME,
    sets: BRIDGE_SETS,
    chains: BRIDGE_CHAINS,
    layout: POLICY_LAYOUTS.bridge,
  };
}

/** The table on what the host routes or takes, which isolates and restricts. */
export function inetPolicyTable(): Table {
  return {
    family: "inet",
    name: NAME,
    sets: INET_SETS,
    chains: inetChains(),
    layout: POLICY_LAYOUTS.inet,
  };
}

/** The elements that the policy of checked rules consists of, by table. */
export function policyElements(
  rules: GuestRules,
): Readonly<Record<Table["family"], readonly Entry[]>> {
  const { owner, link, addresses, mac = "", isolatedPort: port, egress = [] } = rules;
  const bridge: Entry[] = [];
  const inet: Entry[] = [];
  if (port !== undefined) {
    bridge.push(
      { set: "isolated_ports", key: [port], owner },
      { set: "isolated_pairs", key: [port, port], owner },
      { set: "isolated_macs", key: [mac], owner },
      { set: "isolated_senders", key: [port, mac], owner },
    );
    inet.push({ set: "isolated_links", key: [mac, link], owner });
    for (const address of addresses) {
      const family = familyOf(address);
      if (family === 4) {
        bridge.push(
          { set: "isolated_names", key: [address], owner },
          { set: "isolated_holders", key: [port, address], owner },
        );
      }
      inet.push(
        { set: `isolated_guests${family}`, key: [address, link], owner },
        { set: `isolated_selves${family}`, key: [mac, address], owner },
      );
    }
  }
  if (egress.length > 0) inet.push({ set: "restricted", key: [mac], owner });
  inet.push(...egress.map((rule) => egressElement(rule, mac, owner)));
  return { bridge, inet };
}

function egressElement({ prefix, action }: EgressRule, mac: string, owner: string): Entry {
  const { family, network, prefixLength } = parseCidr(prefix);
  const value = [action === "deny" ? "drop" : "return"];
  return prefixLength === BITS[family]
    ? { set: `egress_hosts${family}`, key: [mac, network], value, owner }
    : {
      set: `egress_prefixes${family}`,
      key: [mac, markedPrefix(network, family, prefixLength)],
      value,
      owner,
    };
}

/** What a sentence calls an element of a policy. */
export function describePolicyElement({ set, key, owner }: Entry): string {
  return set.startsWith("isolated")
    ? `the isolation of ${owner} (${set}: ${key.join(" . ")})`
    : `the egress of ${owner} (${set}: ${key.join(" . ")})`;
}
