/**
 * Guards: classic BPF programs (cls_bpf, direct action) for the ingress of a TAP and of the
 * interface behind it. They say which frames must not pass between a guest and its network.
 *
 * A load beyond the end of a frame ends a program with 0, which is TC_ACT_OK and ends the
 * classification too: mode tc-redirect does not carry such a frame, mode dhcp-bridge does. So what
 * a frame could hide by being short is asked for its length first.
 *
 * @module
 */

import { BOOTPC, BOOTPS, ETH_HLEN, ETH_P_IP, IPPROTO_UDP } from "../dhcp/headers.ts";
import { ipToBytes, isIp } from "../inet/ip.ts";
import { parseMac } from "../inet/mac.ts";
import {
  assembleBpf,
  Bpf,
  bpf,
  type BpfInstruction,
  type BpfSource,
  type BpfStep,
} from "../sys/bpf.ts";

/** linux/if_ether.h. */
const ETH_P_ARP = 0x0806;
const ETH_P_IPV6 = 0x86dd;
const ETH_P_8021Q = 0x8100;
const ETH_P_8021AD = 0x88a8;
const VLAN_HLEN = 4;
/** linux/if_arp.h. */
const ARPOP_REQUEST = 1;
/** Hardware type and protocol of ARP for IPv4 over Ethernet; the lengths of their addresses. */
const ARP_TYPES = 0x0001_0800;
const ARP_LENGTHS = 0x0604;
/** Ports of DHCPv6 (RFC 8415). */
const DHCPV6 = [546, 547] as const;
/** linux/pkt_cls.h: go on with the next filter; drop. */
const TC_ACT_UNSPEC = 0xffffffff;
const TC_ACT_SHOT = 2;

/** Offsets in the frame, and in the headers of ARP, IPv4, IPv6, an IPv6 extension and others. */
const Ethernet = { DESTINATION: 0, SOURCE: 6, TYPE: 12 } as const;
const Arp = { TYPES: 0, LENGTHS: 4, OPERATION: 6, SENDER_MAC: 8, SENDER_IP: 14 } as const;
const Ipv4 = { VERSION_IHL: 0, FRAGMENT: 6, PROTOCOL: 9, SOURCE: 12 } as const;
const Ipv6 = { NEXT_HEADER: 6, SOURCE: 8, SIZE: 40 } as const;
const Extension = { NEXT_HEADER: 0, LENGTH: 1, FRAGMENT: 2, LEAST_SIZE: 8 } as const;
const Udp = { SOURCE: 0, DESTINATION: 2 } as const;
const Icmpv6 = { TYPE: 0, TARGET: 8, TARGET_END: 24 } as const;
/** What is looked at of any header behind an extension. */
const LEAST_HEADER = 4;

const IPV4_OFFSET_MASK = 0x1fff;
const IPV6_OFFSET_MASK = 0xfff8;
/** The words that link-local addresses (fe80::/10) begin with. */
const LINK_LOCAL = { MASK: 0xffc0_0000, BITS: 0xfe80_0000 } as const;
/** linux/in6.h. IPv6 extension headers that a host skips on its way to the upper one (RFC 8200). */
const IPPROTO_FRAGMENT = 44;
const IPPROTO_AH = 51;
const IPPROTO_ICMPV6 = 58;
const EXTENSIONS = [0, /* hop by hop */ 43, /* routing */ 60 /* destination */] as const;
/** linux/icmpv6.h, net/ndisc.h. */
const NdType = { ROUTER_ADVERT: 134, NEIGHBOUR_SOLICIT: 135, NEIGHBOUR_ADVERT: 136, REDIRECT: 137 };
/** What nobody needs more of, and what the programs look behind: the rest is dropped. */
const MAX_EXTENSIONS = 4;
const MAX_INLINE_VLAN_TAGS = 2;

/** Scratch memory: a header's type and size, X, and whether the source is unspecified. */
const Memory = { TYPE: 0, X: 1, UNSPECIFIED: 2, SIZE: 3 } as const;

const { ifEqual, ifAnyBit, loadHalf, loadWord, loadByteAtX, loadHalfAtX, loadWordAtX, ret } = bpf;

const PASS: BpfSource = ["pass", ret(TC_ACT_UNSPEC)];
const DROP: BpfSource = ["drop", ret(TC_ACT_SHOT)];

