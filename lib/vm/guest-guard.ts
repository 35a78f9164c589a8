/**
 * The guard of a guest that is to speak for itself only: it holds what the TAP takes in to the
 * guest's own MAC and addresses.
 *
 * @module
 */

import { ETH_HLEN, ETH_P_IP } from "../dhcp/headers.ts";
import { ipToBytes, isIp } from "../inet/ip.ts";
import { assembleBpf, Bpf, bpf, type BpfInstruction, type BpfSource } from "../sys/bpf.ts";
import {
  dhcpSteps,
  DROP,
  ETH_P_IPV6,
  Ethernet,
  Ipv4,
  ipv4Steps,
  Ipv6,
  ipv6Steps,
  lengthSteps,
  macSteps,
  Memory,
  PASS,
} from "./guard.ts";

/** linux/if_ether.h, linux/if_arp.h. */
const ETH_P_ARP = 0x0806;
const ARPOP_REQUEST = 1;
/** Hardware type and protocol of ARP for IPv4 over Ethernet; the lengths of their addresses. */
const ARP_TYPES = 0x0001_0800;
const ARP_LENGTHS = 0x0604;

/** Offsets in the headers of ARP and ICMPv6. */
const Arp = { TYPES: 0, LENGTHS: 4, OPERATION: 6, SENDER_MAC: 8, SENDER_IP: 14 } as const;
const Icmpv6 = { TYPE: 0, TARGET: 8, TARGET_END: 24 } as const;

/** The words that link-local addresses (fe80::/10) begin with. */
const LINK_LOCAL = { MASK: 0xffc0_0000, BITS: 0xfe80_0000 } as const;
/** linux/icmpv6.h, net/ndisc.h. */
const NdType = { ROUTER_ADVERT: 134, NEIGHBOUR_SOLICIT: 135, NEIGHBOUR_ADVERT: 136, REDIRECT: 137 };

const { ifEqual, loadHalf, loadByteAtX, loadHalfAtX, loadWordAtX } = bpf;

/** What a guest's own frames are known by. */
export interface GuestIdentity {
  readonly mac: string;
  /** Without prefix lengths. */
  readonly addresses: readonly string[];
  /** Link-local addresses that are others' for certain: the gateways'. */
  readonly foreign?: readonly string[];
}

/**
 * The guard of a TAP whose guest is to speak for itself only: what `dhcpGuard` drops, and
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
