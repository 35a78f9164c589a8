import { assert, assertEquals, assertThrows } from "@std/assert";
import { InputError } from "../../lib/errors.ts";
import { ipToBytes } from "../../lib/inet/ip.ts";
import { parseMac } from "../../lib/inet/mac.ts";
import { wireGuard } from "../../lib/vm/wire/guard.ts";
import { type GuestIdentity, linkLocalOf, tapGuard } from "../../lib/vm/wire/guest-guard.ts";
import { plainGuards } from "../../lib/vm/wire/plain-guards.ts";
import { readGolden } from "../golden/read.ts";
import { runBpf } from "../support/bpf-machine.ts";
import { arp, bytes, ethernet, extension, icmpv6, ipv4, ipv6, udp } from "../support/frames.ts";
import { GUARD_CASES } from "../support/guard-cases.ts";
import { Random } from "../support/random.ts";

const [IP, IPV6, ARP, VLAN] = [0x0800, 0x86dd, 0x0806, 0x8100];
const CONTINUE = -1;
const DROP = 2;
const NOT_CARRIED = 0;
const TO_HOST = 0;

const REQUEST = udp({ source: 68, destination: 67 });

const GUEST = "02:00:00:00:00:0a";
const OTHER = "02:00:00:00:00:0b";
const ALL = "ff:ff:ff:ff:ff:ff";

Deno.test("tapGuard, wireGuard: drop DHCP and, of what is guarded against, nothing else", () => {
  for (const [name, frame, verdict] of GUARD_CASES) {
    const result = { pass: CONTINUE, drop: DROP, "too short": NOT_CARRIED }[verdict];
    assertEquals(runBpf(wireGuard(GUEST), frame), result, `${name}, at the wire`);
    const tagged = [0x8100, 0x88a8].includes(frame[12]! << 8 | frame[13]!);
    assertEquals(runBpf(tapGuard(), frame), tagged ? DROP : result, name);
  }
});

Deno.test("tapGuard: drops what real clients send", () => {
  for (const client of ["udhcpc", "dhclient", "dhcpcd"]) {
    for (const frame of readGolden(client, "dhcp")) assertEquals(runBpf(tapGuard(), frame), DROP);
  }
});

Deno.test("wireGuard: drops the guest's own frames to others, as a hairpin port reflects them", () => {
  const cases: readonly [from: string, to: string, result: number][] = [
    [GUEST, ALL, DROP],
    [GUEST, OTHER, DROP],
    [GUEST, "02:00:00:00:01:0a", DROP],
    [GUEST, GUEST, CONTINUE],
    [OTHER, GUEST, CONTINUE],
    [OTHER, ALL, CONTINUE],
    ["02:00:00:00:01:0a", OTHER, CONTINUE],
  ];
  for (const [from, to, result] of cases) {
    const frame = bytes(ethernet(ARP, { from, to }), new Uint8Array(28));
    assertEquals(runBpf(wireGuard(GUEST), frame), result, `${from} to ${to}`);
    assertEquals(runBpf(tapGuard(), frame), CONTINUE);
  }
  const translated = bytes(ethernet(IP, { from: GUEST, to: GUEST }), ipv4(REQUEST));
  assertEquals(runBpf(wireGuard(GUEST), translated), DROP);
});

Deno.test("wireGuard: leaves whole answers of servers to the host where it leases the addresses", () => {
  const program = wireGuard(GUEST, { leased: true });
  const answers = ["a DHCP reply", "a reply from any port", "behind IPv4 options"];
  for (const [name, frame, verdict] of GUARD_CASES) {
    const other = { pass: CONTINUE, drop: DROP, "too short": NOT_CARRIED }[verdict];
    assertEquals(runBpf(program, frame), answers.includes(name) ? TO_HOST : other, name);
  }
  const answer = ipv4(udp({ source: 67, destination: 68 }));
  const between = (from: string, to: string) => bytes(ethernet(IP, { from, to }), answer);
  assertEquals(runBpf(program, between(OTHER, GUEST)), TO_HOST);
  assertEquals(runBpf(program, between(OTHER, ALL)), TO_HOST);
  assertEquals(runBpf(program, between(GUEST, ALL)), DROP, "reflected");
});

