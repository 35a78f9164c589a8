/**
 * Guards: classic BPF programs (cls_bpf, direct action) at the ingress of a TAP and of the interface
 * behind it. They drop frames that must not pass between a guest and its network.
 *
 * A load beyond the end of a frame ends the program with 0, which is TC_ACT_OK and ends the
 * classification. Mode tc-redirect does not carry such a frame, but mode dhcp-bridge does. So a
 * program checks the length of a frame first wherever a short frame could hide something.
 *
 * @module
 */

import {
  BOOTPC,
  BOOTPS,
  datagramSteps,
  ETH_HLEN,
  ETH_P_IP,
  Ethernet,
  IPPROTO_UDP,
  Ipv4,
  Udp,
} from "../../dhcp/headers.ts";
import { parseMac } from "../../inet/mac.ts";
import {
  assembleBpf,
  bpf,
  type BpfInstruction,
  type BpfSource,
  type BpfStep,
} from "../../sys/bpf.ts";

/** linux/if_ether.h. */
export const ETH_P_ARP = 0x0806;
export const ETH_P_IPV6 = 0x86dd;
const ETH_P_8021Q = 0x8100;
const ETH_P_8021AD = 0x88a8;
const VLAN_HLEN = 4;
/** Ports of DHCPv6 (RFC 8415). */
const DHCPV6 = [546, 547] as const;
/** linux/pkt_cls.h: go on with the next filter; to the namespace's own stack; drop. */
const TC_ACT_UNSPEC = 0xffffffff;
const TC_ACT_OK = 0;
const TC_ACT_SHOT = 2;

/** Offsets in the headers of IPv6 and its extensions. */
export const Ipv6 = { NEXT_HEADER: 6, HOP_LIMIT: 7, SOURCE: 8, DESTINATION: 24, SIZE: 40 } as const;
export const Extension = { NEXT_HEADER: 0, LENGTH: 1, FRAGMENT: 2, LEAST_SIZE: 8 } as const;
/** The bytes that programs read of a header behind an extension. */
const LEAST_HEADER = 4;

const IPV4_OFFSET_MASK = 0x1fff;
const IPV6_OFFSET_MASK = 0xfff8;
/** linux/in6.h: IPv6 extension headers, which a host skips to find the upper header (RFC 8200). */
const IPPROTO_FRAGMENT = 44;
const IPPROTO_AH = 51;
/** linux/in.h, linux/in6.h. */
export const [IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_SCTP, IPPROTO_ICMPV6] = [1, 6, 132, 58] as const;
const EXTENSIONS = [0, /* hop by hop */ 43, /* routing */ 60 /* destination */] as const;
/** Packets with more extension headers, and frames with more VLAN tags, are dropped. */
const MAX_EXTENSIONS = 4;
const MAX_INLINE_VLAN_TAGS = 2;

/**
 * Slots of the scratch memory: a header's type and size, X, and whether the source is unspecified.
 * For policies: whether the frame is for a group (ASIDE), and how the destination is denied.
 */
export const Memory = { TYPE: 0, X: 1, UNSPECIFIED: 2, SIZE: 3, ASIDE: 4, DENIED: 5 } as const;

/** The parts of a guard that enforce a policy. Each part falls through if the frame may pass. */
export interface GuardPolicy {
  /** At the TAP. X is the offset of the header that the part is named after. */
  readonly tap: {
    readonly arp: BpfSource;
    readonly ipv4: BpfSource;
    readonly ipv6: BpfSource;
    /** At what IPv6 carries, except ICMPv6. */
    readonly other6: BpfSource;
    readonly icmpv6: BpfSource;
    /** At the header behind IP, except ICMP and ICMPv6. Its type is in memory. */
    readonly upper: BpfSource;
    readonly upperIcmp: BpfSource;
    readonly upperIcmpv6: BpfSource;
    /** At a fragment without that header. */
    readonly later: BpfSource;
  };
  /** At the interface behind the TAP, for frames that the guest did not send. */
  readonly link: {
    readonly ethernet: BpfSource;
    readonly arp: BpfSource;
    readonly ipv4: BpfSource;
    readonly ipv6: BpfSource;
  };
}

const { ifEqual, ifAnyBit, loadHalf, loadWord, loadByteAtX, loadHalfAtX, ret } = bpf;

export const PASS: BpfSource = ["pass", ret(TC_ACT_UNSPEC)];
export const DROP: BpfSource = ["drop", ret(TC_ACT_SHOT)];

/**
 * The guard of the interface behind a TAP. All frames that it does not drop go on to the next filter.
 *
 * It drops messages of DHCP and DHCPv6 clients and servers, behind VLAN tags too, since a host
 * ignores tags of VLAN 0. It also drops the guest's own frames to others, which a hairpin bridge port
 * reflects. A frame from the guest to itself passes: the host's address translation sent it back.
 *
 * Fragments other than the first pass, since they are useless without the first. A first IPv6
 * fragment that ends before the upper header is dropped (RFC 7112), and so is a packet with more than
 * four extension headers.
 *
 * If a DHCP client on the host leases the interface's addresses, unfragmented and untagged answers
 * of servers go to the namespace's own stack, whose packet sockets see frames after tc. They are not
 * redirected to the guest. A bridge would carry them to the guest.
 *
 * @param mac the MAC of the guest and of the interface
 * @param leased whether such a client exists
 * @throws {InputError} when the MAC is malformed
 */
