/**
 * The classic BPF program that says which frames wake the DHCP server.
 *
 * @module
 */

import { assembleBpf, Bpf, bpf, type BpfInstruction } from "../sys/bpf.ts";
import { BOOTPS, ETH_HLEN, ETH_P_IP, IP_FRAGMENT_MASK, IPPROTO_UDP } from "./headers.ts";

/** linux/if_packet.h. */
const PACKET_OUTGOING = 4;
/** What a socket filter returns: how much of the frame to keep. */
const WHOLE_FRAME = 0x40000;
const NOTHING = 0;

/** Offsets in the frame, in the IPv4 header and in UDP's. */
const ETHERNET_TYPE = 12;
const Ipv4 = { VERSION_IHL: 0, FRAGMENT: 6, PROTOCOL: 9 } as const;
const UDP_DESTINATION = 2;

/**
 * The filter of the server's packet sockets: DHCP requests that came in by the interface. Frames
 * of a VLAN, whose tag the kernel has taken off already, are not for the TAP's own network.
 *
 * A load beyond the end of a frame ends a program with 0: not this one.
 */
export function dhcpSocketFilter(): BpfInstruction[] {
  const { ifEqual, ifAnyBit, loadAncillary, loadByte, loadHalf, loadHalfAtX, ret } = bpf;
  return assembleBpf([
    loadAncillary(Bpf.SKF_AD_PKTTYPE),
    ifEqual(PACKET_OUTGOING, "reject"),
    loadAncillary(Bpf.SKF_AD_VLAN_TAG_PRESENT),
    ifEqual(0, undefined, "reject"),
    loadHalf(ETHERNET_TYPE),
    ifEqual(ETH_P_IP, undefined, "reject"),
    loadByte(ETH_HLEN + Ipv4.PROTOCOL),
    ifEqual(IPPROTO_UDP, undefined, "reject"),
    loadHalf(ETH_HLEN + Ipv4.FRAGMENT),
    ifAnyBit(IP_FRAGMENT_MASK, "reject"),
    bpf.xFromHeaderLength(ETH_HLEN + Ipv4.VERSION_IHL),
    loadHalfAtX(ETH_HLEN + UDP_DESTINATION),
    ifEqual(BOOTPS, undefined, "reject"),
    ret(WHOLE_FRAME),
    "reject",
    ret(NOTHING),
  ]);
}