Deno.test("wireGuard: takes any unicast MAC, refuses others", () => {
  const frame = bytes(ethernet(ARP, { from: "fe:ff:ff:ff:ff:ff", to: OTHER }));
  assertEquals(runBpf(wireGuard("FE:FF:FF:FF:FF:FF"), frame), DROP);
  assertThrows(() => wireGuard("01:00:5e:00:00:01"), InputError);
});

const IDENTITY = {
  mac: GUEST,
  addresses: ["192.0.2.10", "198.51.100.10", "2001:db8::10", "2001:db8:1::10"],
  foreign: ["fe80::1", "192.0.2.1"],
};
const MACS = { from: GUEST, to: OTHER };
const [RS, RA, NS, NA, REDIRECT, MLD] = [133, 134, 135, 136, 137, 143];
const DNS = udp({ source: 5353, destination: 53 });
/** Of the MAC, and another one. */
const [LINK_LOCAL, OTHER_LOCAL] = ["fe80::ff:fe00:a", "fe80::7"];

const frame4 = (source: string, payload = DNS, options = {}) =>
  bytes(ethernet(IP, MACS), ipv4(payload, { ...options, source }));
const frame6 = (source: string, payload = DNS, next = 17) =>
  bytes(ethernet(IPV6, MACS), ipv6(payload, next, source));
const frameArp = (sender: string, options: Parameters<typeof arp>[0] = {}) =>
  bytes(ethernet(ARP, MACS), arp({ senderMac: GUEST, senderIp: sender, ...options }));
const icmp = (type: number, target = "::") => icmpv6(type, ipToBytes(target));
const fragment = (next: number, payload: Uint8Array, bits: number, reserved = 0) =>
  bytes([next, reserved, bits >> 8, bits & 0xff, 0, 0, 0, 1], payload);
const hidden = (depth: number, payload: Uint8Array, last = 58): Uint8Array<ArrayBuffer> =>
  depth === 0
    ? bytes(payload)
    : extension(depth === 1 ? last : 60, hidden(depth - 1, payload, last));
const authentication = (next: number, payload: Uint8Array) =>
  bytes([next, 4, 0, 0], new Uint8Array(20), payload);

type Case = readonly [name: string, frame: Uint8Array, verdict: "pass" | "drop"];

