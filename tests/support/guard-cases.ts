/** Frames, and what becomes of them where DHCP must not pass. */

import { bytes, ethernet, extension, ipv4, ipv6, udp } from "./frames.ts";

const [IP, IPV6, ARP] = [0x0800, 0x86dd, 0x0806];
const [VLAN, SERVICE_VLAN] = [0x8100, 0x88a8];
const REQUEST = udp({ source: 68, destination: 67 });
const REPLY = udp({ source: 67, destination: 68 });
const DNS = udp({ source: 5353, destination: 53 });
const SOLICIT = udp({ source: 546, destination: 547 });

/** What a guard does with a frame; one too short for its headers is not carried either. */
export type Verdict = "pass" | "drop" | "too short";

export const GUARD_CASES: readonly [name: string, frame: Uint8Array, verdict: Verdict][] = [
  ["a DHCP request", bytes(ethernet(IP), ipv4(REQUEST)), "drop"],
  ["a DHCP reply", bytes(ethernet(IP), ipv4(REPLY)), "drop"],
  ["a reply to a relay", bytes(ethernet(IP), ipv4(udp({ source: 67, destination: 67 }))), "drop"],
  [
    "a request from any port",
    bytes(ethernet(IP), ipv4(udp({ source: 999, destination: 67 }))),
    "drop",
  ],
  [
    "a reply from any port",
    bytes(ethernet(IP), ipv4(udp({ source: 999, destination: 68 }))),
    "drop",
  ],
  ["behind IPv4 options", bytes(ethernet(IP), ipv4(REPLY, { options: 40 })), "drop"],
  ["its first fragment", bytes(ethernet(IP), ipv4(REPLY, { fragment: 0x2000 })), "drop"],
  ["a later fragment", bytes(ethernet(IP), ipv4(REPLY, { fragment: 0x2001 })), "pass"],
  ["DNS", bytes(ethernet(IP), ipv4(DNS)), "pass"],
  ["DNS behind IPv4 options", bytes(ethernet(IP), ipv4(DNS, { options: 8 })), "pass"],
  ["TCP to port 67", bytes(ethernet(IP), ipv4(REPLY, { protocol: 6 })), "pass"],
  ["ARP", bytes(ethernet(ARP), new Uint8Array(28)), "pass"],
  ["behind a VLAN tag", bytes(ethernet(IP, undefined, [VLAN]), ipv4(REPLY)), "drop"],
  ["behind two", bytes(ethernet(IP, undefined, [SERVICE_VLAN, VLAN]), ipv4(REPLY)), "drop"],
  ["DNS behind two", bytes(ethernet(IP, undefined, [VLAN, VLAN]), ipv4(DNS)), "pass"],
  ["DNS behind three", bytes(ethernet(IP, undefined, [VLAN, VLAN, VLAN]), ipv4(DNS)), "drop"],
  ["a DHCPv6 solicitation", bytes(ethernet(IPV6), ipv6(SOLICIT)), "drop"],
  [
    "a DHCPv6 reply",
    bytes(ethernet(IPV6), ipv6(udp({ source: 547, destination: 546 }))),
    "drop",
  ],
  ["DHCPv6 behind a VLAN tag", bytes(ethernet(IPV6, undefined, [VLAN]), ipv6(SOLICIT)), "drop"],
  [
    "DHCPv6 behind an option header",
    bytes(ethernet(IPV6), ipv6(extension(17, SOLICIT, 2), 60)),
    "drop",
  ],
  [
    "DHCPv6 behind four",
    bytes(
      ethernet(IPV6),
      ipv6(extension(43, extension(60, extension(44, extension(17, SOLICIT)))), 0),
    ),
    "drop",
  ],
  [
    "anything behind five",
    bytes(
      ethernet(IPV6),
      ipv6(extension(0, extension(0, extension(0, extension(0, extension(17, DNS))))), 0),
    ),
    "drop",
  ],
  [
    "a later IPv6 fragment",
    bytes(ethernet(IPV6), ipv6(bytes([17, 0, 0, 8, 0, 0, 0, 0], SOLICIT), 44)),
    "pass",
  ],
  ["DNS over IPv6", bytes(ethernet(IPV6), ipv6(DNS)), "pass"],
  ["DNS behind an option header", bytes(ethernet(IPV6), ipv6(extension(17, DNS), 0)), "pass"],
  ["ICMPv6", bytes(ethernet(IPV6), ipv6(new Uint8Array(8), 58)), "pass"],
  [
    "MLD behind hop by hop",
    bytes(ethernet(IPV6), ipv6(extension(58, new Uint8Array(8)), 0)),
    "pass",
  ],
  ["IPv6 with nothing in it", bytes(ethernet(IPV6), ipv6(new Uint8Array(0), 59)), "pass"],
  ["a cut IPv4 header", bytes(ethernet(IP), ipv4(DNS)).subarray(0, 20), "too short"],
  ["a cut UDP header", bytes(ethernet(IP), ipv4(DNS)).subarray(0, 36), "too short"],
];
