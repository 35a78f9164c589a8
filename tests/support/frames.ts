/** Frames that the DHCP tests are about, built by parts. */

import { ipToBytes } from "../../lib/inet/ip.ts";
import { parseMac } from "../../lib/inet/mac.ts";

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
  return mac === "ff:ff:ff:ff:ff:ff" ? new Uint8Array(6).fill(0xff) : parseMac(mac);
}

export function udp({ source, destination }: Ports, length = 8) {
  return bytes(be16(source), be16(destination), be16(length), 0, 0, new Uint8Array(length - 8));
}

/** An IPv4 header of 20 bytes and options, without its checksum. */
export function ipv4(
  payload: Uint8Array,
  { protocol = 17, options = 0, fragment = 0 }: {
    protocol?: number;
    options?: number;
    fragment?: number;
  } = {},
) {
  const header = 20 + options;
  return bytes(
    [0x40 | (header / 4), 0],
    be16(header + payload.length),
    [0, 0, ...be16(fragment), 64, protocol, 0, 0],
    ipToBytes("192.0.2.1"),
    ipToBytes("192.0.2.2"),
    new Uint8Array(options).fill(1),
    payload,
  );
}

/** An IPv6 header; `next` is the type of what the payload begins with. */
export function ipv6(payload: Uint8Array, next = 17) {
  const addresses = bytes(ipToBytes("2001:db8::1"), ipToBytes("2001:db8::2"));
  return bytes([0x60, 0, 0, 0], be16(payload.length), [next, 64], addresses, payload);
}

/** An IPv6 extension header of 8 or more bytes before a payload. */
export function extension(next: number, payload: Uint8Array, more = 0) {
  return bytes([next, more, 0, 0, 0, 0, 0, 0], new Uint8Array(8 * more), payload);
}