const OWN_CASES: readonly Case[] = [
  ["IPv4", frame4("192.0.2.10"), "pass"],
  ["IPv4 from its second address", frame4("198.51.100.10"), "pass"],
  ["IPv4 from another's address", frame4("192.0.2.11"), "drop"],
  ["IPv4 from the gateway's", frame4("192.0.2.1"), "drop"],
  ["IPv4 from nobody", frame4("0.0.0.0"), "drop"],
  ["DHCP from nobody", frame4("0.0.0.0", REQUEST), "drop"],
  ["DHCP from its address", frame4("192.0.2.10", REQUEST), "drop"],
  ["a later fragment of another's", frame4("192.0.2.11", DNS, { fragment: 5 }), "drop"],
  ["a later fragment of its own", frame4("192.0.2.10", DNS, { fragment: 5 }), "pass"],
  ["IPv6", frame6("2001:db8::10"), "pass"],
  ["IPv6 from its second address", frame6("2001:db8:1::10"), "pass"],
  ["IPv6 from a link-local one", frame6(LINK_LOCAL), "pass"],
  ["IPv6 from another link-local one", frame6(OTHER_LOCAL), "drop"],
  ["IPv6 from a neighbour's", frame6(linkLocalOf(OTHER)), "drop"],
  ["IPv6 from the end of fe80::/10", frame6("febf::1"), "drop"],
  ["IPv6 from behind it", frame6("fec0::1"), "drop"],
  ["IPv6 from nobody", frame6("::"), "drop"],
  ["an echo request from nobody", frame6("::", icmp(128), 58), "drop"],
  ["a fragment from nobody", frame6("::", fragment(17, DNS, 0x0101), 44), "drop"],
  ["TCP from nobody", frame6("::", DNS, 6), "drop"],
  ["IPv6 from another's address", frame6("2001:db8::11"), "drop"],
  ["IPv6 from the gateway's link-local one", frame6("fe80::1"), "drop"],
  ["IPv6 from a mapped one", frame6("::ffff:192.0.2.10"), "drop"],
  ["ARP request", frameArp("192.0.2.10"), "pass"],
  ["ARP answer", frameArp("198.51.100.10", { operation: 2 }), "pass"],
  ["ARP answer for another", frameArp("192.0.2.1", { operation: 2 }), "drop"],
  ["ARP request as another", frameArp("192.0.2.1"), "drop"],
  ["ARP probe", frameArp("0.0.0.0", { targetIp: "192.0.2.10" }), "pass"],
  ["ARP probe for another's", frameArp("0.0.0.0", { targetIp: "192.0.2.11" }), "drop"],
  ["ARP answer of nobody", frameArp("0.0.0.0", { operation: 2 }), "drop"],
  ["ARP with another's MAC in it", frameArp("192.0.2.10", { senderMac: OTHER }), "drop"],
  ["ARP of another hardware", frameArp("192.0.2.10", { hardware: 6 }), "drop"],
  ["an IGMP report", frame4("192.0.2.10", new Uint8Array(8).fill(0x22), { protocol: 2 }), "pass"],
  ["a router solicitation", frame6(LINK_LOCAL, icmp(RS), 58), "pass"],
  ["a router solicitation of nobody", frame6("::", icmp(RS), 58), "pass"],
  ["a router advertisement", frame6(LINK_LOCAL, icmp(RA), 58), "drop"],
  ["a redirect", frame6(LINK_LOCAL, icmp(REDIRECT), 58), "drop"],
  ["an echo request", frame6("2001:db8::10", icmp(128), 58), "pass"],
  ["a neighbour solicitation", frame6(LINK_LOCAL, icmp(NS, "2001:db8::1"), 58), "pass"],
  ["duplicate detection", frame6("::", icmp(NS, "2001:db8::10"), 58), "pass"],
  ["duplicate detection, link-local", frame6("::", icmp(NS, LINK_LOCAL), 58), "pass"],
  ["duplicate detection, another link-local", frame6("::", icmp(NS, OTHER_LOCAL), 58), "drop"],
  ["an advertisement of nobody", frame6("::", icmp(NA, LINK_LOCAL), 58), "pass"],
  ["duplicate detection of another's", frame6("::", icmp(NS, "2001:db8::11"), 58), "drop"],
  ["a neighbour advertisement", frame6(LINK_LOCAL, icmp(NA, "2001:db8:1::10"), 58), "pass"],
  ["one of its link-local address", frame6(LINK_LOCAL, icmp(NA, LINK_LOCAL), 58), "pass"],
  ["one of another link-local", frame6(LINK_LOCAL, icmp(NA, OTHER_LOCAL), 58), "drop"],
  ["one from another link-local", frame6(OTHER_LOCAL, icmp(NA, "2001:db8::10"), 58), "drop"],
  ["MLD from another link-local", frame6(OTHER_LOCAL, hidden(1, icmp(MLD)), 0), "drop"],
  ["one for another", frame6("2001:db8::10", icmp(NA, "2001:db8::1"), 58), "drop"],
  ["one for the gateway's link-local", frame6(LINK_LOCAL, icmp(NA, "fe80::1"), 58), "drop"],
  ["MLD", frame6(LINK_LOCAL, hidden(1, icmp(MLD)), 0), "pass"],
  ["MLD of nobody", frame6("::", hidden(1, icmp(MLD)), 0), "pass"],
  ["an advertisement behind one header", frame6(LINK_LOCAL, hidden(1, icmp(RA)), 60), "drop"],
  ["behind four", frame6(LINK_LOCAL, hidden(4, icmp(RA)), 0), "drop"],
  ["behind five", frame6(LINK_LOCAL, hidden(5, icmp(RA)), 60), "drop"],
  ["anything behind five", frame6(LINK_LOCAL, hidden(5, DNS, 17), 60), "drop"],
  ["behind a long header", frame6(LINK_LOCAL, extension(58, icmp(RA), 9), 60), "drop"],
  ["behind authentication", frame6(LINK_LOCAL, authentication(58, icmp(RA)), 51), "drop"],
  ["an echo behind authentication", frame6(LINK_LOCAL, authentication(58, icmp(128)), 51), "pass"],
  ["in an only fragment", frame6(LINK_LOCAL, fragment(58, icmp(RA), 0), 44), "drop"],
  ["in a first fragment", frame6(LINK_LOCAL, fragment(58, icmp(RA), 1), 44), "drop"],
  [
    "in a fragment with its reserved byte set",
    frame6(LINK_LOCAL, fragment(58, icmp(RA), 1, 7), 44),
    "drop",
  ],
  [
    "behind a fragment that ends before it",
    frame6(LINK_LOCAL, fragment(58, new Uint8Array(0), 1), 44),
    "drop",
  ],
  [
    "behind a fragment that ends in an option header",
    frame6(LINK_LOCAL, fragment(60, extension(58, new Uint8Array(0)), 1), 44),
    "drop",
  ],
  [
    "behind a fragment that ends before an option header",
    frame6(LINK_LOCAL, fragment(60, new Uint8Array(0), 1), 44),
    "drop",
  ],
  [
    "a target beyond a first fragment",
    frame6(LINK_LOCAL, fragment(58, icmp(NA, "2001:db8::10").subarray(0, 16), 1), 44),
    "drop",
  ],
  ["a later fragment", frame6(LINK_LOCAL, fragment(58, icmp(RA), 0x0101), 44), "pass"],
  ["a later fragment of another's", frame6("2001:db8::2", fragment(17, DNS, 0x0101), 44), "drop"],
  ["TCP in a first fragment", frame6(LINK_LOCAL, fragment(6, DNS, 1), 44), "pass"],
  ["another's MAC", bytes(ethernet(IP, { from: OTHER, to: ALL }), ipv4(DNS)), "drop"],
  [
    "ARP from another's MAC",
    bytes(
      ethernet(ARP, { from: OTHER, to: ALL }),
      arp({ senderMac: GUEST, senderIp: "192.0.2.10" }),
    ),
    "drop",
  ],
  [
    "behind a VLAN tag",
    bytes(ethernet(IP, MACS, [VLAN]), ipv4(DNS, { source: "192.0.2.10" })),
    "drop",
  ],
  ["the spanning tree's", bytes(ethernet(38, MACS), new Uint8Array(38)), "drop"],
  ["another protocol", bytes(ethernet(0x88cc, MACS), new Uint8Array(40)), "drop"],
];

