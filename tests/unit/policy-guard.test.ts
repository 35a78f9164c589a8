import { assert, assertEquals } from "@std/assert";
import { ipToBytes } from "../../lib/inet/ip.ts";
import { wireGuard } from "../../lib/vm/wire/guard.ts";
import { linkLocalOf, tapGuard } from "../../lib/vm/wire/guest-guard.ts";
import { MAX_GUARDED_RULES, policyGuard } from "../../lib/vm/wire/policy-guard.ts";
import { runBpf } from "../support/bpf-machine.ts";
import { arp, bytes, ethernet, extension, icmpv6, ipv4, ipv6, udp } from "../support/frames.ts";

const [IP, IPV6, ARP] = [0x0800, 0x86dd, 0x0806];
const [ICMP, TCP, SCTP, ICMPV6, FRAGMENT] = [1, 6, 132, 58, 44];
const [ROUTER_SOLICIT, SOLICIT, ADVERT, MLD] = [133, 135, 136, 143];
const [CONTINUE, DROP] = [-1, 2];

const [GUEST, HOST, OTHER] = ["02:00:00:00:00:0a", "02:74:6b:00:00:01", "02:00:00:00:00:0b"];
const ALL = "ff:ff:ff:ff:ff:ff";
const [OWN, GATEWAY, NEIGHBOUR, FAR] = ["10.5.0.2", "10.5.0.1", "10.5.0.3", "192.0.2.9"];
const [OWN6, GATEWAY6, NEIGHBOUR6] = ["fd00:5::2", "fd00:5::1", "fd00:5::3"];
const FAR6 = "2001:db8::9";
const ADDRESSES = [`${OWN}/24`, `${OWN6}/64`];
const IDENTITY = { mac: GUEST, addresses: [OWN, OWN6], foreign: [GATEWAY, GATEWAY6] };
const DATAGRAM = udp({ source: 5000, destination: 53 }, 24);

type Case = readonly [name: string, frame: Uint8Array, verdict: "pass" | "drop"];

function judge(program: ReturnType<typeof tapGuard>, cases: readonly Case[]): void {
  for (const [name, frame, verdict] of cases) {
    assertEquals(runBpf(program, frame), verdict === "pass" ? CONTINUE : DROP, name);
  }
}

interface Sent {
  readonly from?: string;
  readonly to?: string;
  readonly source?: string;
  readonly payload?: Uint8Array;
  readonly next?: number;
  readonly hop?: number;
}
const to4 = (destination: string, options: Sent = {}) => {
  const { from = GUEST, to = HOST, source = OWN, payload = DATAGRAM, next: protocol = 17 } =
    options;
  return bytes(ethernet(IP, { from, to }), ipv4(payload, { source, destination, protocol }));
};
const to6 = (destination: string, options: Sent = {}) => {
  const { from = GUEST, to = HOST, source = OWN6, payload = DATAGRAM, next = 17 } = options;
  const packet = ipv6(payload, next, source, destination, options.hop ?? 64);
  return bytes(ethernet(IPV6, { from, to }), packet);
};
const asks = (targetIp: string, to = ALL, operation = 1) =>
  bytes(
    ethernet(ARP, { from: GUEST, to }),
    arp({ senderMac: GUEST, senderIp: OWN, targetIp, operation }),
  );
const message = (type: number, target = "::") => icmpv6(type, ipToBytes(target));

const BRIDGE = {
  mac: HOST,
  addresses: [`${GATEWAY}/24`, "10.6.0.1/24", `${GATEWAY6}/64`, `${linkLocalOf(HOST)}/64`],
};
/** Of ff02::1:ff00:1, and of routers. */
const [GROUP, ROUTERS] = ["33:33:ff:00:00:01", "33:33:00:00:00:02"];

