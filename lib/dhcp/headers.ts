/**
 * Numbers of the headers around a DHCP message, to build, parse and filter frames.
 *
 * @module
 */

import { bpf, type BpfSource } from "../sys/bpf.ts";

/** linux/if_ether.h. */
export const ETH_P_IP = 0x0800;
export const ETH_HLEN = 14;
/** linux/in.h. */
export const IPPROTO_UDP = 17;
/** More fragments, or an offset: the packet is a fragment. */
export const IP_FRAGMENT_MASK = 0x3fff;

/** Ports of BOOTP (RFC 951). */
export const BOOTPS = 67;
export const BOOTPC = 68;

/** Offsets in the frame, and in the headers of IPv4 (RFC 791) and UDP (RFC 768). */
export const Ethernet = { DESTINATION: 0, SOURCE: 6, TYPE: 12 } as const;
export const Ipv4 = {
  VERSION_IHL: 0,
  LENGTH: 2,
  FRAGMENT: 6,
  TTL: 8,
  PROTOCOL: 9,
  CHECKSUM: 10,
  SOURCE: 12,
  DESTINATION: 16,
} as const;
export const Udp = { SOURCE: 0, DESTINATION: 2, LENGTH: 4, CHECKSUM: 6 } as const;

/**
 * BPF: continues if the frame is an unfragmented IPv4 datagram to a UDP port; otherwise jumps to
 * `other`.
 */
export function datagramSteps(port: number, other: string): BpfSource {
  const { ifEqual, ifAnyBit, loadByte, loadHalf, loadHalfAtX } = bpf;
  return [
    loadHalf(Ethernet.TYPE),
    ifEqual(ETH_P_IP, undefined, other),
    loadByte(ETH_HLEN + Ipv4.PROTOCOL),
    ifEqual(IPPROTO_UDP, undefined, other),
    loadHalf(ETH_HLEN + Ipv4.FRAGMENT),
    ifAnyBit(IP_FRAGMENT_MASK, other),
    bpf.xFromHeaderLength(ETH_HLEN + Ipv4.VERSION_IHL),
    loadHalfAtX(ETH_HLEN + Udp.DESTINATION),
    ifEqual(port, undefined, other),
  ];
}
