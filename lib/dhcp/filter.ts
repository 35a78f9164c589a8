/**
 * Classic BPF programs about DHCP: which frames wake the server, and which must not pass between
 * a TAP and its network.
 *
 * A load beyond the end of a frame ends a program with 0. For a socket that means "not this one";
 * for cls_bpf it is TC_ACT_OK, which ends the classification too: a frame too short for its own
 * headers is not redirected.
 *
 * @module
 */

import { parseMac } from "../inet/mac.ts";
import { Bpf, type BpfInstruction } from "../sys/bpf.ts";
import { BOOTPC, BOOTPS, ETH_HLEN, ETH_P_IP, IP_FRAGMENT_MASK, IPPROTO_UDP } from "./headers.ts";

/** linux/if_ether.h. */
const ETH_P_IPV6 = 0x86dd;
const ETH_P_8021Q = 0x8100;
const ETH_P_8021AD = 0x88a8;
const VLAN_HLEN = 4;
/** linux/if_packet.h. */
const PACKET_OUTGOING = 4;
/** Ports of DHCPv6 (RFC 8415). */
const DHCPV6 = [546, 547] as const;
/** linux/pkt_cls.h: go on with the next filter; drop. */
const TC_ACT_UNSPEC = 0xffffffff;
const TC_ACT_SHOT = 2;
/** What a socket filter returns: how much of the frame to keep. */
const WHOLE_FRAME = 0x40000;
const NOTHING = 0;

/** Offsets in the frame, and in the headers of IPv4, IPv6 and an IPv6 extension. */
const Ethernet = { DESTINATION: 0, SOURCE: 6, TYPE: 12 } as const;
const Ipv4 = { VERSION_IHL: 0, FRAGMENT: 6, PROTOCOL: 9 } as const;
const Ipv6 = { NEXT_HEADER: 6, SIZE: 40 } as const;
const Extension = { NEXT_HEADER: 0, LENGTH: 1, FRAGMENT: 2 } as const;
const Udp = { SOURCE: 0, DESTINATION: 2 } as const;

const IPV4_OFFSET_MASK = 0x1fff;
const IPV6_OFFSET_MASK = 0xfff8;
/** IPv6 extension headers that a host skips on its way to UDP (RFC 8200). */
const IPPROTO_FRAGMENT = 44;
const EXTENSIONS = [0, /* hop by hop */ 43, /* routing */ 60 /* destination */] as const;
/** What nobody needs more of, and what the programs look behind: the rest is dropped. */
const MAX_EXTENSIONS = 4;
const MAX_INLINE_VLAN_TAGS = 2;

/** An instruction whose jumps name labels; a jump without one goes to the next instruction. */
interface Step {
  readonly code: number;
  readonly k: number;
  readonly yes?: string | undefined;
  readonly no?: string | undefined;
}

/** A program's steps in order, each label before the step it names. */
type Source = readonly (Step | string)[];

const step = (code: number, k: number): Step => ({ code, k });
const loadByte = (k: number) => step(Bpf.LD | Bpf.B | Bpf.ABS, k);
const loadHalf = (k: number) => step(Bpf.LD | Bpf.H | Bpf.ABS, k);
const loadWord = (k: number) => step(Bpf.LD | Bpf.W | Bpf.ABS, k);
const loadByteAtX = (k: number) => step(Bpf.LD | Bpf.B | Bpf.IND, k);
const loadHalfAtX = (k: number) => step(Bpf.LD | Bpf.H | Bpf.IND, k);
const loadAncillary = (k: number) => loadWord(Bpf.SKF_AD_OFF + k);
const setX = (k: number) => step(Bpf.LDX | Bpf.W | Bpf.IMM, k);
const ret = (k: number) => step(Bpf.RET | Bpf.K, k);
const jump = (code: number) => (k: number, yes?: string, no?: string): Step => {
  return { code: Bpf.JMP | code | Bpf.K, k, yes, no };
};
const ifEqual = jump(Bpf.JEQ);
const ifAnyBit = jump(Bpf.JSET);
const ADD_X_TO_A = step(Bpf.ALU | Bpf.ADD | Bpf.X, 0);
const X_FROM_A = step(Bpf.MISC | Bpf.TAX, 0);
const STORE_A = step(Bpf.ST, 0);
const LOAD_STORED = step(Bpf.LD | Bpf.W | Bpf.MEM, 0);

