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

/** Offsets in the frame, in the IPv4 header and in UDP's. */
const ETHERNET_TYPE = 12;
const Ipv4 = { VERSION_IHL: 0, FRAGMENT: 6, PROTOCOL: 9 } as const;
const UDP_DESTINATION = 2;

/**
 * BPF: continues if the frame is an unfragmented IPv4 datagram to a UDP port; otherwise jumps to
 * `other`.
 */
export function datagramSteps(port: number, other: string): BpfSource {
  const { ifEqual, ifAnyBit, loadByte, loadHalf, loadHalfAtX } = bpf;
  return [
    loadHalf(ETHERNET_TYPE),
    ifEqual(ETH_P_IP, undefined, other),
    loadByte(ETH_HLEN + Ipv4.PROTOCOL),
    ifEqual(IPPROTO_UDP, undefined, other),
    loadHalf(ETH_HLEN + Ipv4.FRAGMENT),
    ifAnyBit(IP_FRAGMENT_MASK, other),
    bpf.xFromHeaderLength(ETH_HLEN + Ipv4.VERSION_IHL),
    loadHalfAtX(ETH_HLEN + UDP_DESTINATION),
    ifEqual(port, undefined, other),
  ];
}
