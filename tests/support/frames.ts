/** Frames that the DHCP tests are about, built by parts. */

import { ipToBytes } from "../../lib/inet/ip.ts";

export interface Ports {
  readonly source: number;
  readonly destination: number;
}

export interface Macs {
  readonly from: string;
  readonly to: string;
}

const ANYBODY: Macs = { from: "02:00:00:00:00:01", to: "02:00:00:00:00:02" };

/** Joins arrays and single bytes. */
export function bytes(...parts: readonly (number | Uint8Array | readonly number[])[]) {
  return Uint8Array.from(parts.flatMap((part) => typeof part === "number" ? [part] : [...part]));
}

const be16 = (value: number) => [value >> 8, value & 0xff];

/** An Ethernet header with any number of VLAN tags left in. */
export function ethernet(type: number, macs: Macs = ANYBODY, tags: readonly number[] = []) {
  const inline = tags.flatMap((tag) => [...be16(tag), 0, 0]);
  return bytes(parseUnchecked(macs.to), parseUnchecked(macs.from), inline, be16(type));
}

function parseUnchecked(mac: string): Uint8Array {
  // Group addresses too.
  return Uint8Array.fromHex(mac.replaceAll(":", ""));
}

export function udp({ source, destination }: Ports, length = 8) {
  return bytes(be16(source), be16(destination), be16(length), 0, 0, new Uint8Array(length - 8));
}

/** An IPv4 header of 20 bytes and options before a payload. */
export function ipv4(
  payload: Uint8Array,
  {
    protocol = 17,
    options = 0,
    fragment = 0,
    source = "192.0.2.1",
    destination = "192.0.2.2",
  }: {
    protocol?: number;
    options?: number;
    fragment?: number;
    source?: string;
    destination?: string;
  } = {},
) {
  const size = 20 + options;
  const header = bytes(
    [0x40 | (size / 4), 0],
    be16(size + payload.length),
    [0, 0, ...be16(fragment), 64, protocol, 0, 0],
    ipToBytes(source),
    ipToBytes(destination),
    new Uint8Array(options).fill(1),
  );
  header.set(be16(checksum(header)), 10);
  return bytes(header, payload);
}

/** RFC 1071. */
export function checksum(header: Uint8Array): number {
  let sum = 0;
  for (let at = 0; at < header.length; at += 2) sum += (header[at]! << 8) | header[at + 1]!;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return ~sum & 0xffff;
}

/** An IPv6 header; `next` is the type of what the payload begins with. */
export function ipv6(
  payload: Uint8Array,
  next = 17,
  source = "2001:db8::1",
  destination = "2001:db8::2",
  hopLimit = 255,
) {
  const addresses = bytes(ipToBytes(source), ipToBytes(destination));
  return bytes([0x60, 0, 0, 0], be16(payload.length), [next, hopLimit], addresses, payload);
}

/** An IPv6 extension header of 8 or more bytes before a payload. */
export function extension(next: number, payload: Uint8Array, more = 0) {
  return bytes([next, more, 0, 0, 0, 0, 0, 0], new Uint8Array(8 * more), payload);
}

/** ARP of IPv4 over Ethernet; a request unless it says otherwise. */
export function arp(
  {
    senderMac = ANYBODY.from,
    senderIp = "192.0.2.1",
    targetMac = "00:00:00:00:00:00",
    targetIp = "192.0.2.2",
    operation = 1,
    hardware = 1,
  }: {
    senderMac?: string;
    senderIp?: string;
    targetMac?: string;
    targetIp?: string;
    operation?: number;
    hardware?: number;
  },
) {
  const target = parseUnchecked(targetMac);
  return bytes(
    be16(hardware),
    [8, 0, 6, 4],
    be16(operation),
    parseUnchecked(senderMac),
    ipToBytes(senderIp),
    target,
    ipToBytes(targetIp),
  );
}

/** An ICMPv6 message of a type whose fifth to twentieth bytes are an address, without checksum. */
export function icmpv6(type: number, target: Uint8Array) {
  return bytes([type, 0, 0, 0, 0, 0, 0, 0], target);
}