Deno.test("policyGuard: an isolated guest sends to the host, and by way of it to no neighbour", () => {
  const policy = policyGuard({ addresses: ADDRESSES, bridge: BRIDGE });
  const solicit = (target: string, hop = 255) => ({
    ...{ to: GROUP, payload: message(SOLICIT, target), next: ICMPV6, hop },
  });
  const report = (hop: number) => ({
    ...{ to: "33:33:00:00:00:16", next: 0, hop, payload: extension(ICMPV6, message(MLD)) },
  });
  const cases: readonly Case[] = [
    ["the gateway", to4(GATEWAY), "pass"],
    ["its other address", to4("10.6.0.1"), "pass"],
    ["far away", to4(FAR), "pass"],
    ["a neighbour by the gateway's MAC", to4(NEIGHBOUR), "drop"],
    ["one of another network on the bridge", to4("10.6.0.9"), "drop"],
    ["a neighbour", to4(NEIGHBOUR, { to: OTHER }), "drop"],
    ["far away by a neighbour's MAC", to4(FAR, { to: OTHER }), "drop"],
    ["all", to4("10.5.0.255", { to: ALL }), "drop"],
    ["all by the gateway's MAC", to4("10.5.0.255"), "drop"],
    ["a group", to4("224.0.0.251", { to: "01:00:5e:00:00:fb" }), "drop"],
    ["an ARP request for the gateway", asks(GATEWAY), "pass"],
    ["one for a neighbour", asks(NEIGHBOUR), "drop"],
    ["one for itself", asks(OWN), "drop"],
    ["an ARP answer to all", asks(GATEWAY, ALL, 2), "drop"],
    ["an ARP answer to the host", asks(GATEWAY, HOST, 2), "pass"],
    ["an ARP request to a neighbour", asks(GATEWAY, OTHER), "drop"],
    ["the gateway over IPv6", to6(GATEWAY6), "pass"],
    ["its link-local address", to6(linkLocalOf(HOST)), "pass"],
    ["far away over IPv6", to6(FAR6), "pass"],
    ["a neighbour over IPv6", to6(NEIGHBOUR6), "drop"],
    ["its link-local address by the gateway's MAC", to6(linkLocalOf(OTHER)), "drop"],
    ["far away over IPv6 by a neighbour's MAC", to6(FAR6, { to: OTHER }), "drop"],
    ["a group of IPv6", to6("ff02::fb", { to: "33:33:00:00:00:fb" }), "drop"],
    ["a solicitation of the gateway", to6("ff02::1:ff00:1", solicit(GATEWAY6)), "pass"],
    ["of a neighbour", to6("ff02::1:ff00:1", solicit(NEIGHBOUR6)), "drop"],
    ["of the gateway, to be routed", to6("ff02::1:ff00:1", solicit(GATEWAY6, 64)), "drop"],
    ["of the gateway, to another group", to6("ff02::fb", solicit(GATEWAY6)), "drop"],
    ["of the gateway, to a neighbour", to6(NEIGHBOUR6, solicit(GATEWAY6)), "drop"],
    [
      "a router solicitation",
      to6("ff02::2", { to: ROUTERS, payload: message(ROUTER_SOLICIT), next: ICMPV6, hop: 255 }),
      "drop",
    ],
    [
      "an advertisement to all",
      to6("ff02::1", { to: "33:33:00:00:00:01", payload: message(ADVERT, OWN6), next: ICMPV6 }),
      "drop",
    ],
    [
      "an advertisement to the host",
      to6(GATEWAY6, { payload: message(ADVERT, OWN6), next: ICMPV6 }),
      "pass",
    ],
    ["a listener report", to6("ff02::16", report(1)), "pass"],
    ["one with another hop limit", to6("ff02::16", report(2)), "drop"],
    ["one to a wider group", to6("ff05::16", report(1)), "drop"],
    ["another's IPv4 address", to4(FAR, { source: NEIGHBOUR }), "drop"],
  ];
  judge(tapGuard(IDENTITY, policy), cases);
  // One that may take other addresses is isolated all the same.
  judge(tapGuard(undefined, policy), cases.slice(0, -1));
  judge(tapGuard(undefined, policy), [[
    "another's address",
    to4(FAR, { source: NEIGHBOUR }),
    "pass",
  ]]);
});

