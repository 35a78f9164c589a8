/**
 * Everything that a guest might get past its egress rules with: all protocols, all types, behind all
 * headers, with the hop limits that mean something, each with a mark at its end.
 */

import { ipToBytes } from "../../lib/inet/ip.ts";
import type { Party } from "./attack-scene.ts";
import { bytes, checksum, ethernet, extension, ipv4, ipv6 } from "./frames.ts";

const [IP, IPV6] = [0x0800, 0x86dd];
const [ICMP, TCP, UDP, ICMPV6] = [1, 6, 17, 58];
const [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION] = [0, 43, 44, 51, 60];
const HOP_LIMITS = [1, 2, 64, 255];
const SYN = 0x02;

/** Who sends through whom to where. */
export interface Way {
  readonly from: Party;
  /** Whose MAC the frames are for. */
  readonly by: Party;
  readonly to: Party;
  readonly mark: Uint8Array;
}

const all = Array.from({ length: 256 }, (_, number) => number);

const half = (value: number) => [value >> 8, value & 0xff];

function packet4({ from, by, to, mark }: Way, protocol: number, payload: readonly number[]) {
  const packet = ipv4(bytes(payload, mark), { protocol, source: from.ip, destination: to.ip });
  return bytes(ethernet(IP, { from: from.mac, to: by.mac }), packet);
}

/** A TCP header of the right length; its checksum is not looked at. */
function tcp(flags: number, source = 5000): number[] {
  return [...half(source), ...half(80), 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0];
}

function udp({ mark }: Way, source: number, destination: number): number[] {
  return [...half(source), ...half(destination), ...half(8 + mark.length), 0, 0];
}

/** A datagram of either family that anybody may send. */
export function datagrams(way: Way): Uint8Array[] {
  const payload = udp(way, 5000, 5001);
  const { from, by, to } = way;
  return [
    packet4(way, UDP, payload),
    bytes(
      ethernet(IPV6, { from: from.mac, to: by.mac }),
      ipv6(bytes(payload, way.mark), UDP, from.ip6, to.ip6, 64),
    ),
  ];
}

/** What opens something: no answer looks like it. */
export function opening4(way: Way): Uint8Array[] {
  const answers = [0, 3, 4, 5, 11, 12, 14, 16, 18];
  return [
    ...all.filter((number) => ![ICMP, TCP, UDP].includes(number))
      .map((protocol) => packet4(way, protocol, new Array(20).fill(0))),
    ...all.filter((type) => !answers.includes(type))
      .map((type) => packet4(way, ICMP, [type, 0, 0, 0, 0, 1, 0, 1])),
    ...[SYN, SYN | 0x40, SYN | 0xc0, SYN | 0x04, SYN | 0x01, 0, 0x01, 0x20]
      .map((flags) => packet4(way, TCP, tcp(flags))),
    ...[[5000, 53], [53, 5000], [67, 67], [68, 67], [5353, 5353]]
      .map(([source, destination]) => packet4(way, UDP, udp(way, source!, destination!))),
  ];
}

/** All of IPv4. */
export function everything4(way: Way): Uint8Array[] {
  return [
    ...opening4(way),
    ...all.map((protocol) => packet4(way, protocol, new Array(20).fill(0))),
    ...all.map((protocol) => packet4(way, protocol, new Array(20).fill(0xff))),
    ...all.map((type) => packet4(way, ICMP, [type, 0, 0, 0, 0, 1, 0, 1])),
    ...all.map((flags) => packet4(way, TCP, tcp(flags))),
  ];
}

/** The chains of headers that a payload may be behind. */
const CHAINS: readonly ((next: number, payload: Uint8Array) => readonly [number, Uint8Array])[] = [
  (next, payload) => [next, payload],
  (next, payload) => [HOP_BY_HOP, extension(next, payload)],
  (next, payload) => [DESTINATION, extension(next, payload)],
  (next, payload) => [ROUTING, bytes([next, 0, 4, 0, 0, 0, 0, 0], payload)],
  (next, payload) => [FRAGMENT, bytes([next, 0, 0, 0, 0, 0, 0, 1], payload)],
  (next, payload) => [AUTHENTICATION, bytes([next, 4, 0, 0], new Uint8Array(20), payload)],
  (next, payload) => [
    HOP_BY_HOP,
    extension(DESTINATION, extension(FRAGMENT, bytes([next, 0, 0, 0, 0, 0, 0, 1], payload))),
  ],
];
/** Parts of a datagram whose rest does not come. */
const PARTS: typeof CHAINS = [
  (next, payload) => [FRAGMENT, bytes([next, 0, 0, 1, 0, 0, 0, 2], payload)],
  (next, payload) => [FRAGMENT, bytes([next, 0, 1, 0, 0, 0, 0, 3], payload)],
];

function packets6(
  { from, by, to }: Way,
  next: number,
  payload: Uint8Array,
  chains = CHAINS,
): Uint8Array[] {
  return HOP_LIMITS.flatMap((hopLimit) =>
    chains.map((chain) => {
      const [first, packet] = chain(next, payload);
      return bytes(
        ethernet(IPV6, { from: from.mac, to: by.mac }),
        ipv6(packet, first, from.ip6, to.ip6, hopLimit),
      );
    })
  );
}

/** An ICMPv6 message about an address, with its checksum. */
function icmpv6({ from, to, mark }: Way, type: number, code = 0): Uint8Array {
  const message = bytes([type, code, 0, 0, 0, 0, 0, 0], ipToBytes(from.ip6), mark);
  const pseudo = bytes(ipToBytes(from.ip6), ipToBytes(to.ip6), [0, 0, 0, message.length, 0, 0, 0]);
  message.set(half(checksum(bytes(pseudo, ICMPV6, message))), 2);
  return message;
}

/** What opens something over IPv6. */
export function opening6(way: Way): Uint8Array[] {
  const answers = [1, 2, 3, 4, 129];
  return [
    ...all.filter((type) => !answers.includes(type))
      .flatMap((type) => packets6(way, ICMPV6, icmpv6(way, type))),
    ...packets6(way, TCP, bytes(tcp(SYN), way.mark)),
    ...packets6(way, UDP, bytes(udp(way, 5000, 53), way.mark)),
    ...[132, 47, 50, 4, 41, 59, 89, 103, 135, 139, 253]
      .flatMap((next) => packets6(way, next, bytes(new Uint8Array(20), way.mark))),
  ];
}

/** All of IPv6. */
export function everything6(way: Way): Uint8Array[] {
  return [
    ...all.flatMap((type) => packets6(way, ICMPV6, icmpv6(way, type), [...CHAINS, ...PARTS])),
    ...packets6(way, TCP, bytes(tcp(SYN), way.mark)),
    ...packets6(way, UDP, bytes(udp(way, 5000, 53), way.mark)),
    ...all.flatMap((flags) => packets6(way, TCP, bytes(tcp(flags), way.mark), PARTS)),
    ...all.flatMap((next) => packets6(way, next, bytes(new Uint8Array(20), way.mark))),
  ];
}
