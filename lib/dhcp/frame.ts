/**
 * UDP datagrams in IPv4 in Ethernet II frames, as a packet socket carries them.
 *
 * @module
 */

import { bytesToIp, ipToBytes } from "../inet/ip.ts";
import { ETH_ALEN } from "../inet/mac.ts";
import {
  ETH_HLEN,
  ETH_P_IP,
  Ethernet,
  IP_FRAGMENT_MASK,
  IPPROTO_UDP,
  Ipv4,
  Udp,
} from "./headers.ts";
import { DhcpFormatError } from "./options.ts";

const IPV4_HEADER_SIZE = 20;
const UDP_HEADER_SIZE = 8;
const IPV4_VERSION = 4;
const IP_DONT_FRAGMENT = 0x4000;
const DEFAULT_TTL = 64;

/** One datagram and its addresses. */
export interface UdpFrame {
  readonly sourceMac: Uint8Array;
  readonly destinationMac: Uint8Array;
  readonly sourceIp: string;
  readonly destinationIp: string;
  readonly sourcePort: number;
  readonly destinationPort: number;
  readonly payload: Uint8Array;
}

/**
 * Parses a frame. Ethernet's padding is cut off, the options of the IPv4 header are skipped.
 *
 * A UDP checksum may be complete, absent (zero), or the sum of the pseudo-header only: a guest with
 * checksum offload sends such frames to the host.
 *
 * @returns `undefined` for a frame that is not UDP in IPv4, or is a fragment
 * @throws {DhcpFormatError} when lengths or checksums are wrong
 */
export function parseUdpFrame(frame: Uint8Array): UdpFrame | undefined {
  if (frame.length < ETH_HLEN) throw new DhcpFormatError("the frame is cut short", frame.length);
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  if (view.getUint16(Ethernet.TYPE, false) !== ETH_P_IP) return undefined;
  const { headerSize, totalLength } = parseIpv4Lengths(view);
  if (view.getUint8(ETH_HLEN + Ipv4.PROTOCOL) !== IPPROTO_UDP) return undefined;
  if ((view.getUint16(ETH_HLEN + Ipv4.FRAGMENT, false) & IP_FRAGMENT_MASK) !== 0) return undefined;
  if (fold(sum(frame, ETH_HLEN, ETH_HLEN + headerSize)) !== 0xffff) {
    throw new DhcpFormatError("the IPv4 checksum is wrong", ETH_HLEN + Ipv4.CHECKSUM);
  }
  const udp = ETH_HLEN + headerSize;
  const available = ETH_HLEN + totalLength - udp;
  const length = available < UDP_HEADER_SIZE ? 0 : view.getUint16(udp + Udp.LENGTH, false);
  if (length < UDP_HEADER_SIZE || length > available) {
    throw new DhcpFormatError("the UDP length is wrong", udp + Udp.LENGTH);
  }
  if (!udpChecksumHolds(frame, view, udp, length)) {
    throw new DhcpFormatError("the UDP checksum is wrong", udp + Udp.CHECKSUM);
  }
  const ip = (offset: number) => bytesToIp(frame.subarray(offset, offset + 4));
  return {
    sourceMac: frame.subarray(Ethernet.SOURCE, Ethernet.SOURCE + ETH_ALEN),
    destinationMac: frame.subarray(Ethernet.DESTINATION, Ethernet.DESTINATION + ETH_ALEN),
    sourceIp: ip(ETH_HLEN + Ipv4.SOURCE),
    destinationIp: ip(ETH_HLEN + Ipv4.DESTINATION),
    sourcePort: view.getUint16(udp + Udp.SOURCE, false),
    destinationPort: view.getUint16(udp + Udp.DESTINATION, false),
    payload: frame.subarray(udp + UDP_HEADER_SIZE, udp + length),
  };
}