Deno.test("tapGuard: lets a guest speak for itself, and for nobody else", () => {
  const program = tapGuard(IDENTITY);
  for (const [name, frame, verdict] of OWN_CASES) {
    assertEquals(runBpf(program, frame), verdict === "pass" ? CONTINUE : DROP, name);
  }
  const own = frame4("192.0.2.10");
  assertEquals(runBpf(program, own, { vlanTag: true }), DROP, "a tag the kernel took off");
});

Deno.test("linkLocalOf: the modified EUI-64 of a MAC", () => {
  assertEquals(linkLocalOf("02:00:00:00:00:0a"), "fe80::ff:fe00:a");
  assertEquals(linkLocalOf("52:54:00:12:34:56"), "fe80::5054:ff:fe12:3456");
  assertEquals(linkLocalOf("00:25:96:12:34:56"), "fe80::225:96ff:fe12:3456");
});

Deno.test("tapGuard: another link-local address, or any, of a guest that does not take the MAC's", () => {
  const named = tapGuard({ ...IDENTITY, linkLocal: OTHER_LOCAL });
  const any = tapGuard({ ...IDENTITY, linkLocal: "any" });
  for (
    const [address, ofNamed, ofAny] of [
      [LINK_LOCAL, CONTINUE, CONTINUE],
      [OTHER_LOCAL, CONTINUE, CONTINUE],
      ["fe80::8", DROP, CONTINUE],
      // Of the gateway.
      ["fe80::1", DROP, DROP],
    ] as const
  ) {
    const frames = [
      frame6(address),
      frame6(LINK_LOCAL, icmp(NA, address), 58),
      frame6("::", icmp(NS, address), 58),
    ];
    for (const frame of frames) {
      assertEquals(runBpf(named, frame), ofNamed, address);
      assertEquals(runBpf(any, frame), ofAny, address);
    }
  }
});

Deno.test("tapGuard: drops what the DHCP guard drops, whoever sends it", () => {
  for (const [name, frame, verdict] of GUARD_CASES) {
    if (verdict !== "drop") continue;
    const own = bytes(parseMac(OTHER), parseMac(GUEST), frame.subarray(12));
    for (const guest of [IDENTITY, NAMELESS, undefined]) {
      assertEquals(runBpf(tapGuard(guest), own), DROP, name);
    }
  }
});