export function wireGuard(
  mac: string,
  { leased = false, policy }: { leased?: boolean; policy?: GuardPolicy | undefined } = {},
): BpfInstruction[] {
  return assembleBpf([
    ...macSteps(mac, Ethernet.SOURCE, "foreign"),
    ...macSteps(mac, Ethernet.DESTINATION, "drop"),
    bpf.goTo("dhcp"),
    ...DROP,
    "foreign",
    ...policy?.link.ethernet ?? [],
    "dhcp",
    ...leased ? [...datagramSteps(BOOTPC, "no answer"), ret(TC_ACT_OK), "no answer"] : [],
    ...dhcpSteps(policy?.link),
  ]);
}

/** Falls through if the MAC at an offset is this one, else jumps to `other`. */
export function macSteps(mac: string, offset: number, other: string): BpfSource {
  const view = new DataView(parseMac(mac).buffer);
  return [
    loadWord(offset),
    ifEqual(view.getUint32(0, false), undefined, other),
    loadHalf(offset + 4),
    ifEqual(view.getUint16(4, false), undefined, other),
  ];
}

/** Jumps to "drop" if the frame ends before X + size. */
export function lengthSteps(size: number): BpfSource {
  return [
    bpf.aFromX(),
    bpf.add(size),
    bpf.storeX(Memory.X),
    bpf.xFromLength(),
    bpf.ifAboveX("drop"),
    bpf.recallX(Memory.X),
  ];
}

/** Drops DHCP and DHCPv6. */
function dhcpSteps(policy?: GuardPolicy["link"]): BpfSource {
  return [
    ...networkTypeSteps(),
    "network",
    ifEqual(ETH_P_IP, "to ipv4"),
    ifEqual(ETH_P_IPV6, "to ipv6"),
    ...policy ? [ifEqual(ETH_P_ARP, undefined, "pass"), ...policy.arp] : [],
    ...PASS,
    ...DROP,
    ...["to ipv4", bpf.goTo("ipv4"), "to ipv6", bpf.goTo("ipv6")],
    "ipv4",
    ...policy?.ipv4 ?? [],
    ...ipv4Steps(),
    "ipv6",
    ...policy?.ipv6 ?? [],
    ...ipv6Steps({ udp: "udp over ipv6", icmpv6: "pass", other: "pass", later: "pass" }),
    ...PASS,
    "udp over ipv6",
    ...dhcpv6Steps(),
    ...PASS,
    ...DROP,
  ];
}

/** Moves X from the IPv4 header to the upper one. Jumps to `later` if a fragment has none. */
export function ipv4UpperSteps(later: string): BpfSource {
  return [
    loadHalfAtX(Ipv4.FRAGMENT),
    ifAnyBit(IPV4_OFFSET_MASK, later),
    loadByteAtX(Ipv4.VERSION_IHL),
    bpf.and(0x0f),
    bpf.shiftLeft(2),
    bpf.addX(),
    bpf.xFromA(),
  ];
}

/** Drops DHCP and passes other IPv4. X is the offset of the IPv4 header. */
export function ipv4Steps(): BpfSource {
  return [
    loadByteAtX(Ipv4.PROTOCOL),
    ifEqual(IPPROTO_UDP, undefined, "pass"),
    ...ipv4UpperSteps("pass"),
    ...dhcpv4Steps(),
    ...PASS,
    ...DROP,
  ];
}

/** Drops DHCP. X is the offset of the UDP header. */
export function dhcpv4Steps(): BpfSource {
  return portSteps([BOOTPS, BOOTPC]);
}

/** Skips VLAN tags. A becomes the type of the network header, X its offset. */
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

/** The labels to jump to, by what an IPv6 packet carries. */
interface Ipv6Uppers {
  /** X is the offset of that header. */
  readonly udp: string;
  readonly icmpv6: string;
  readonly other: string;
  /** A fragment without an upper header. X is the offset of the fragment header. */
  readonly later: string;
}

/** Moves X from the IPv6 header over extensions to the upper header. A becomes its type. */
export function ipv6Steps({ udp, icmpv6, other, later }: Ipv6Uppers): BpfSource {
  const typeSteps = (extension: string, fragment: string, authentication: string): BpfSource => [
    ifEqual(IPPROTO_UDP, "to udp"),
    ifEqual(IPPROTO_ICMPV6, "to icmpv6"),
    ...EXTENSIONS.map((type) => ifEqual(type, extension)),
    ifEqual(IPPROTO_AH, authentication),
    ifEqual(IPPROTO_FRAGMENT, fragment, "to other"),
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
      ifAnyBit(IPV6_OFFSET_MASK, "to later"),
      // The second byte of a fragment header is not a length.
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
      // A first fragment may end here, with the next header in the second fragment.
      ...lengthSteps(LEAST_HEADER),
      bpf.recall(Memory.TYPE),
    );
  }
  return [
    ...steps,
    ...typeSteps("drop", "drop", "drop"),
    ...DROP,
    ...["to udp", bpf.goTo(udp), "to icmpv6", bpf.goTo(icmpv6)],
    ...["to other", bpf.goTo(other), "to later", bpf.goTo(later)],
  ];
}

/** Drops DHCPv6. X is the offset of the UDP header. */
export function dhcpv6Steps(): BpfSource {
  return portSteps(DHCPV6);
}

/** Drops UDP from or to these ports. X is the offset of the UDP header. */
function portSteps(ports: readonly [number, number]): BpfSource {
  return [
    loadHalfAtX(Udp.SOURCE),
    ...ports.map((port) => ifEqual(port, "drop")),
    loadHalfAtX(Udp.DESTINATION),
    ...ports.map((port) => ifEqual(port, "drop")),
  ];
}
