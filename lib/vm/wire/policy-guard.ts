/**
 * Isolation and egress rules in guards, where they survive a flush of the firewall: BPF for
 * {@linkcode tapGuard} and {@linkcode wireGuard}.
 *
 * @module
 */

import { ETH_HLEN, Ethernet, IPPROTO_UDP, Ipv4 } from "../../dhcp/headers.ts";
import type { EgressRule } from "../../firewall/model.ts";
import { asPrefix, type Cidr, ipToBytes, parseCidr } from "../../inet/ip.ts";
import { bpf, type BpfSource } from "../../sys/bpf.ts";
import {
  DROP,
  type GuardPolicy,
  IPPROTO_SCTP,
  IPPROTO_TCP,
  Ipv6,
  lengthSteps,
  macSteps,
  Memory,
} from "./guard.ts";
import { Arp, ARPOP_REQUEST, Icmpv6, Icmpv6Type } from "./guest-guard.ts";

const { ifEqual, ifAnyBit, ifAtLeast, loadByte, loadHalf, loadWord } = bpf;
const { loadByteAtX, loadHalfAtX, loadWordAtX } = bpf;

/** The host's side of an isolated guest's bridge. */
export interface BridgeSide {
  readonly mac: string;
  /** With prefix lengths; including link-local ones. */
  readonly addresses: readonly string[];
}

/** A range of ports. */
export type PortRange = readonly [first: number, last: number];

/** Where a guest's new connections may not go, and who reaches the guest. */
interface GuestEgress {
  readonly rules: readonly EgressRule[];
  /** Addresses and prefixes that may send the guest requests: gateways, `--reachable-from`. */
  readonly askers: readonly string[];
  /** Whether others reach it without a published port, besides the host and its neighbours. */
  readonly reachable: boolean;
  /** Its published ports, which it answers from. */
  readonly udp: readonly PortRange[];
  readonly sctp: readonly PortRange[];
}

/** What guards enforce. */
export interface Policy {
  /** The guest's own addresses with their networks' prefix lengths. */
  readonly addresses: readonly string[];
  /** For an isolated guest. */
  readonly bridge?: BridgeSide;
  /** For a guest with egress rules. */
  readonly egress?: GuestEgress;
}

/** The most egress rules in a guard: each costs some nanoseconds per frame of the guest. */
export const MAX_GUARDED_RULES = 64;

/** How a destination is denied. The guest may still answer requests of the host. */
const Denied = { NO: 0, HOST: 1, FAR: 2 } as const;

/** Destinations that stay on the link. */
const ON_LINK = ["224.0.0.0/24", "255.255.255.255/32", "ff02::/16"];
const LINK_LOCAL = "fe80::/10";
const SOLICITED_NODES = "ff02::1:ff00:0/104";
const BROADCAST = { WORD: 0xffff_ffff, HALF: 0xffff } as const;
/** The first bytes of the MAC addresses of IPv6 groups (RFC 2464). */
const GROUPS6 = 0x3333;
const HOP_LIMIT = ETH_HLEN + Ipv6.HOP_LIMIT;

/** netinet/tcp.h: the offset of the flags, and some flags. */
const Tcp = { FLAGS: 13, LEAST_SIZE: 14, SYN: 0x02, RST: 0x04, ACK: 0x10 } as const;
const PORTS_SIZE = 4;
/** linux/icmp.h, linux/icmpv6.h: errors about a received packet, and answers to it. */
const ICMP = { ERRORS: [3, 4, 11, 12], ANSWERS: [0, 14] } as const;
const ICMPV6 = { ERRORS: [1, 2, 3, 4], ANSWERS: [129] } as const;

/** The parts that a policy adds to the guards of an interface. */
export function policyGuard(policy: Policy): GuardPolicy {
  const isolation = policy.bridge && isolationOf(policy.bridge, policy.addresses);
  const egress = policy.egress;
  return {
    tap: {
      arp: isolation ? arpOutSteps(isolation) : [],
      ipv4: [
        ...isolation ? ipv4OutSteps(isolation) : [],
        ...egress ? deniedSteps(4, policy.addresses, egress) : [],
      ],
      ipv6: [
        ...isolation ? ipv6OutSteps(isolation) : [],
        ...egress ? deniedSteps(6, policy.addresses, egress) : [],
      ],
      other6: isolation ? [bpf.recall(Memory.ASIDE), ifEqual(0, undefined, "drop")] : [],
      icmpv6: isolation ? icmpv6OutSteps(isolation) : [],
      upper: egress ? upperSteps(egress) : [],
      upperIcmp: egress ? icmpSteps(ICMP, egress, []) : [],
      upperIcmpv6: egress ? icmpSteps(ICMPV6, egress, discoverySteps()) : [],
      later: egress ? laterSteps(egress) : [],
    },
    link: isolation ? linkSteps(isolation, policy.addresses) : NOTHING,
  };
}