/** What is said by no guest, whether or not its address is known, or it may take others'. */
const OFFICIAL: readonly (readonly [name: string, frame: Uint8Array])[] = [
  ["the spanning tree's", bytes(ethernet(38, MACS), [0x42, 0x42, 3], new Uint8Array(35))],
  ["PVST's", bytes(ethernet(50, MACS), [0xaa, 0xaa, 3, 0, 0, 0x0c, 1, 0x0b], new Uint8Array(42))],
  ["LLDP", bytes(ethernet(0x88cc, MACS), new Uint8Array(40))],
  ["802.1X", bytes(ethernet(0x888e, MACS), new Uint8Array(40))],
  ["LACP", bytes(ethernet(0x8809, MACS), new Uint8Array(110))],
  ["flow control", bytes(ethernet(0x8808, MACS), new Uint8Array(46))],
  ["MVRP", bytes(ethernet(0x88f5, MACS), new Uint8Array(46))],
  ["RARP", bytes(ethernet(0x8035, MACS), new Uint8Array(46))],
  ["IPv4 behind a VLAN tag", bytes(ethernet(IP, MACS, [VLAN]), ipv4(DNS))],
  ["ARP behind two", bytes(ethernet(ARP, MACS, [0x88a8, VLAN]), new Uint8Array(28))],
  ["a router advertisement", frame6(LINK_LOCAL, icmp(RA), 58)],
  ["one behind four headers", frame6(LINK_LOCAL, hidden(4, icmp(RA)), 0)],
  ["one behind five headers", frame6(LINK_LOCAL, hidden(5, icmp(RA)), 0)],
  ["one in a first fragment", frame6(LINK_LOCAL, fragment(58, icmp(RA), 1), 44)],
  ["a redirect", frame6(LINK_LOCAL, icmp(REDIRECT), 58)],
  ["an MLD query", frame6(LINK_LOCAL, hidden(1, icmp(130)), 0)],
  ["a multicast router's advertisement", frame6(LINK_LOCAL, hidden(1, icmp(151)), 0)],
  ["an IGMP query", frame4("192.0.2.10", bytes([0x11, 0, 0, 0, 0, 0, 0, 0]), { protocol: 2 })],
  [
    "an IGMP query behind an option",
    frame4("192.0.2.10", bytes([0x11, 0, 0, 0, 0, 0, 0, 0]), { protocol: 2, options: 4 }),
  ],
  ["PIM", frame4("192.0.2.10", bytes([0x20, 0, 0, 0]), { protocol: 103 })],
];
const NAMELESS = { mac: GUEST, addresses: [] };

Deno.test("tapGuard: no guest speaks as a switch or a router", () => {
  for (const guest of [IDENTITY, NAMELESS, { ...NAMELESS, linkLocal: "any" }, undefined]) {
    for (const [name, frame] of OFFICIAL) assertEquals(runBpf(tapGuard(guest), frame), DROP, name);
    const tagged = runBpf(tapGuard(guest), frame4("192.0.2.10"), { vlanTag: true });
    assertEquals(tagged, DROP);
  }
});

Deno.test("tapGuard: of a guest without a known address leaves out what needs one", () => {
  const program = tapGuard(NAMELESS);
  const cases: readonly Case[] = [
    ["IPv4", frame4("203.0.113.9"), "pass"],
    ["IPv6", frame6("2001:db8:9::1"), "pass"],
    ["ARP", frameArp("203.0.113.9", { operation: 2 }), "pass"],
    ["an advertisement", frame6("2001:db8:9::1", icmp(NA, "2001:db8:9::1"), 58), "pass"],
    ["its link-local address", frame6(LINK_LOCAL, icmp(NA, LINK_LOCAL), 58), "pass"],
    ["duplicate detection", frame6("::", icmp(NS, "2001:db8:9::1"), 58), "pass"],
    ["another MAC", bytes(ethernet(IP, { from: OTHER, to: ALL }), ipv4(DNS)), "drop"],
    ["ARP with another MAC", frameArp("203.0.113.9", { senderMac: OTHER }), "drop"],
    ["ARP of another hardware", frameArp("203.0.113.9", { hardware: 6 }), "drop"],
    ["another link-local address", frame6(OTHER_LOCAL), "drop"],
    ["an advertisement of one", frame6(LINK_LOCAL, icmp(NA, OTHER_LOCAL), 58), "drop"],
    ["nobody's datagram", frame6("::"), "drop"],
  ];
  for (const [name, frame, verdict] of cases) {
    assertEquals(runBpf(program, frame), verdict === "pass" ? CONTINUE : DROP, name);
  }
});