/** What a guest's own frames are known by. */
export interface GuestIdentity {
  readonly mac: string;
  /** Without prefix lengths. */
  readonly addresses: readonly string[];
  /** Link-local addresses that are others' for certain: the gateways'. */
  readonly foreign?: readonly string[];
}

/**
 * The guard of a TAP: drops DHCP and DHCPv6, in either direction of theirs, and lets all else go on
 * to the next filter.
 *
 * Behind VLAN tags too, since a host takes tags of VLAN 0 for none. Fragments other than the
 * first pass: without the first they are nothing. A first IPv6 fragment that ends before the upper
 * header is dropped (RFC 7112), and so is what more than four extension headers hide.
 */
export function dhcpGuard(): BpfInstruction[] {
  return assembleBpf(dhcpSteps());
}

/**
 * The guard of the interface behind a TAP: what {@linkcode dhcpGuard} drops, and what a hairpin
 * bridge port reflects: the guest's own frames to others. A frame from the guest to itself is one
 * that the host's address translation sent back, and passes.
 *
 * @param mac the guest's MAC, which is the interface's too
 * @throws {InputError} when it is malformed
 */
export function wireGuard(mac: string): BpfInstruction[] {
  return assembleBpf([
    ...macSteps(mac, Ethernet.SOURCE, "dhcp"),
    ...macSteps(mac, Ethernet.DESTINATION, "drop"),
    bpf.goTo("dhcp"),
    ...DROP,
    "dhcp",
    ...dhcpSteps(),
  ]);
}

/**
 * The guard of a TAP whose guest is to speak for itself only: what {@linkcode dhcpGuard} drops, and
 *
 * - frames of another source MAC;
 * - frames with a VLAN tag, and those that are neither ARP nor IPv4 nor IPv6: whom they speak for
 *   is not to be told, and a bridge believes the spanning tree's;
 * - ARP in the name of another MAC or address; a probe (RFC 5227) claims nothing and passes;
 * - IPv4 and IPv6 from another address. Link-local ones and the unspecified one pass;
 * - router advertisements, redirects, and advertisements of another's address, which includes a
 *   link-local one of the gateways'. Duplicate detection asks for the guest's own address only.
 *
 * Where no address is known the MAC alone is pinned.
 *
 * @throws {InputError} when an address is malformed
 */
export function guestGuard(guest: GuestIdentity): BpfInstruction[] {
  const { mac, addresses, foreign = [] } = guest;
  const own = ["own MAC"];
  const pinned = [...macSteps(mac, Ethernet.SOURCE, "drop"), bpf.goTo(own[0]!), ...DROP, ...own];
  if (addresses.length === 0) return assembleBpf([...pinned, ...dhcpSteps()]);
  const [own4, own6] = [4, 6].map((family) => addresses.filter((text) => isIp(text) === family));
  const foreign6 = foreign.filter((text) => isIp(text) === 6);
  return assembleBpf([
    bpf.loadAncillary(Bpf.SKF_AD_VLAN_TAG_PRESENT),
    ifEqual(0, undefined, "drop"),
    ...pinned,
    bpf.setX(ETH_HLEN),
    loadHalf(Ethernet.TYPE),
    ifEqual(ETH_P_IP, "ipv4"),
    ifEqual(ETH_P_ARP, "arp"),
    ifEqual(ETH_P_IPV6, undefined, "drop"),
    bpf.goTo("ipv6"),
    ...DROP,
    "arp",
    ...arpSteps(mac, own4!),
    "ipv4",
    loadWordAtX(Ipv4.SOURCE),
    ...own4!.flatMap((address) => ifEqual(words(address)[0]!, "own IPv4")),
    ...DROP,
    "own IPv4",
    ...ipv4Steps(),
    "ipv6",
    ...sourceSteps(own6!, foreign6),
    ...ipv6Steps(["icmpv6"]),
    ...PASS,
    ...DROP,
    "icmpv6",
    ...neighbourSteps(own6!, foreign6),
  ]);
}

/** An address as 32-bit words in network order, the last one of two bytes for a MAC. */
function words(address: string): number[] {
  const bytes = ipToBytes(address);
  const view = new DataView(bytes.buffer);
  return Array.from({ length: bytes.length / 4 }, (_, index) => view.getUint32(4 * index, false));
}