const NOTHING: GuardPolicy["link"] = { ethernet: [], arp: [], ipv4: [], ipv6: [] };

/** The only hosts that are reached, and the networks that are not. */
interface Isolation {
  readonly mac: string;
  readonly hosts: readonly string[];
  readonly networks: readonly string[];
}

function isolationOf({ mac, addresses }: BridgeSide, own: readonly string[]): Isolation {
  const networks = [...own, ...addresses].map((address) => {
    const { network, prefixLength } = parseCidr(address);
    return `${network}/${prefixLength}`;
  });
  return {
    mac,
    hosts: addresses.map((address) => parseCidr(address).address),
    networks: [...new Set([...networks, LINK_LOCAL])],
  };
}

/** Falls through if ARP is for the host, or asks for its address by broadcast. */
function arpOutSteps({ mac, hosts }: Isolation): BpfSource {
  return [
    ...macSteps(mac, Ethernet.DESTINATION, "ask all"),
    bpf.goTo("ARP to the host"),
    "ask all",
    loadWord(Ethernet.DESTINATION),
    ifEqual(BROADCAST.WORD, undefined, "drop"),
    loadHalf(Ethernet.DESTINATION + 4),
    ifEqual(BROADCAST.HALF, undefined, "drop"),
    loadHalfAtX(Arp.OPERATION),
    ifEqual(ARPOP_REQUEST, undefined, "drop"),
    ...withinSteps(hosts, 4, Arp.TARGET_IP, "ARP to the host"),
    ...DROP,
    "ARP to the host",
  ];
}

/** Falls through if IPv4 is for the host, or routed by the host to others than neighbours. */
function ipv4OutSteps({ mac, hosts, networks }: Isolation): BpfSource {
  return [
    ...macSteps(mac, Ethernet.DESTINATION, "drop"),
    ...withinSteps(hosts, 4, Ipv4.DESTINATION, "not a neighbour"),
    ...withinSteps(networks, 4, Ipv4.DESTINATION, "drop"),
    bpf.goTo("not a neighbour"),
    ...DROP,
    "not a neighbour",
  ];
}

/** The same for IPv6. Stores whether it is for a group: ICMPv6 may ask a group for the host. */
function ipv6OutSteps({ mac, hosts, networks }: Isolation): BpfSource {
  return [
    bpf.setA(0),
    bpf.store(Memory.ASIDE),
    ...macSteps(mac, Ethernet.DESTINATION, "to a group"),
    ...withinSteps(hosts, 6, Ipv6.DESTINATION, "not a neighbour"),
    ...withinSteps(networks, 6, Ipv6.DESTINATION, "drop"),
    bpf.goTo("not a neighbour"),
    "to a group",
    loadHalf(Ethernet.DESTINATION),
    ifEqual(GROUPS6, undefined, "drop"),
    bpf.setA(1),
    bpf.store(Memory.ASIDE),
    bpf.goTo("not a neighbour"),
    ...DROP,
    "not a neighbour",
  ];
}