function assemble(source: Source): BpfInstruction[] {
  const labels = new Map<string, number>();
  const steps: Step[] = [];
  for (const item of source) {
    if (typeof item === "string") labels.set(item, steps.length);
    else steps.push(item);
  }
  return steps.map(({ code, k, yes, no }, index) => {
    const distance = (label: string | undefined) => {
      const skip = label === undefined ? 0 : (labels.get(label) ?? -1) - index - 1;
      if (skip < 0 || skip > 0xff) throw new RangeError(`BPF jump to "${label}" is not possible`);
      return skip;
    };
    return { code, jt: distance(yes), jf: distance(no), k: k >>> 0 };
  });
}

/**
 * The filter of the server's packet sockets: DHCP requests that came in by the interface. Frames
 * of a VLAN, whose tag the kernel has taken off already, are not for the TAP's own network.
 */
export function dhcpSocketFilter(): BpfInstruction[] {
  return assemble([
    loadAncillary(Bpf.SKF_AD_PKTTYPE),
    ifEqual(PACKET_OUTGOING, "reject"),
    loadAncillary(Bpf.SKF_AD_VLAN_TAG_PRESENT),
    ifEqual(0, undefined, "reject"),
    loadHalf(Ethernet.TYPE),
    ifEqual(ETH_P_IP, undefined, "reject"),
    loadByte(ETH_HLEN + Ipv4.PROTOCOL),
    ifEqual(IPPROTO_UDP, undefined, "reject"),
    loadHalf(ETH_HLEN + Ipv4.FRAGMENT),
    ifAnyBit(IP_FRAGMENT_MASK, "reject"),
    step(Bpf.LDX | Bpf.B | Bpf.MSH, ETH_HLEN + Ipv4.VERSION_IHL),
    loadHalfAtX(ETH_HLEN + Udp.DESTINATION),
    ifEqual(BOOTPS, undefined, "reject"),
    ret(WHOLE_FRAME),
    "reject",
    ret(NOTHING),
  ]);
}

/**
 * The cls_bpf program (direct action) for the ingress of a TAP: drops DHCP and DHCPv6, in either
 * direction of theirs, and lets all else go on to the next filter.
 *
 * Behind VLAN tags too, since a host takes tags of VLAN 0 for none. Fragments other than the
 * first pass: without the first they are nothing.
 */
export function dhcpGuard(): BpfInstruction[] {
  return assemble(guardSteps());
}

/**
 * The cls_bpf program (direct action) for the ingress of the interface behind a TAP: what
 * {@linkcode dhcpGuard} drops, and what a hairpin bridge port reflects: the guest's own frames to
 * others. A frame from the guest to itself is one that the host's address translation sent back,
 * and passes.
 *
 * @param mac the guest's MAC, which is the interface's too
 * @throws {InputError} when it is malformed
 */
export function wireGuard(mac: string): BpfInstruction[] {
  const view = new DataView(parseMac(mac).buffer);
  const [high, low] = [view.getUint32(0, false), view.getUint16(4, false)];
  return assemble([
    loadWord(Ethernet.SOURCE),
    ifEqual(high, undefined, "dhcp"),
    loadHalf(Ethernet.SOURCE + 4),
    ifEqual(low, undefined, "dhcp"),
    loadWord(Ethernet.DESTINATION),
    ifEqual(high, undefined, "reflected"),
    loadHalf(Ethernet.DESTINATION + 4),
    ifEqual(low, "dhcp"),
    "reflected",
    ret(TC_ACT_SHOT),
    "dhcp",
    ...guardSteps(),
  ]);
}

