/**
 * The classic BPF program that selects the frames for the DHCP server.
 *
 * @module
 */

import { assembleBpf, Bpf, bpf, type BpfInstruction } from "../sys/bpf.ts";
import { BOOTPS, datagramSteps } from "./headers.ts";

/** linux/if_packet.h. */
const PACKET_OUTGOING = 4;
/** What a socket filter returns: how much of the frame to keep. */
const WHOLE_FRAME = 0x40000;
const NOTHING = 0;

/**
 * The filter of the server's packet sockets: incoming DHCP requests. Frames of a VLAN are dropped,
 * although the kernel has removed their tag: they are not for the TAP's own network.
 *
 * A load beyond the end of a frame ends the program with 0, which drops the frame.
 */
export function dhcpSocketFilter(): BpfInstruction[] {
  const { ifEqual, loadAncillary, ret } = bpf;
  return assembleBpf([
    loadAncillary(Bpf.SKF_AD_PKTTYPE),
    ifEqual(PACKET_OUTGOING, "reject"),
    loadAncillary(Bpf.SKF_AD_VLAN_TAG_PRESENT),
    ifEqual(0, undefined, "reject"),
    ...datagramSteps(BOOTPS, "reject"),
    ret(WHOLE_FRAME),
    "reject",
    ret(NOTHING),
  ]);
}