/** Falls through if ICMPv6 asks a group for the host, or reports the guest's groups to bridges. */
function icmpv6OutSteps({ hosts }: Isolation): BpfSource {
  const { MLD_REPORT, MLD_DONE, MLD2_REPORT, NEIGHBOUR_SOLICIT } = Icmpv6Type;
  return [
    bpf.recall(Memory.ASIDE),
    ifEqual(0, "for the host"),
    loadByteAtX(Icmpv6.TYPE),
    ifEqual(NEIGHBOUR_SOLICIT, "solicitation"),
    ...[MLD_REPORT, MLD_DONE].map((type) => ifEqual(type, "report")),
    ifEqual(MLD2_REPORT, "report", "drop"),
    ...["for the host", bpf.goTo("ICMPv6 to the host")],
    "report",
    loadByte(HOP_LIMIT),
    ifEqual(1, undefined, "drop"),
    ...prefixSteps(parseCidr("ff02::/16"), { at: ETH_HLEN + Ipv6.DESTINATION }, "to the host"),
    ...DROP,
    "solicitation",
    loadByte(HOP_LIMIT),
    ifEqual(255, undefined, "drop"),
    ...prefixSteps(parseCidr(SOLICITED_NODES), { at: ETH_HLEN + Ipv6.DESTINATION }, "whom"),
    ...DROP,
    "whom",
    ...lengthSteps(Icmpv6.TARGET_END),
    ...withinSteps(hosts, 6, Icmpv6.TARGET, "ICMPv6 to the host"),
    ...DROP,
    ...["to the host", bpf.goTo("ICMPv6 to the host")],
    "ICMPv6 to the host",
  ];
}

/**
 * At the interface of an isolated guest: frames must come from the host, and not from neighbours that
 * the host routes back.
 */
function linkSteps(
  { mac, hosts, networks }: Isolation,
  own: readonly string[],
): GuardPolicy["link"] {
  const known = [...hosts, ...own.map((address) => parseCidr(address).address)];
  const from = (family: 4 | 6, offset: number): BpfSource => [
    ...withinSteps(known, family, offset, "known"),
    ...withinSteps(networks, family, offset, "drop"),
    bpf.goTo("known"),
    ...DROP,
    "known",
  ];
  return {
    ethernet: [
      ...macSteps(mac, Ethernet.SOURCE, "drop"),
      bpf.goTo("the host's"),
      ...DROP,
      "the host's",
    ],
    arp: from(4, Arp.SENDER_IP),
    ipv4: from(4, Ipv4.SOURCE),
    ipv6: from(6, Ipv6.SOURCE),
  };
}

/** Stores how the destination is denied. X is the offset of the header. */
function deniedSteps(
  family: 4 | 6,
  own: readonly string[],
  { rules, askers }: GuestEgress,
): BpfSource {
  const offset = family === 4 ? Ipv4.DESTINATION : Ipv6.DESTINATION;
  const host = family === 4 ? askers : [...askers, LINK_LOCAL];
  // The longest prefix wins. Of two equal ones the exception wins.
  const ladder = rules.map(({ prefix, action }) => ({ ...parseCidr(prefix), action }))
    .filter((rule) => rule.family === family)
    .sort((a, b) => b.prefixLength - a.prefixLength || (a.action === "allow" ? -1 : 1));
  return [
    bpf.setA(Denied.NO),
    bpf.store(Memory.DENIED),
    ...ladder.flatMap((rule) =>
      prefixSteps(rule, { at: offset, fromX: true }, rule.action === "deny" ? "denied" : "judged")
    ),
    bpf.goTo("judged"),
    "denied",
    ...withinSteps(host, family, offset, "the host"),
    ...withinSteps([...own, ...ON_LINK], family, offset, "judged"),
    bpf.setA(Denied.FAR),
    bpf.store(Memory.DENIED),
    bpf.goTo("judged"),
    "the host",
    bpf.setA(Denied.HOST),
    bpf.store(Memory.DENIED),
    "judged",
  ];
}

/** Falls through if the destination is not denied, or if the packet may be an answer. */
function upperSteps({ reachable, udp, sctp }: GuestEgress): BpfSource {
  const published = (label: string, ports: readonly PortRange[]): BpfSource => [
    label,
    ...lengthSteps(PORTS_SIZE),
    loadHalfAtX(0),
    ...ports.flatMap(([first, last]) => [
      ifAtLeast(first, undefined, "not this one"),
      ifAtLeast(last + 1, "not this one", "may pass"),
      "not this one",
    ]),
    ...DROP,
    ...["may pass", bpf.goTo("may pass")],
  ];
  return [
    bpf.recall(Memory.DENIED),
    ifEqual(Denied.NO, "not denied"),
    bpf.recall(Memory.TYPE),
    ifEqual(IPPROTO_TCP, "tcp"),
    // The host, and others that reach the guest, may also ask ports that are not published.
    ...reachable ? [] : [bpf.recall(Memory.DENIED), ifEqual(Denied.FAR, "far")],
    ...["not denied", bpf.goTo("may pass")],
    "tcp",
    ...lengthSteps(Tcp.LEAST_SIZE),
    loadByteAtX(Tcp.FLAGS),
    ifAnyBit(Tcp.ACK, "not denied"),
    ifAnyBit(Tcp.SYN, "drop"),
    ifAnyBit(Tcp.RST, "not denied", "drop"),
    ...["not denied", bpf.goTo("may pass"), ...DROP],
    ...reachable ? [] : [
      "far",
      bpf.recall(Memory.TYPE),
      ifEqual(IPPROTO_UDP, "udp ports"),
      ifEqual(IPPROTO_SCTP, "to sctp", "drop"),
      ...["to sctp", bpf.goTo("sctp ports"), ...DROP],
      ...published("udp ports", udp),
      ...published("sctp ports", sctp),
    ],
    "may pass",
  ];
}

