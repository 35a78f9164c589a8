/**
 * IP addresses and prefixes of both families, as text, bytes and numbers.
 *
 * @module
 */

import { InputError } from "../errors.ts";

/** An address family by its IP version. */
export type Family = 4 | 6;

/** An address with its prefix length, and the prefix that it belongs to. */
export interface Cidr {
  /** The address, canonical: `"10.0.0.2"`. */
  readonly address: string;
  readonly family: Family;
  readonly prefixLength: number;
  /** The prefix's first address: `"10.0.0.0"`. */
  readonly network: string;
  /** The prefix's last address: IPv4's broadcast address. */
  readonly broadcast: string;
}

/** The length of a family's addresses in bits. */
export const BITS: Readonly<Record<Family, number>> = { 4: 32, 6: 128 };

/** The family of an address; 0 for other text. Zones and leading zeros are not accepted. */
export function isIp(text: string): Family | 0 {
  if (parseIpv4(text) !== undefined) return 4;
  return parseIpv6(text) !== undefined ? 6 : 0;
}

/** The family of what is known to be an address. */
export function familyOf(address: string): Family {
  return isIp(address) === 6 ? 6 : 4;
}

/**
 * Parses an address of either family.
 *
 * @returns 4 or 16 bytes in network order
 * @throws {InputError} when the text is not an address
 */
export function ipToBytes(text: string): Uint8Array<ArrayBuffer> {
  const bytes = parseIpv4(text) ?? parseIpv6(text);
  if (bytes !== undefined) return bytes;
  throw new InputError(`"${text}" is not an IP address`, {
    mend: text.includes("%")
      ? "leave out the zone"
      : "write it as in 192.0.2.1 or 2001:db8::1, without leading zeros",
  });
}

const [ZERO, NINE, DOT] = [0x30, 0x39, 0x2e] as const;

/** Character by character: it is called a hundred times for each VM. */
function parseIpv4(text: string): Uint8Array<ArrayBuffer> | undefined {
  const bytes = new Uint8Array(4);
  let [index, value, digits] = [0, 0, 0];
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === DOT && digits > 0 && index < 3) {
      bytes[index++] = value;
      value = digits = 0;
      continue;
    }
    const isLeadingZero = digits > 0 && value === 0;
    if (code < ZERO || code > NINE || isLeadingZero) return undefined;
    value = 10 * value + code - ZERO;
    digits++;
    if (value > 255) return undefined;
  }
  if (index < 3 || digits === 0) return undefined;
  bytes[index] = value;
  return bytes;
}

function parseIpv6(text: string): Uint8Array<ArrayBuffer> | undefined {
  if (!text.includes(":")) return undefined;
  const halves = text.split("::");
  if (halves.length > 2) return undefined;
  const head = parseGroups(halves[0]!, halves.length === 1);
  const tail = halves.length === 2 ? parseGroups(halves[1]!, true) : [];
  if (head === undefined || tail === undefined) return undefined;
  const missing = 8 - head.length - tail.length;
  // `::` stands for two groups or more in RFC 5952. RFC 4291 permits one.
  if (halves.length === 2 ? missing < 1 : missing !== 0) return undefined;
  const groups = [...head, ...Array<number>(missing).fill(0), ...tail];
  const bytes = new Uint8Array(16);
  groups.forEach((group, index) => {
    bytes[2 * index] = group >> 8;
    bytes[2 * index + 1] = group & 0xff;
  });
  return bytes;
}

/** The 16-bit groups of one side of `::`; the address may end in dotted IPv4 when `last`. */
function parseGroups(text: string, last: boolean): number[] | undefined {
  if (text === "") return [];
  const groups: number[] = [];
  const parts = text.split(":");
  for (const [index, part] of parts.entries()) {
    if (last && index === parts.length - 1 && part.includes(".")) {
      const ipv4 = parseIpv4(part);
      if (ipv4 === undefined) return undefined;
      groups.push((ipv4[0]! << 8) | ipv4[1]!, (ipv4[2]! << 8) | ipv4[3]!);
    } else if (/^[0-9a-fA-F]{1,4}$/.test(part)) {
      groups.push(parseInt(part, 16));
    } else {
      return undefined;
    }
  }
  return groups;
}

/** Writes 4 or 16 bytes as the canonical text of RFC 5952. */
export function bytesToIp(bytes: Uint8Array): string {
  if (bytes.length === 4) return `${bytes[0]}.${bytes[1]}.${bytes[2]}.${bytes[3]}`;
  if (bytes.length !== 16) {
    throw new RangeError(`an address has 4 or 16 bytes, not ${bytes.length}`);
  }
  if (bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 255 && bytes[11] === 255) {
    return `::ffff:${bytesToIp(bytes.subarray(12))}`;
  }
  const groups: number[] = [];
  for (let index = 0; index < 16; index += 2) {
    groups.push((bytes[index]! << 8) | bytes[index + 1]!);
  }
  const { start, length } = longestZeroRun(groups);
  const hex = groups.map((group) => group.toString(16));
  if (length < 2) return hex.join(":");
  return `${hex.slice(0, start).join(":")}::${hex.slice(start + length).join(":")}`;
}

function longestZeroRun(groups: readonly number[]): { start: number; length: number } {
  let best = { start: 0, length: 0 };
  let start = 0;
  for (let index = 0; index <= groups.length; index++) {
    if (groups[index] === 0) continue;
    if (index - start > best.length) best = { start, length: index - start };
    start = index + 1;
  }
  return best;
}

/** The canonical text of an address of either family. */
export function canonicalIp(text: string): string {
  return bytesToIp(ipToBytes(text));
}

