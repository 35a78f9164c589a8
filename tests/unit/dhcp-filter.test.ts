import { assertEquals, assertThrows } from "@std/assert";
import { dhcpGuard, dhcpSocketFilter, wireGuard } from "../../lib/dhcp/filter.ts";
import { InputError } from "../../lib/errors.ts";
import { runBpf } from "../support/bpf-machine.ts";
import { bytes, ethernet, ipv4, ipv6, udp } from "../support/frames.ts";
import { GUARD_CASES } from "../support/guard-cases.ts";
import { Random } from "../support/random.ts";
import { readGolden } from "../golden/read.ts";

const [IP, IPV6, ARP] = [0x0800, 0x86dd, 0x0806];
const CONTINUE = -1;
const DROP = 2;
const NOT_CARRIED = 0;

const REQUEST = udp({ source: 68, destination: 67 });
const REPLY = udp({ source: 67, destination: 68 });

const GUEST = "02:00:00:00:00:0a";
const OTHER = "02:00:00:00:00:0b";

Deno.test("dhcpGuard, wireGuard: drop DHCP and nothing else", () => {
  for (const [name, frame, verdict] of GUARD_CASES) {
    const result = { pass: CONTINUE, drop: DROP, "too short": NOT_CARRIED }[verdict];
    assertEquals(runBpf(dhcpGuard(), frame), result, name);
    assertEquals(runBpf(wireGuard(GUEST), frame), result, `${name}, at the wire`);
  }
});

Deno.test("dhcpGuard: drops what real clients send", () => {
  for (const client of ["udhcpc", "dhclient", "dhcpcd"]) {
    for (const frame of readGolden(client, "dhcp")) assertEquals(runBpf(dhcpGuard(), frame), DROP);
  }
});

Deno.test("wireGuard: drops the guest's own frames to others, as a hairpin port reflects them", () => {
  const cases: readonly [from: string, to: string, result: number][] = [
    [GUEST, "ff:ff:ff:ff:ff:ff", DROP],
    [GUEST, OTHER, DROP],
    [GUEST, "02:00:00:00:01:0a", DROP],
    [GUEST, GUEST, CONTINUE],
    [OTHER, GUEST, CONTINUE],
    [OTHER, "ff:ff:ff:ff:ff:ff", CONTINUE],
    ["02:00:00:00:01:0a", OTHER, CONTINUE],
  ];
  for (const [from, to, result] of cases) {
    const frame = bytes(ethernet(ARP, { from, to }), new Uint8Array(28));
    assertEquals(runBpf(wireGuard(GUEST), frame), result, `${from} to ${to}`);
    assertEquals(runBpf(dhcpGuard(), frame), CONTINUE);
  }
  const translated = bytes(ethernet(IP, { from: GUEST, to: GUEST }), ipv4(REQUEST));
  assertEquals(runBpf(wireGuard(GUEST), translated), DROP);
});

Deno.test("wireGuard: takes any unicast MAC, refuses others", () => {
  const frame = bytes(ethernet(ARP, { from: "fe:ff:ff:ff:ff:ff", to: OTHER }));
  assertEquals(runBpf(wireGuard("FE:FF:FF:FF:FF:FF"), frame), DROP);
  assertThrows(() => wireGuard("01:00:5e:00:00:01"), InputError);
});

Deno.test("dhcpSocketFilter: wakes for requests that come in, whole and untagged", () => {
  const program = dhcpSocketFilter();
  const request = bytes(ethernet(IP), ipv4(REQUEST));
  const cases: readonly [name: string, result: number][] = [
    ["a request", runBpf(program, request)],
    [
      "from any port",
      runBpf(program, bytes(ethernet(IP), ipv4(udp({ source: 9, destination: 67 })))),
    ],
    ["behind options", runBpf(program, bytes(ethernet(IP), ipv4(REQUEST, { options: 12 })))],
  ];
  for (const [name, result] of cases) assertEquals(result > request.length, true, name);
  const refused: readonly [name: string, result: number][] = [
    ["going out", runBpf(program, request, { packetType: 4 })],
    ["of a VLAN", runBpf(program, request, { vlanTag: true })],
    ["a reply", runBpf(program, bytes(ethernet(IP), ipv4(REPLY)))],
    ["TCP", runBpf(program, bytes(ethernet(IP), ipv4(REQUEST, { protocol: 6 })))],
    ["a first fragment", runBpf(program, bytes(ethernet(IP), ipv4(REQUEST, { fragment: 0x2000 })))],
    ["a last fragment", runBpf(program, bytes(ethernet(IP), ipv4(REQUEST, { fragment: 1 })))],
    ["IPv6", runBpf(program, bytes(ethernet(IPV6), ipv6(REQUEST)))],
    ["cut short", runBpf(program, request.subarray(0, 35))],
  ];
  for (const [name, result] of refused) assertEquals(result, 0, name);
  for (const client of ["udhcpc", "dhclient", "dhcpcd"]) {
    for (const frame of readGolden(client, "dhcp")) {
      assertEquals(runBpf(program, frame) > frame.length, true, client);
    }
  }
});

Deno.test("dhcpGuard, wireGuard, dhcpSocketFilter: end on any bytes, with a verdict they know", () => {
  const random = new Random(67);
  const programs = [dhcpGuard(), wireGuard(GUEST), dhcpSocketFilter()];
  for (let round = 0; round < 5000; round++) {
    const seed = GUARD_CASES[random.below(GUARD_CASES.length)]![1];
    const frame = round % 2 === 0 ? random.bytes(14 + random.below(100)) : random.damage(seed);
    for (const [index, program] of programs.entries()) {
      const verdict = runBpf(program, frame);
      assertEquals((index < 2 ? [-1, 0, 2] : [0, 0x40000]).includes(verdict), true);
    }
  }
});