/** The same for ICMP or ICMPv6. */
function icmpSteps(
  { ERRORS, ANSWERS }: typeof ICMP | typeof ICMPV6,
  { reachable }: GuestEgress,
  toHost: BpfSource,
): BpfSource {
  return [
    bpf.recall(Memory.DENIED),
    ifEqual(Denied.NO, "may pass"),
    ...lengthSteps(1),
    loadByteAtX(0),
    ...ERRORS.map((type) => ifEqual(type, "may pass")),
    ...reachable ? ANSWERS.map((type) => ifEqual(type, "may pass")) : [],
    bpf.recall(Memory.DENIED),
    ifEqual(Denied.HOST, undefined, "drop"),
    loadByteAtX(0),
    ...ANSWERS.map((type) => ifEqual(type, "may pass")),
    ...toHost,
    bpf.goTo("drop"),
    ...DROP,
    "may pass",
  ];
}

/** Passes neighbour discovery with the host. A is the type of the message. */
function discoverySteps(): BpfSource {
  const { ROUTER_SOLICIT, NEIGHBOUR_SOLICIT, NEIGHBOUR_ADVERT } = Icmpv6Type;
  return [
    ifEqual(ROUTER_SOLICIT, "discovery"),
    ifEqual(NEIGHBOUR_SOLICIT, "discovery"),
    ifEqual(NEIGHBOUR_ADVERT, "discovery", "drop"),
    "discovery",
    loadByte(HOP_LIMIT),
    ifEqual(255, "may pass", "drop"),
  ];
}

/** Falls through if a fragment may belong to an answer. */
function laterSteps({ reachable, udp, sctp }: GuestEgress): BpfSource {
  if (reachable) return [];
  const answering = [
    IPPROTO_TCP,
    ...udp.length > 0 ? [IPPROTO_UDP] : [],
    ...sctp.length > 0 ? [IPPROTO_SCTP] : [],
  ];
  return [
    bpf.recall(Memory.DENIED),
    ifEqual(Denied.FAR, undefined, "may pass"),
    bpf.recall(Memory.TYPE),
    ...answering.map((type) => ifEqual(type, "may pass")),
    ...DROP,
    "may pass",
  ];
}

/** Jumps to `found` if the address at X + offset is one of these, or in one of these prefixes. */
function withinSteps(
  list: readonly string[],
  family: 4 | 6,
  offset: number,
  found: string,
): BpfSource {
  return list.map((text) => parseCidr(asPrefix(text)))
    .filter((cidr) => cidr.family === family)
    .flatMap((cidr) => prefixSteps(cidr, { at: offset, fromX: true }, found));
}

/** Jumps to `found` if the address at an offset is in a prefix. */
function prefixSteps(
  { network, prefixLength }: Cidr,
  { at, fromX = false }: { at: number; fromX?: boolean },
  found: string,
): BpfSource {
  const bytes = ipToBytes(network);
  const view = new DataView(bytes.buffer);
  const steps: BpfSource[number][] = [];
  for (let bit = 0; bit < prefixLength; bit += 32) {
    const rest = prefixLength - bit;
    steps.push(fromX ? loadWordAtX(at + bit / 8) : loadWord(at + bit / 8));
    if (rest < 32) steps.push(bpf.and((0xffff_ffff << (32 - rest)) >>> 0));
    steps.push(ifEqual(view.getUint32(bit / 8, false), undefined, "elsewhere"));
  }
  return [...steps, bpf.goTo(found), "elsewhere"];
}