/** An address as an unsigned number of 32 or 128 bits. */
export function ipToBigInt(text: string): bigint {
  let value = 0n;
  for (const byte of ipToBytes(text)) value = (value << 8n) | BigInt(byte);
  return value;
}

/** The address of a family with the given number; the number must fit the family. */
export function bigIntToIp(value: bigint, family: Family): string {
  const bytes = new Uint8Array(BITS[family] / 8);
  let rest = value;
  for (let index = bytes.length - 1; index >= 0; index--) {
    bytes[index] = Number(rest & 0xffn);
    rest >>= 8n;
  }
  if (rest !== 0n) throw new RangeError(`${value} is no IPv${family} address`);
  return bytesToIp(bytes);
}

/**
 * Parses `ADDRESS/LENGTH`.
 *
 * @throws {InputError} when either part is malformed or out of range
 */
export function parseCidr(text: string): Cidr {
  const match = /^([^/]*)\/(\d{1,3})$/.exec(text);
  const address = match?.[1] ?? "";
  const bytes = parseIpv4(address) ?? parseIpv6(address);
  const prefixLength = Number(match?.[2]);
  const leadingZero = (match?.[2]?.length ?? 0) > 1 && match![2]!.startsWith("0");
  if (bytes === undefined || leadingZero || !(prefixLength <= 8 * bytes.length)) {
    throw new InputError(`"${text}" is not an address with a prefix length`, {
      mend: "write it as in 172.18.0.0/16 or fd00:1::/64",
    });
  }
  const hostBits = (index: number) => 0xff >> Math.min(8, Math.max(0, prefixLength - 8 * index));
  return {
    address: bytesToIp(bytes),
    family: bytes.length === 4 ? 4 : 6,
    prefixLength,
    network: bytesToIp(bytes.map((byte, index) => byte & ~hostBits(index))),
    broadcast: bytesToIp(bytes.map((byte, index) => byte | hostBits(index))),
  };
}

/** Parses a prefix. An address alone is the prefix of that one address. */
export function asPrefix(text: string): string {
  const family = isIp(text);
  return family === 0 ? text : `${text}/${BITS[family]}`;
}

/**
 * The canonical address of `ADDRESS` or `ADDRESS/LENGTH`.
 *
 * @throws {InputError} when it is neither
 */
export function addressOf(text: string): string {
  return text.includes("/") ? parseCidr(text).address : canonicalIp(text);
}

/** Whether the address belongs to the prefix. */
export function cidrContains(cidr: Cidr, ip: string): boolean {
  if (isIp(ip) !== cidr.family) return false;
  const value = ipToBigInt(ip);
  return value >= ipToBigInt(cidr.network) && value <= ipToBigInt(cidr.broadcast);
}

/** A range as text: a prefix, `10.0.0.0/8`, if it is one; otherwise `first-last`. */
export function prefixOf(first: string, last: string): string {
  const size = ipToBigInt(last) - ipToBigInt(first) + 1n;
  const length = (isIp(first) === 6 ? 128 : 32) - (size.toString(2).length - 1);
  const cidr = parseCidr(`${first}/${length}`);
  return cidr.network === first && cidr.broadcast === last
    ? `${first}/${length}`
    : `${first}-${last}`;
}

/** Whether two prefixes overlap. */
export function cidrsOverlap(a: Cidr, b: Cidr): boolean {
  return a.family === b.family &&
    agree(ipToBytes(a.network), ipToBytes(b.network), Math.min(a.prefixLength, b.prefixLength));
}

/** Whether two addresses of a family have the same first bits. */
export function agree(a: Uint8Array, b: Uint8Array, bits: number): boolean {
  const whole = bits >> 3;
  for (let index = 0; index < whole; index++) {
    if (a[index] !== b[index]) return false;
  }
  const rest = bits & 7;
  return rest === 0 || (a[whole]! ^ b[whole]!) >> (8 - rest) === 0;
}

/** The IPv4 mask of a prefix length: 16 gives `"255.255.0.0"`. */
export function netmask(prefixLength: number): string {
  const ones = (1n << 32n) - (1n << BigInt(32 - prefixLength));
  return bigIntToIp(ones, 4);
}

/** Prefixes whose addresses no host on a network can have, and their purpose. */
const SPECIAL: readonly (readonly [prefix: string, purpose: string])[] = [
  ["0.0.0.0/8", "this network"],
  ["127.0.0.0/8", "loopback"],
  ["224.0.0.0/4", "multicast"],
  ["255.255.255.255/32", "broadcast"],
  ["::/96", "loopback"],
  ["::ffff:0:0/96", "IPv4 in IPv6"],
  ["fe80::/10", "link-local addresses"],
  ["ff00::/8", "multicast"],
];

/** The part of a prefix that no host on a network can have, as text; undefined if there is none. */
export function specialUse(prefix: Cidr): string | undefined {
  const isSix = prefix.family === 6;
  const found = SPECIAL.find(([text]) =>
    text.includes(":") === isSix && cidrsOverlap(prefix, parseCidr(text))
  );
  return found && `${found[0]} (${found[1]})`;
}

/** Whether an address is 127.0.0.0/8 or ::1. */
export function isLoopback(ip: string): boolean {
  const bytes = ipToBytes(ip);
  return bytes.length === 4 ? bytes[0] === 127 : bytesToIp(bytes) === "::1";
}

/** Whether an address is 0.0.0.0 or ::. */
export function isUnspecified(ip: string): boolean {
  return ipToBytes(ip).every((byte) => byte === 0);
}

/** Whether an address is 224.0.0.0/4 or ff00::/8. */
export function isMulticast(ip: string): boolean {
  const bytes = ipToBytes(ip);
  return bytes.length === 4 ? bytes[0]! >> 4 === 0xe : bytes[0] === 0xff;
}