Deno.test("tapGuard: a guest that may take others' names has all of them", () => {
  for (const [name, frame] of OWN_CASES) {
    const official = /advertisement|redirect|behind|fragment|DHCP|VLAN|tree|protocol/.test(name);
    if (!official) assertEquals(runBpf(tapGuard(), frame), CONTINUE, name);
  }
});

Deno.test("tapGuard: a guest of one family has its link-local address at most of the other", () => {
  const only4 = tapGuard({ mac: GUEST, addresses: ["192.0.2.10"] });
  assertEquals(runBpf(only4, frame6("2001:db8::10")), DROP);
  assertEquals(runBpf(only4, frame6(OTHER_LOCAL)), DROP);
  assertEquals(runBpf(only4, frame6(LINK_LOCAL)), CONTINUE);
  const only6 = tapGuard({ mac: GUEST, addresses: ["2001:db8::10"] });
  assertEquals(runBpf(only6, frame4("192.0.2.10")), DROP);
  assertEquals(runBpf(only6, frameArp("192.0.2.10")), DROP);
  assertEquals(runBpf(only6, frameArp("0.0.0.0", { targetIp: "192.0.2.10" })), DROP);
  assertEquals(runBpf(only6, frame6("2001:db8::10")), CONTINUE);
});

Deno.test("tapGuard: has room for many addresses, and refuses malformed ones", () => {
  const addresses = Array.from({ length: 40 }, (_, index) => [
    `192.0.2.${index + 100}`,
    `2001:db8::${index + 100}`,
  ]).flat();
  const program = tapGuard({ mac: GUEST, addresses });
  for (const address of addresses) {
    const frame = address.includes(":") ? frame6(address) : frame4(address);
    assertEquals(runBpf(program, frame), CONTINUE, address);
  }
  assertEquals(runBpf(program, frame4("192.0.2.99")), DROP);
  assert(program.length < 4096, "what the kernel takes");
  assertThrows(() => tapGuard({ mac: "01:00:5e:00:00:01", addresses: [] }), InputError);
});

Deno.test("tapGuard, wireGuard: end on any bytes, with a verdict they know", () => {
  const random = new Random(67);
  const leased = wireGuard(GUEST, { leased: true });
  const programs = [tapGuard(), wireGuard(GUEST), leased, tapGuard(IDENTITY), tapGuard(NAMELESS)];
  const seeds = [...GUARD_CASES, ...OWN_CASES];
  for (let round = 0; round < 5000; round++) {
    const seed = seeds[random.below(seeds.length)]![1];
    const frame = round % 2 === 0 ? random.bytes(14 + random.below(100)) : random.damage(seed);
    for (const program of programs) {
      assertEquals([CONTINUE, NOT_CARRIED, DROP].includes(runBpf(program, frame)), true);
    }
  }
});

Deno.test("plainGuards: filled in, they are what tapGuard and wireGuard assemble", () => {
  const random = new Random(7);
  const byte = () => random.below(256);
  const mac = () =>
    `02:${Array.from({ length: 5 }, () => byte().toString(16).padStart(2, "0")).join(":")}`;
  const v4 = () => `10.${byte()}.${byte()}.${byte()}`;
  const v6 = () => `fd00:${byte().toString(16)}::${(1 + byte()).toString(16)}`;
  const kinds: readonly (() => Partial<GuestIdentity> & Pick<GuestIdentity, "addresses">)[] = [
    () => ({ addresses: [] }),
    () => ({ addresses: [v4()], foreign: [v4()] }),
    () => ({ addresses: [v4()], foreign: [v4()], linkLocal: "any" }),
    () => ({ addresses: [v4(), v6()], foreign: [v4(), v6()] }),
    () => ({ addresses: [v6()], foreign: [v6()], linkLocal: "fe80::1234" }),
    () => ({ addresses: [v6(), v4(), v4()] }),
    // Numbers that are in every program, and the same number twice.
    () => ({ addresses: ["8.6.0.1", "0.0.8.0"], foreign: ["::"] }),
  ];
  for (const kind of kinds) {
    for (const leased of [false, true]) {
      for (let round = 0; round < 4; round++) {
        const guest = { mac: mac(), ...kind() };
        const expected = [tapGuard(guest), wireGuard(guest.mac, { leased })] as const;
        assertEquals(plainGuards(guest, leased), expected);
      }
    }
  }
});