Deno.test("policyGuard: to an isolated guest comes what the host sends, and of no neighbour", () => {
  const policy = policyGuard({ addresses: ADDRESSES, bridge: BRIDGE });
  const of4 = (source: string, from = HOST, to = GUEST) => to4(OWN, { source, from, to });
  const of6 = (source: string, from = HOST) => to6(OWN6, { source, from, to: GUEST });
  const arpOf = (senderIp: string, from = HOST) =>
    bytes(ethernet(ARP, { from, to: GUEST }), arp({ senderMac: from, senderIp, targetIp: OWN }));
  const cases: readonly Case[] = [
    ["the gateway", of4(GATEWAY), "pass"],
    ["far away", of4(FAR), "pass"],
    ["itself, translated", of4(OWN, GUEST), "pass"],
    ["itself, routed", of4(OWN), "pass"],
    ["a neighbour that was routed", of4(NEIGHBOUR), "drop"],
    ["one of another network on the bridge", of4("10.6.0.9"), "drop"],
    ["a neighbour", of4(NEIGHBOUR, OTHER), "drop"],
    ["the gateway's address of a neighbour", of4(GATEWAY, OTHER), "drop"],
    ["a far address of a neighbour", of4(FAR, OTHER), "drop"],
    ["its own frames, reflected", of4(OWN, GUEST, OTHER), "drop"],
    ["an ARP request of the host", arpOf(GATEWAY), "pass"],
    ["of a neighbour", arpOf(NEIGHBOUR, OTHER), "drop"],
    ["of a neighbour as the host", arpOf(NEIGHBOUR), "drop"],
    ["the gateway over IPv6", of6(GATEWAY6), "pass"],
    ["its link-local address", of6(linkLocalOf(HOST)), "pass"],
    ["far away over IPv6", of6(FAR6), "pass"],
    ["a neighbour over IPv6", of6(NEIGHBOUR6, OTHER), "drop"],
    ["one that was routed", of6(NEIGHBOUR6), "drop"],
    ["a neighbour's link-local address", of6(linkLocalOf(OTHER)), "drop"],
    [
      "DHCP of the host",
      to4(OWN, {
        ...{
          source: GATEWAY,
          from: HOST,
          to: GUEST,
          payload: udp({ source: 67, destination: 68 }),
        },
      }),
      "drop",
    ],
  ];
  judge(wireGuard(GUEST, { policy }), cases);
});

const tcp = (flags: number) => bytes(new Uint8Array(12), 0x50, flags, new Uint8Array(6));
const [SYN, ACK, RST, FIN] = [0x02, 0x10, 0x04, 0x01];
const restricted = (
  rules: readonly (readonly [action: "allow" | "deny", prefix: string])[],
  { reachable = false, udp = [], sctp = [] }: {
    reachable?: boolean;
    udp?: readonly (readonly [number, number])[];
    sctp?: readonly (readonly [number, number])[];
  } = {},
) =>
  tapGuard(
    IDENTITY,
    policyGuard({
      addresses: ADDRESSES,
      egress: {
        rules: rules.map(([action, prefix]) => ({ action, prefix })),
        askers: [GATEWAY, GATEWAY6, "198.51.100.0/24"],
        ...{ reachable, udp, sctp },
      },
    }),
  );
const ALL_DENIED = [["deny", "0.0.0.0/0"], ["deny", "::/0"]] as const;

