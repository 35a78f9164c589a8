import { assertEquals } from "@std/assert";
import { dhcpSocketFilter } from "../../lib/dhcp/filter.ts";
import { runBpf } from "../support/bpf-machine.ts";
import { bytes, ethernet, ipv4, ipv6, udp } from "../support/frames.ts";
import { GUARD_CASES } from "../support/guard-cases.ts";
import { Random } from "../support/random.ts";
import { readGolden } from "../golden/read.ts";

const [IP, IPV6] = [0x0800, 0x86dd];
const REQUEST = udp({ source: 68, destination: 67 });
const REPLY = udp({ source: 67, destination: 68 });

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

Deno.test("dhcpSocketFilter: ends on any bytes, with a verdict it knows", () => {
  const random = new Random(67);
  for (let round = 0; round < 5000; round++) {
    const seed = GUARD_CASES[random.below(GUARD_CASES.length)]![1];
    const frame = round % 2 === 0 ? random.bytes(14 + random.below(100)) : random.damage(seed);
    assertEquals([0, 0x40000].includes(runBpf(dhcpSocketFilter(), frame)), true);
  }
});
