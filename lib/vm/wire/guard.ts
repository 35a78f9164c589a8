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

import {
  BOOTPC,
  BOOTPS,
  datagramSteps,
  ETH_HLEN,
  ETH_P_IP,
  IPPROTO_UDP,
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

/** Offsets in the frame, and in the headers of IPv4, IPv6, an IPv6 extension and UDP. */
export const Ethernet = { DESTINATION: 0, SOURCE: 6, TYPE: 12 } as const;
export const Ipv4 = {
  ...{ VERSION_IHL: 0, FRAGMENT: 6, PROTOCOL: 9, SOURCE: 12, DESTINATION: 16 },
} as const;
export const Ipv6 = { NEXT_HEADER: 6, HOP_LIMIT: 7, SOURCE: 8, DESTINATION: 24, SIZE: 40 } as const;
export const Extension = { NEXT_HEADER: 0, LENGTH: 1, FRAGMENT: 2, LEAST_SIZE: 8 } as const;
const Udp = { SOURCE: 0, DESTINATION: 2 } as const;
/** What is looked at of any header behind an extension. */
const LEAST_HEADER = 4;

const IPV4_OFFSET_MASK = 0x1fff;
const IPV6_OFFSET_MASK = 0xfff8;
/** linux/in6.h. IPv6 extension headers that a host skips on its way to the upper one (RFC 8200). */
const IPPROTO_FRAGMENT = 44;
const IPPROTO_AH = 51;
/** linux/in.h, linux/in6.h. */
export const [IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_SCTP, IPPROTO_ICMPV6] = [1, 6, 132, 58] as const;
const EXTENSIONS = [0, /* hop by hop */ 43, /* routing */ 60 /* destination */] as const;
/** What nobody needs more of, and what the programs look behind: the rest is dropped. */
const MAX_EXTENSIONS = 4;
const MAX_INLINE_VLAN_TAGS = 2;

/**
 * Scratch memory: a header's type and size, X, whether the source is unspecified; of policies, whether
 * the frame is for others than the host, and how far what it is for is denied.
 */
export const Memory = { TYPE: 0, X: 1, UNSPECIFIED: 2, SIZE: 3, ASIDE: 4, DENIED: 5 } as const;

/** What a guard keeps beside who the guest is. Each part goes on where a frame may pass. */
export interface GuardPolicy {
  /** At the TAP. X holds the offset of the header that each is named by. */
  readonly tap: {
    readonly arp: BpfSource;
    readonly ipv4: BpfSource;
    readonly ipv6: BpfSource;
    /** At whatever IPv6 carries but ICMPv6. */
    readonly other6: BpfSource;
    readonly icmpv6: BpfSource;
    /** At the header behind IP's, whose type is in memory, and which ICMP and ICMPv6 are not. */
    readonly upper: BpfSource;
    readonly upperIcmp: BpfSource;
    readonly upperIcmpv6: BpfSource;
    /** At a fragment without that header. */
    readonly later: BpfSource;
  };
  /** At the interface behind it, of frames that are not the guest's own. */
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
 * The guard of the interface behind a TAP: drops DHCP and DHCPv6, in either direction of
 * theirs, and what a hairpin bridge port reflects: the guest's own frames to others. A frame from the
 * guest to itself is one that the host's address translation sent back, and passes. All else goes on
 * to the next filter.
 *
 * DHCP behind VLAN tags too, since a host takes tags of VLAN 0 for none. Fragments other than the
 * first pass: without the first they are nothing. A first IPv6 fragment that ends before the upper
 * header is dropped (RFC 7112), and so is what more than four extension headers hide.
 *
 * Where a DHCP client on the host leases the interface's addresses, whole and untagged answers of
 * servers go up to the namespace's own stack, whose packet sockets see a frame after tc does. They
 * are not redirected to the guest; a bridge would carry them there.
 *
 * @param mac the guest's MAC, which is the interface's too
 * @param leased whether there is such a client
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

/** Goes on where the MAC at an offset is this one, else to `other`. */
export function macSteps(mac: string, offset: number, other: string): BpfSource {
  const view = new DataView(parseMac(mac).buffer);
  return [
    loadWord(offset),
    ifEqual(view.getUint32(0, false), undefined, other),
    loadHalf(offset + 4),
    ifEqual(view.getUint16(4, false), undefined, other),
  ];
}

/** To "drop" where the frame ends before X + size. */
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

/** X holds the offset of the header that is looked at. */
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

/** Leads X from the IPv4 header to the upper one, to `later` where a fragment has none. */
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

/** X holds the offset of the IPv4 header. */
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

/** Drops DHCP. X holds the offset of UDP's header. */
export function dhcpv4Steps(): BpfSource {
  return portSteps([BOOTPS, BOOTPC]);
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

/** Where an IPv6 packet is judged further, by what it carries. */
export interface Ipv6Uppers {
  /** X holds the offset of that header. */
  readonly udp: string;
  readonly icmpv6: string;
  readonly other: string;
  /** A fragment without any of it: X holds the offset of the fragment header. */
  readonly later: string;
}

/**
 * Leads X from the IPv6 header over extensions to the upper header. A holds the type of the header
 * at X.
 */
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
    ...DROP,
    ...["to udp", bpf.goTo(udp), "to icmpv6", bpf.goTo(icmpv6)],
    ...["to other", bpf.goTo(other), "to later", bpf.goTo(later)],
  ];
}

/** Drops DHCPv6. X holds the offset of UDP's header. */
export function dhcpv6Steps(): BpfSource {
  return portSteps(DHCPV6);
}

/** X holds the offset of UDP's header. */
function portSteps(ports: readonly [number, number]): BpfSource {
  return [
    loadHalfAtX(Udp.SOURCE),
    ...ports.map((port) => ifEqual(port, "drop")),
    loadHalfAtX(Udp.DESTINATION),
    ...ports.map((port) => ifEqual(port, "drop")),
  ];
}