/** X holds the offset of the header that is looked at. */
function guardSteps(): Source {
  return [
    ...networkTypeSteps(),
    "network",
    ifEqual(ETH_P_IP, "ipv4"),
    ifEqual(ETH_P_IPV6, "ipv6", "pass"),
    "ipv4",
    loadByteAtX(Ipv4.PROTOCOL),
    ifEqual(IPPROTO_UDP, undefined, "pass"),
    loadHalfAtX(Ipv4.FRAGMENT),
    ifAnyBit(IPV4_OFFSET_MASK, "pass"),
    loadByteAtX(Ipv4.VERSION_IHL),
    step(Bpf.ALU | Bpf.AND | Bpf.K, 0x0f),
    step(Bpf.ALU | Bpf.LSH | Bpf.K, 2),
    ADD_X_TO_A,
    X_FROM_A,
    ...portSteps([BOOTPS, BOOTPC]),
    "ipv6",
    ...ipv6Steps(),
    ...portSteps(DHCPV6),
    "pass",
    ret(TC_ACT_UNSPEC),
    "drop",
    ret(TC_ACT_SHOT),
  ];
}

/** Leaves the type of the network header in A and its offset in X, behind tags left in the frame. */
function networkTypeSteps(): Source {
  const steps: (Step | string)[] = [];
  for (let tags = 0; tags <= MAX_INLINE_VLAN_TAGS; tags++) {
    const next = tags < MAX_INLINE_VLAN_TAGS ? `tag ${tags + 1}` : "drop";
    steps.push(
      `tag ${tags}`,
      setX(ETH_HLEN + tags * VLAN_HLEN),
      loadHalf(Ethernet.TYPE + tags * VLAN_HLEN),
      ifEqual(ETH_P_8021Q, next),
      ifEqual(ETH_P_8021AD, next, "network"),
    );
  }
  return steps;
}

/**
 * Leads X from the IPv6 header, over extensions, to UDP's; to "pass" where there is none. A holds
 * the type of the header at X.
 */
function ipv6Steps(): Source {
  const steps: (Step | string)[] = [
    loadByteAtX(Ipv6.NEXT_HEADER),
    STORE_A,
    step(Bpf.MISC | Bpf.TXA, 0),
    step(Bpf.ALU | Bpf.ADD | Bpf.K, Ipv6.SIZE),
    X_FROM_A,
    LOAD_STORED,
  ];
  for (let count = 0; count < MAX_EXTENSIONS; count++) {
    steps.push(
      ...headerTypeSteps(`extension ${count}`, `fragment ${count}`),
      `fragment ${count}`,
      loadHalfAtX(Extension.FRAGMENT),
      ifAnyBit(IPV6_OFFSET_MASK, "pass"),
      `extension ${count}`,
      loadByteAtX(Extension.NEXT_HEADER),
      STORE_A,
      // Counted in 8 bytes, without the first 8; 0 in a fragment header, which has 8.
      loadByteAtX(Extension.LENGTH),
      step(Bpf.ALU | Bpf.ADD | Bpf.K, 1),
      step(Bpf.ALU | Bpf.LSH | Bpf.K, 3),
      ADD_X_TO_A,
      X_FROM_A,
      LOAD_STORED,
    );
  }
  return [...steps, ...headerTypeSteps("drop", "drop"), "udp over ipv6"];
}

function headerTypeSteps(extension: string, fragment: string): Source {
  return [
    ifEqual(IPPROTO_UDP, "udp over ipv6"),
    ...EXTENSIONS.map((type) => ifEqual(type, extension)),
    ifEqual(IPPROTO_FRAGMENT, fragment, "pass"),
  ];
}

/** X holds the offset of UDP's header. */
function portSteps(ports: readonly [number, number]): Source {
  return [
    loadHalfAtX(Udp.SOURCE),
    ...ports.map((port) => ifEqual(port, "drop")),
    loadHalfAtX(Udp.DESTINATION),
    ifEqual(ports[0], "drop"),
    ifEqual(ports[1], "drop", "pass"),
  ];
}
