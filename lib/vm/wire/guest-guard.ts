/**
 * The guard of a TAP: limits what a guest may send, and from which MAC and addresses.
 *
 * @module
 */

import { ETH_HLEN, ETH_P_IP, Ethernet, IPPROTO_UDP, Ipv4 } from "../../dhcp/headers.ts";
import { bytesToIp, ipToBytes, isIp } from "../../inet/ip.ts";
import { parseMac } from "../../inet/mac.ts";
import { assembleBpf, Bpf, bpf, type BpfInstruction, type BpfSource } from "../../sys/bpf.ts";
import {
  dhcpv4Steps,
  dhcpv6Steps,
  DROP,
  ETH_P_ARP,
  ETH_P_IPV6,
  Extension,
  type GuardPolicy,
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  ipv4Steps,
  ipv4UpperSteps,
  Ipv6,
  ipv6Steps,
  lengthSteps,
  macSteps,
  Memory,
  PASS,
} from "./guard.ts";

/** linux/if_arp.h. */
export const ARPOP_REQUEST = 1;
/** Hardware type and protocol of ARP for IPv4 over Ethernet; the lengths of their addresses. */
const ARP_TYPES = 0x0001_0800;
const ARP_LENGTHS = 0x0604;

/** Offsets in the headers of ARP and ICMPv6. */
export const Arp = {
  ...{ TYPES: 0, LENGTHS: 4, OPERATION: 6, SENDER_MAC: 8, SENDER_IP: 14, TARGET_IP: 24 },
} as const;
export const Icmpv6 = { TYPE: 0, TARGET: 8, TARGET_END: 24 } as const;

/** The first word of link-local addresses (fe80::/10). */
const LINK_LOCAL = { MASK: 0xffc0_0000, BITS: 0xfe80_0000 } as const;
/** linux/icmpv6.h, linux/mld.h, net/ndisc.h; RFC 4286. */
export const Icmpv6Type = {
  ...{ MLD_QUERY: 130, MLD_REPORT: 131, MLD_DONE: 132, MLD2_REPORT: 143 },
  ...{ MRD_ADVERT: 151, MRD_TERMINATION: 153 },
  ...{ ROUTER_SOLICIT: 133, ROUTER_ADVERT: 134, NEIGHBOUR_SOLICIT: 135 },
  ...{ NEIGHBOUR_ADVERT: 136, REDIRECT: 137 },
} as const;
/** linux/in.h, linux/igmp.h, RFC 4286: protocols and messages of multicast routers over IPv4. */
const [IPPROTO_IGMP, IPPROTO_PIM] = [2, 103];
const IgmpType = { QUERY: 0x11, MRD_ADVERT: 0x30, MRD_TERMINATION: 0x32 } as const;
/** Messages that a guest sends before it has an address. */
const NAMELESS = [
  ...[Icmpv6Type.ROUTER_SOLICIT, Icmpv6Type.MLD_REPORT],
  ...[Icmpv6Type.MLD_DONE, Icmpv6Type.MLD2_REPORT],
];

const { ifEqual, loadHalf, loadByteAtX, loadHalfAtX, loadWordAtX } = bpf;

/** The MAC and addresses that a guest may send from. */
export interface GuestIdentity {
  readonly mac: string;
  /** Without prefix lengths. Empty if its addresses are not known. */
  readonly addresses: readonly string[];
  /** A link-local address in addition to the one derived from the MAC, or `any`. */
  readonly linkLocal?: string;
  /** Addresses that others have: the gateways'. */
  readonly foreign?: readonly string[];
}

/**
 * The guard of a TAP. For any guest it drops
 *
 * - messages of DHCP and DHCPv6 clients and servers;
 * - frames with a VLAN tag, and frames that are neither ARP nor IPv4 nor IPv6: they do not tell who
 *   they are from, and a bridge obeys those of the spanning tree;
 * - router advertisements and redirects, and messages of multicast routers: after their queries,
 *   bridges forward groups only to members.
 *
 * For a guest that may only use its own identity it also drops
 *
 * - frames from another source MAC;
 * - ARP from another MAC or address, and probes (RFC 5227) for another address;
 * - IPv4 and IPv6 from another address. A link-local address is the guest's if it derives from its
 *   MAC. From the unspecified address the guest may solicit routers, detect duplicates and join
 *   groups;
 * - advertisements of another address, and duplicate detection for it.
 *
 * If its addresses are not known, only the checks that do not need them apply.
 *
 * @param guest absent if the guest may use other identities
 * @param policy what else to drop
 * @throws {InputError} when an address is malformed
 */