function parseIpv4Lengths(view: DataView): { headerSize: number; totalLength: number } {
  const available = view.byteLength - ETH_HLEN;
  if (available < IPV4_HEADER_SIZE) {
    throw new DhcpFormatError("the IPv4 header is cut short", view.byteLength);
  }
  const first = view.getUint8(ETH_HLEN);
  const headerSize = (first & 0x0f) * 4;
  const totalLength = view.getUint16(ETH_HLEN + Ipv4.LENGTH, false);
  if (first >> 4 !== IPV4_VERSION || headerSize < IPV4_HEADER_SIZE || headerSize > available) {
    throw new DhcpFormatError("the IPv4 header is malformed", ETH_HLEN);
  }
  if (totalLength < headerSize || totalLength > available) {
    throw new DhcpFormatError("the IPv4 length is wrong", ETH_HLEN + Ipv4.LENGTH);
  }
  return { headerSize, totalLength };
}

function udpChecksumHolds(frame: Uint8Array, view: DataView, udp: number, length: number): boolean {
  const checksum = view.getUint16(udp + Udp.CHECKSUM, false);
  if (checksum === 0) return true;
  const pseudo = pseudoHeaderSum(frame, length);
  return checksum === fold(pseudo) || fold(pseudo + sum(frame, udp, udp + length)) === 0xffff;
}

/** The sum of UDP's pseudo-header: addresses, protocol, length. */
function pseudoHeaderSum(frame: Uint8Array, udpLength: number): number {
  const addresses = sum(frame, ETH_HLEN + Ipv4.SOURCE, ETH_HLEN + IPV4_HEADER_SIZE);
  return addresses + IPPROTO_UDP + udpLength;
}

/** Adds 16-bit words in network order. An odd last byte is the high half of a word. */
function sum(bytes: Uint8Array, start: number, end: number): number {
  let total = 0;
  for (let index = start; index + 1 < end; index += 2) {
    total += (bytes[index]! << 8) | bytes[index + 1]!;
  }
  return (end - start) % 2 === 0 ? total : total + (bytes[end - 1]! << 8);
}

function fold(total: number): number {
  let folded = total;
  while (folded > 0xffff) folded = (folded & 0xffff) + (folded >>> 16);
  return folded;
}

/** Builds the frame of one datagram, with both checksums and the don't-fragment flag. */
export function buildUdpFrame(frame: UdpFrame): Uint8Array<ArrayBuffer> {
  const udpLength = UDP_HEADER_SIZE + frame.payload.length;
  const totalLength = IPV4_HEADER_SIZE + udpLength;
  const udp = ETH_HLEN + IPV4_HEADER_SIZE;
  const bytes = new Uint8Array(ETH_HLEN + totalLength);
  const view = new DataView(bytes.buffer);
  bytes.set(frame.destinationMac, Ethernet.DESTINATION);
  bytes.set(frame.sourceMac, Ethernet.SOURCE);
  view.setUint16(Ethernet.TYPE, ETH_P_IP, false);
  view.setUint8(ETH_HLEN, (IPV4_VERSION << 4) | (IPV4_HEADER_SIZE / 4));
  view.setUint16(ETH_HLEN + Ipv4.LENGTH, totalLength, false);
  view.setUint16(ETH_HLEN + Ipv4.FRAGMENT, IP_DONT_FRAGMENT, false);
  view.setUint8(ETH_HLEN + Ipv4.TTL, DEFAULT_TTL);
  view.setUint8(ETH_HLEN + Ipv4.PROTOCOL, IPPROTO_UDP);
  bytes.set(ipToBytes(frame.sourceIp), ETH_HLEN + Ipv4.SOURCE);
  bytes.set(ipToBytes(frame.destinationIp), ETH_HLEN + Ipv4.DESTINATION);
  view.setUint16(ETH_HLEN + Ipv4.CHECKSUM, 0xffff - fold(sum(bytes, ETH_HLEN, udp)), false);
  view.setUint16(udp + Udp.SOURCE, frame.sourcePort, false);
  view.setUint16(udp + Udp.DESTINATION, frame.destinationPort, false);
  view.setUint16(udp + Udp.LENGTH, udpLength, false);
  bytes.set(frame.payload, udp + UDP_HEADER_SIZE);
  const checksum = 0xffff - fold(pseudoHeaderSum(bytes, udpLength) + sum(bytes, udp, bytes.length));
  // RFC 768: zero means that there is no checksum.
  view.setUint16(udp + Udp.CHECKSUM, checksum === 0 ? 0xffff : checksum, false);
  return bytes;
}