Deno.test("policyGuard: what opens a connection to where that is denied is dropped, answers pass", () => {
  const later = { payload: bytes([ICMPV6, 0, 1, 1, 0, 0, 0, 1], DATAGRAM), next: FRAGMENT };
  const first = (next: number, payload: Uint8Array) => ({
    ...{ payload: bytes([next, 0, 0, 1, 0, 0, 0, 1], payload), next: FRAGMENT },
  });
  const cases: readonly Case[] = [
    ["TCP", to4(FAR, { next: TCP, payload: tcp(SYN) }), "drop"],
    ["TCP with odd flags", to4(FAR, { next: TCP, payload: tcp(SYN | RST | FIN) }), "drop"],
    ["TCP without any", to4(FAR, { next: TCP, payload: tcp(0) }), "drop"],
    ["a TCP answer", to4(FAR, { next: TCP, payload: tcp(SYN | ACK) }), "pass"],
    ["TCP that goes on", to4(FAR, { next: TCP, payload: tcp(ACK) }), "pass"],
    ["TCP that is refused", to4(FAR, { next: TCP, payload: tcp(RST) }), "pass"],
    ["cut TCP", to4(FAR, { next: TCP, payload: tcp(ACK).subarray(0, 13) }), "drop"],
    ["UDP", to4(FAR), "drop"],
    ["an echo request", to4(FAR, { next: ICMP, payload: bytes([8, 0, 0, 0, 0, 0, 0, 0]) }), "drop"],
    ["an echo answer", to4(FAR, { next: ICMP, payload: bytes([0, 0, 0, 0, 0, 0, 0, 0]) }), "drop"],
    ["unreachable", to4(FAR, { next: ICMP, payload: bytes([3, 3, 0, 0, 0, 0, 0, 0]) }), "pass"],
    ["SCTP", to4(FAR, { next: SCTP }), "drop"],
    ["ICMPv6 over IPv4", to4(FAR, { next: ICMPV6, payload: message(1) }), "drop"],
    ["another protocol", to4(FAR, { next: 47 }), "drop"],
    ["TCP over IPv6", to6(FAR6, { next: TCP, payload: tcp(SYN) }), "drop"],
    ["a TCP answer over IPv6", to6(FAR6, { next: TCP, payload: tcp(SYN | ACK) }), "pass"],
    ["TCP behind a header", to6(FAR6, { next: 60, payload: extension(TCP, tcp(SYN)) }), "drop"],
    ["TCP in a fragment", to6(FAR6, first(TCP, tcp(SYN))), "drop"],
    ["UDP over IPv6", to6(FAR6), "drop"],
    ["ICMP over IPv6", to6(FAR6, { next: ICMP, payload: bytes([3, 0, 0, 0]) }), "drop"],
    ["an echo request over IPv6", to6(FAR6, { next: ICMPV6, payload: message(128) }), "drop"],
    ["too big", to6(FAR6, { next: ICMPV6, payload: message(2) }), "pass"],
    ["a later fragment of ICMPv6", to6(FAR6, later), "drop"],
    ...[ROUTER_SOLICIT, SOLICIT, ADVERT, MLD].map((type): Case => [
      `ICMPv6 type ${type}`,
      to6(FAR6, { next: ICMPV6, payload: message(type, OWN6), hop: 255 }),
      "drop",
    ]),
    ["no next header", to6(FAR6, { next: 59 }), "drop"],
    // To the host what it may have asked for, to neighbours all.
    ["TCP to the host", to4(GATEWAY, { next: TCP, payload: tcp(SYN) }), "drop"],
    ["UDP to the host", to4(GATEWAY), "pass"],
    ["an echo answer to it", to4(GATEWAY, { next: ICMP, payload: bytes([0, 0, 0, 0]) }), "pass"],
    ["an echo request to it", to4(GATEWAY, { next: ICMP, payload: bytes([8, 0, 0, 0]) }), "drop"],
    ["UDP to who may ask", to4("198.51.100.9"), "pass"],
    ["TCP to who may ask", to4("198.51.100.9", { next: TCP, payload: tcp(SYN) }), "drop"],
    ["UDP beside them", to4("198.51.101.9"), "drop"],
    ["TCP to a neighbour", to4(NEIGHBOUR, { next: TCP, payload: tcp(SYN) }), "pass"],
    ["TCP to the host over IPv6", to6(GATEWAY6, { next: TCP, payload: tcp(SYN) }), "drop"],
    ["TCP to a link-local one", to6("fe80::9", { next: TCP, payload: tcp(SYN) }), "drop"],
    ["UDP to a link-local one", to6("fe80::9"), "pass"],
    [
      "an advertisement to it",
      to6("fe80::9", { next: ICMPV6, payload: message(ADVERT, OWN6), hop: 255 }),
      "pass",
    ],
    [
      "one to be routed",
      to6("fe80::9", { next: ICMPV6, payload: message(ADVERT, OWN6), hop: 64 }),
      "drop",
    ],
    [
      "a solicitation",
      to6("ff02::1:ff00:1", { next: ICMPV6, payload: message(SOLICIT), hop: 255 }),
      "pass",
    ],
    ["a wider group", to6("ff05::1:3"), "drop"],
    ["mDNS", to4("224.0.0.251"), "pass"],
    ["a wider IPv4 group", to4("239.1.1.1"), "drop"],
    ["ARP", asks(GATEWAY), "pass"],
    ["another's address", to4(NEIGHBOUR, { source: FAR }), "drop"],
    ["DHCP", to4(NEIGHBOUR, { payload: udp({ source: 68, destination: 67 }) }), "drop"],
  ];
  judge(restricted(ALL_DENIED), cases);
  // Published ports and networks that are reached by routing are answered.
  const sctpOf = (source: number) => bytes([source >> 8, source & 0xff], new Uint8Array(12));
  const published = { udp: [[53, 53], [5000, 5009]], sctp: [[9899, 9899]] } as const;
  const ofPort = (source: number) => ({ payload: udp({ source, destination: 53 }, 24) });
  judge(restricted(ALL_DENIED, published), [
    ...[53, 5000, 5009].map((port): Case => [`UDP of ${port}`, to4(FAR, ofPort(port)), "pass"]),
    ...[52, 54, 4999, 5010].map((port): Case => [`UDP of ${port}`, to4(FAR, ofPort(port)), "drop"]),
    ["UDP over IPv6", to6(FAR6, ofPort(53)), "pass"],
    ["SCTP", to4(FAR, { next: SCTP, payload: sctpOf(9899) }), "pass"],
    ["SCTP of another port", to4(FAR, { next: SCTP, payload: sctpOf(53) }), "drop"],
    ["TCP", to4(FAR, { next: TCP, payload: tcp(SYN) }), "drop"],
  ]);
  judge(restricted(ALL_DENIED, { reachable: true }), [
    ["UDP", to4(FAR), "pass"],
    ["another protocol", to4(FAR, { next: 47 }), "pass"],
    ["an echo answer", to4(FAR, { next: ICMP, payload: bytes([0, 0, 0, 0]) }), "pass"],
    ["an echo request", to4(FAR, { next: ICMP, payload: bytes([8, 0, 0, 0]) }), "drop"],
    ["a later fragment of ICMPv6", to6(FAR6, later), "pass"],
    ["TCP", to4(FAR, { next: TCP, payload: tcp(SYN) }), "drop"],
    ["TCP over IPv6", to6(FAR6, { next: TCP, payload: tcp(SYN) }), "drop"],
  ]);
});