export function tapGuard(guest?: GuestIdentity, policy?: GuardPolicy): BpfInstruction[] {
  const tap = policy?.tap;
  const names = guest && namesOf(guest);
  return assembleBpf([
    bpf.loadAncillary(Bpf.SKF_AD_VLAN_TAG_PRESENT),
    ifEqual(0, undefined, "drop"),
    ...guest === undefined ? [] : macSteps(guest.mac, Ethernet.SOURCE, "drop"),
    bpf.setX(ETH_HLEN),
    loadHalf(Ethernet.TYPE),
    ifEqual(ETH_P_IP, "to ipv4"),
    ifEqual(ETH_P_IPV6, "to ipv6"),
    ifEqual(ETH_P_ARP, "arp", "drop"),
    ...["to ipv4", bpf.goTo("ipv4"), "to ipv6", bpf.goTo("ipv6"), ...DROP],
    "arp",
    ...guest && names ? arpSteps(guest.mac, names) : [],
    ...tap?.arp ?? [],
    ...PASS,
    ...DROP,
    "ipv4",
    ...names?.own4 ? sourceSteps4(names.own4) : [],
    ...routerSteps4(),
    ...tap?.ipv4 ?? [],
    ...tap ? policedSteps4() : ipv4Steps(),
    "ipv6",
    ...names ? sourceSteps6(names) : [],
    ...tap?.ipv6 ?? [],
    ...ipv6Steps({ udp: "udp", icmpv6: "icmpv6", other: "other", later: "later6" }),
    "udp",
    ...names ? namedSteps() : [],
    ...tap?.other6 ?? [],
    ...dhcpv6Steps(),
    bpf.goTo("upper"),
    ...DROP,
    "other",
    ...names ? namedSteps() : [],
    ...tap?.other6 ?? [],
    bpf.goTo("upper"),
    ...DROP,
    "later6",
    ...names ? namedSteps() : [],
    ...tap?.other6 ?? [],
    loadByteAtX(Extension.NEXT_HEADER),
    bpf.store(Memory.TYPE),
    bpf.goTo("later"),
    ...DROP,
    "icmpv6",
    ...routerSteps6(),
    ...names ? neighbourSteps(names) : [],
    ...tap?.icmpv6 ?? [],
    ...tap?.upperIcmpv6 ?? [],
    ...PASS,
    ...DROP,
    ...tap ? ["icmp", ...tap.upperIcmp, ...PASS, ...DROP] : [],
    "later",
    ...tap?.later ?? [],
    ...PASS,
    ...DROP,
    "upper",
    ...tap?.upper ?? [],
    ...PASS,
    ...DROP,
  ]);
}

/** Jumps by what IPv4 carries, with X at the upper header. X is the offset of the IPv4 header. */
function policedSteps4(): BpfSource {
  /** Not a protocol of IPv4. */
  const NONE = 0xff;
  return [
    loadByteAtX(Ipv4.PROTOCOL),
    ifEqual(IPPROTO_ICMPV6, undefined, "its own"),
    bpf.setA(NONE),
    "its own",
    bpf.store(Memory.TYPE),
    ...ipv4UpperSteps("to later"),
    bpf.recall(Memory.TYPE),
    ifEqual(IPPROTO_ICMP, "to icmp"),
    ifEqual(IPPROTO_UDP, undefined, "to upper"),
    ...dhcpv4Steps(),
    ...["to upper", bpf.goTo("upper"), "to icmp", bpf.goTo("icmp")],
    ...["to later", bpf.goTo("later"), ...DROP],
  ];
}

/** A guest's addresses by kind. Without a list, any address of the family may be its own. */
interface Names {
  readonly own4?: readonly string[];
  readonly own6?: readonly string[];
  readonly linkLocal: readonly string[] | "any";
  readonly foreign6: readonly string[];
}

function namesOf({ mac, addresses, linkLocal = "", foreign = [] }: GuestIdentity): Names {
  const known = addresses.length > 0;
  const own = (family: 4 | 6) => addresses.filter((text) => isIp(text) === family);
  return {
    ...known ? { own4: own(4), own6: own(6) } : {},
    linkLocal: linkLocal === "any"
      ? linkLocal
      : [linkLocalOf(mac), ...linkLocal === "" ? [] : [linkLocal]],
    foreign6: foreign.filter((text) => isIp(text) === 6),
  };
}

/** The link-local address that derives from a MAC (RFC 4291, modified EUI-64). */
export function linkLocalOf(mac: string): string {
  const [first = 0, ...rest] = parseMac(mac);
  const UNIVERSAL = 0x02;
  const id = [first ^ UNIVERSAL, ...rest.slice(0, 2), 0xff, 0xfe, ...rest.slice(2)];
  return bytesToIp(Uint8Array.from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, ...id]));
}

/** An address as 32-bit words in network order. */
export function words(address: string): number[] {
  const bytes = ipToBytes(address);
  const view = new DataView(bytes.buffer);
  return Array.from({ length: bytes.length / 4 }, (_, index) => view.getUint32(4 * index, false));
}