/** Goes on where the MAC at an offset is this one, else to `other`. */
function macSteps(mac: string, offset: number, other: string): BpfSource {
  const view = new DataView(parseMac(mac).buffer);
  return [
    loadWord(offset),
    ifEqual(view.getUint32(0, false), undefined, other),
    loadHalf(offset + 4),
    ifEqual(view.getUint16(4, false), undefined, other),
  ];
}

function arpSteps(mac: string, own: readonly string[]): BpfSource {
  return [
    loadWordAtX(Arp.TYPES),
    ifEqual(ARP_TYPES, undefined, "drop"),
    loadHalfAtX(Arp.LENGTHS),
    ifEqual(ARP_LENGTHS, undefined, "drop"),
    ...macSteps(mac, ETH_HLEN + Arp.SENDER_MAC, "drop"),
    loadWordAtX(Arp.SENDER_IP),
    ...own.map((address) => ifEqual(words(address)[0]!, "pass")),
    ifEqual(0, undefined, "drop"),
    loadHalfAtX(Arp.OPERATION),
    ifEqual(ARPOP_REQUEST, undefined, "drop"),
    ...PASS,
    ...DROP,
  ];
}

/** Goes on where the IPv6 source may be the guest's. */
function sourceSteps(own: readonly string[], foreign: readonly string[]): BpfSource {
  return [
    bpf.setA(0),
    bpf.store(Memory.UNSPECIFIED),
    ...ownAddressSteps(Ipv6.SOURCE, own, foreign, "own IPv6"),
    ...addressSteps("::", Ipv6.SOURCE, "unspecified"),
    ...DROP,
    "unspecified",
    bpf.setA(1),
    bpf.store(Memory.UNSPECIFIED),
    "own IPv6",
  ];
}

/** X holds the offset of the ICMPv6 header. */
function neighbourSteps(own: readonly string[], foreign: readonly string[]): BpfSource {
  return [
    loadByteAtX(Icmpv6.TYPE),
    ifEqual(NdType.ROUTER_ADVERT, "drop"),
    ifEqual(NdType.REDIRECT, "drop"),
    ifEqual(NdType.NEIGHBOUR_ADVERT, "target"),
    ifEqual(NdType.NEIGHBOUR_SOLICIT, undefined, "pass"),
    bpf.recall(Memory.UNSPECIFIED),
    ifEqual(0, "pass"),
    "target",
    ...lengthSteps(Icmpv6.TARGET_END),
    bpf.goTo("own target"),
    ...PASS,
    ...DROP,
    "own target",
    ...ownAddressSteps(Icmpv6.TARGET, own, foreign, "pass"),
    ...DROP,
    ...PASS,
  ];
}

/** To `found` where the IPv6 address at X + offset is the guest's or a link-local one that may be. */
function ownAddressSteps(
  offset: number,
  own: readonly string[],
  foreign: readonly string[],
  found: string,
): BpfSource {
  return [
    ...foreign.flatMap((address) => addressSteps(address, offset, "drop")),
    loadWordAtX(offset),
    bpf.and(LINK_LOCAL.MASK),
    ifEqual(LINK_LOCAL.BITS, undefined, "not link-local"),
    bpf.goTo(found),
    "not link-local",
    ...own.flatMap((address) => addressSteps(address, offset, found)),
  ];
}

/** To `found` where the IPv6 address at X + offset is this one. */
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

/** To "drop" where the frame ends before X + size. */
function lengthSteps(size: number): BpfSource {
  return [
    bpf.aFromX(),
    bpf.add(size),
    bpf.storeX(Memory.X),
    bpf.xFromLength(),
    bpf.ifAboveX("drop"),
    bpf.recallX(Memory.X),
  ];
}

/** X holds the offset of the header that is looked at. */
function dhcpSteps(): BpfSource {
  return [
    ...networkTypeSteps(),
    "network",
    ifEqual(ETH_P_IP, "ipv4"),
    ifEqual(ETH_P_IPV6, "ipv6", "pass"),
    "ipv4",
    ...ipv4Steps(),
    "ipv6",
    ...ipv6Steps([]),
    ...PASS,
    ...DROP,
  ];
}

/** X holds the offset of the IPv4 header. */
function ipv4Steps(): BpfSource {
  return [
    loadByteAtX(Ipv4.PROTOCOL),
    ifEqual(IPPROTO_UDP, undefined, "pass"),
    loadHalfAtX(Ipv4.FRAGMENT),
    ifAnyBit(IPV4_OFFSET_MASK, "pass"),
    loadByteAtX(Ipv4.VERSION_IHL),
    bpf.and(0x0f),
    bpf.shiftLeft(2),
    bpf.addX(),
    bpf.xFromA(),
    ...portSteps([BOOTPS, BOOTPC]),
    ...PASS,
    ...DROP,
  ];
}