Deno.test("policyGuard: the longest prefix decides, and of two equal ones the exception", () => {
  const program = restricted([
    ["deny", "0.0.0.0/0"],
    ["allow", "192.0.2.0/24"],
    ["deny", "192.0.2.8/31"],
    ["deny", "192.0.2.16/28"],
    ["allow", "192.0.2.16/28"],
    ["deny", "2001:db8::/33"],
    ["allow", "2001:db8::9/128"],
  ]);
  judge(program, [
    ["nothing else", to4("203.0.113.1"), "drop"],
    ["allowed", to4("192.0.2.1"), "pass"],
    ["denied of it", to4("192.0.2.9"), "drop"],
    ["beside that", to4("192.0.2.10"), "pass"],
    ["both", to4("192.0.2.17"), "pass"],
    ["IPv6 denied", to6("2001:db8:7fff::1"), "drop"],
    ["beside that", to6("2001:db8:8000::1"), "pass"],
    ["allowed of it", to6("2001:db8::9"), "pass"],
    ["no rule", to6("2001:db9::1"), "pass"],
  ]);
});

Deno.test("policyGuard: has room for as many rules as it takes", () => {
  const rules = Array.from(
    { length: MAX_GUARDED_RULES },
    (_, index) => ["deny", `2001:db8:${index}::/127`] as const,
  );
  const ports = Array.from(
    { length: 64 },
    (_, index) => [3 * index + 1000, 3 * index + 1001] as const,
  );
  const program = restricted(rules, { udp: ports, sctp: ports });
  assert(program.length < 4096, "what the kernel takes");
  judge(program, [
    ["first", to6("2001:db8::1"), "drop"],
    ["last", to6(`2001:db8:${MAX_GUARDED_RULES - 1}::1`), "drop"],
    ["beside it", to6(`2001:db8:${MAX_GUARDED_RULES - 1}::2`), "pass"],
    ["of a port", to6("2001:db8::1", { payload: udp({ source: 1189, destination: 1 }) }), "pass"],
  ]);
});