/** Falls through if ARP is from the guest's own MAC and address. */
function arpSteps(mac: string, { own4 }: Names): BpfSource {
  const ownSteps = (offset: number): BpfSource => [
    loadWordAtX(offset),
    ...own4!.map((address) => ifEqual(words(address)[0]!, "own sender")),
  ];
  return [
    loadWordAtX(Arp.TYPES),
    ifEqual(ARP_TYPES, undefined, "drop"),
    loadHalfAtX(Arp.LENGTHS),
    ifEqual(ARP_LENGTHS, undefined, "drop"),
    ...macSteps(mac, ETH_HLEN + Arp.SENDER_MAC, "drop"),
    ...own4 === undefined ? [] : [
      ...ownSteps(Arp.SENDER_IP),
      // A probe for an address. A host that is about to take the address obeys it.
      ifEqual(0, undefined, "drop"),
      loadHalfAtX(Arp.OPERATION),
      ifEqual(ARPOP_REQUEST, undefined, "drop"),
      ...ownSteps(Arp.TARGET_IP),
      bpf.goTo("drop"),
      "own sender",
    ],
  ];
}

/** Falls through if the IPv4 source is the guest's. */
function sourceSteps4(own: readonly string[]): BpfSource {
  return [
    loadWordAtX(Ipv4.SOURCE),
    ...own.map((address) => ifEqual(words(address)[0]!, "own IPv4")),
    ...DROP,
    "own IPv4",
  ];
}

/** Falls through if the IPv6 source may be the guest's. Stores whether it is unspecified. */
function sourceSteps6(names: Names): BpfSource {
  return [
    ...addressSteps("::", Ipv6.SOURCE, "unspecified"),
    bpf.setA(0),
    bpf.store(Memory.UNSPECIFIED),
    ...ownAddressSteps(Ipv6.SOURCE, names, "own IPv6"),
    ...DROP,
    "unspecified",
    bpf.setA(1),
    bpf.store(Memory.UNSPECIFIED),
    "own IPv6",
  ];
}

/** Falls through if the source address is not the unspecified one. */
function namedSteps(): BpfSource {
  return [bpf.recall(Memory.UNSPECIFIED), ifEqual(0, undefined, "drop")];
}

/** Drops messages of multicast routers. X is the offset of the IPv4 header. */
function routerSteps4(): BpfSource {
  return [
    loadByteAtX(Ipv4.PROTOCOL),
    ifEqual(IPPROTO_PIM, "drop"),
    ifEqual(IPPROTO_IGMP, undefined, "no IGMP"),
    ...ipv4UpperSteps("no IGMP"),
    ...lengthSteps(1),
    loadByteAtX(0),
    ...Object.values(IgmpType).map((type) => ifEqual(type, "drop")),
    bpf.goTo("no IGMP"),
    ...DROP,
    "no IGMP",
    bpf.setX(ETH_HLEN),
  ];
}

/** Drops ICMPv6 messages of routers. X is the offset of the ICMPv6 header. */
function routerSteps6(): BpfSource {
  const { ROUTER_ADVERT, REDIRECT, MLD_QUERY, MRD_ADVERT, MRD_TERMINATION } = Icmpv6Type;
  return [
    loadByteAtX(Icmpv6.TYPE),
    ...[ROUTER_ADVERT, REDIRECT, MLD_QUERY, MRD_ADVERT, MRD_TERMINATION]
      .map((type) => ifEqual(type, "drop")),
  ];
}

/** Falls through if an ICMPv6 message is not about another's address. A is its type. */
function neighbourSteps(names: Names): BpfSource {
  return [
    ifEqual(Icmpv6Type.NEIGHBOUR_ADVERT, "target"),
    ifEqual(Icmpv6Type.NEIGHBOUR_SOLICIT, "solicitation"),
    ...NAMELESS.map((type) => ifEqual(type, "own target")),
    bpf.recall(Memory.UNSPECIFIED),
    ifEqual(0, "own target", "drop"),
    "solicitation",
    bpf.recall(Memory.UNSPECIFIED),
    ifEqual(0, "own target"),
    "target",
    ...lengthSteps(Icmpv6.TARGET_END),
    bpf.goTo("whole target"),
    ...DROP,
    ...["own target", bpf.goTo("harmless")],
    "whole target",
    ...ownAddressSteps(Icmpv6.TARGET, names, "harmless"),
    ...DROP,
    "harmless",
  ];
}

/** Jumps to `found` if the IPv6 address at X + offset is the guest's. */
function ownAddressSteps(
  offset: number,
  { own6, linkLocal, foreign6 }: Names,
  found: string,
): BpfSource {
  const all = (addresses: readonly string[]) =>
    addresses.flatMap((address) => addressSteps(address, offset, found));
  return [
    ...foreign6.flatMap((address) => addressSteps(address, offset, "drop")),
    loadWordAtX(offset),
    bpf.and(LINK_LOCAL.MASK),
    ifEqual(LINK_LOCAL.BITS, undefined, "not link-local"),
    ...linkLocal === "any" ? [bpf.goTo(found)] : all(linkLocal),
    ...DROP,
    "not link-local",
    ...own6 === undefined ? [bpf.goTo(found)] : all(own6),
  ];
}

/** Jumps to `found` if the IPv6 address at X + offset is this one. */
function addressSteps(address: string, offset: number, found: string): BpfSource {
  return [
    ...words(address).flatMap((word, index) => [
      loadWordAtX(offset + 4 * index),
      ifEqual(word, undefined, "other address"),
    ]),
    bpf.goTo(found),
    "other address",
  ];
}