/** Leaves the type of the network header in A and its offset in X, behind tags left in the frame. */
function networkTypeSteps(): BpfSource {
  const steps: (BpfStep | string)[] = [];
  for (let tags = 0; tags <= MAX_INLINE_VLAN_TAGS; tags++) {
    const next = tags < MAX_INLINE_VLAN_TAGS ? `tag ${tags + 1}` : "drop";
    steps.push(
      `tag ${tags}`,
      bpf.setX(ETH_HLEN + tags * VLAN_HLEN),
      loadHalf(Ethernet.TYPE + tags * VLAN_HLEN),
      ifEqual(ETH_P_8021Q, next),
      ifEqual(ETH_P_8021AD, next, "network"),
    );
  }
  return steps;
}

/**
 * Leads X from the IPv6 header over extensions to UDP's, whose ports decide, or to ICMPv6's, which
 * is judged at "icmpv6" if anywhere. To "pass" where there is neither. A holds the type of the
 * header at X.
 *
 * @param icmpv6 where to judge it, if it is to be
 */
function ipv6Steps(icmpv6: readonly "icmpv6"[]): BpfSource {
  const typeSteps = (extension: string, fragment: string, authentication: string): BpfSource => [
    ifEqual(IPPROTO_UDP, "udp over ipv6"),
    ...icmpv6.map((label) => ifEqual(IPPROTO_ICMPV6, `to ${label}`)),
    ...EXTENSIONS.map((type) => ifEqual(type, extension)),
    ifEqual(IPPROTO_AH, authentication),
    ifEqual(IPPROTO_FRAGMENT, fragment, "pass"),
  ];
  const nextHeader: BpfSource = [bpf.addX(), bpf.xFromA(), bpf.recall(Memory.TYPE)];
  const steps: (BpfStep | string)[] = [
    loadByteAtX(Ipv6.NEXT_HEADER),
    bpf.store(Memory.TYPE),
    bpf.setA(Ipv6.SIZE),
    ...nextHeader,
  ];
  for (let count = 0; count < MAX_EXTENSIONS; count++) {
    const [extension, fragment] = [`extension ${count}`, `fragment ${count}`];
    const [authentication, next] = [`authentication ${count}`, `next ${count}`];
    steps.push(
      ...typeSteps(extension, fragment, authentication),
      fragment,
      loadHalfAtX(Extension.FRAGMENT),
      ifAnyBit(IPV6_OFFSET_MASK, "pass"),
      // Its second byte is no length, whatever it says.
      bpf.setA(Extension.LEAST_SIZE),
      bpf.goTo(next),
      authentication,
      // Counted in 4 bytes, without the first 8 (RFC 4302).
      loadByteAtX(Extension.LENGTH),
      bpf.add(2),
      bpf.shiftLeft(2),
      bpf.goTo(next),
      extension,
      // Counted in 8 bytes, without the first 8.
      loadByteAtX(Extension.LENGTH),
      bpf.add(1),
      bpf.shiftLeft(3),
      next,
      bpf.store(Memory.SIZE),
      loadByteAtX(Extension.NEXT_HEADER),
      bpf.store(Memory.TYPE),
      bpf.recall(Memory.SIZE),
      bpf.addX(),
      bpf.xFromA(),
      // A first fragment may end here, and what follows be in the next.
      ...lengthSteps(LEAST_HEADER),
      bpf.recall(Memory.TYPE),
    );
  }
  return [
    ...steps,
    ...typeSteps("drop", "drop", "drop"),
    ...icmpv6.flatMap((label) => [`to ${label}`, bpf.goTo(label)]),
    "udp over ipv6",
    ...portSteps(DHCPV6),
  ];
}

/** X holds the offset of UDP's header. */
function portSteps(ports: readonly [number, number]): BpfSource {
  return [
    loadHalfAtX(Udp.SOURCE),
    ...ports.map((port) => ifEqual(port, "drop")),
    loadHalfAtX(Udp.DESTINATION),
    ifEqual(ports[0], "drop"),
    ifEqual(ports[1], "drop", "pass"),
  ];
}
