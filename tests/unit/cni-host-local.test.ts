import { assertEquals, assertThrows } from "@std/assert";
import {
  capacity,
  formatRange,
  parseHostLocal,
  supportsHostLocal,
} from "../../lib/cni/plugins/host-local-config.ts";
import { CniCode, CniError } from "../../lib/cni/types.ts";
import { InputError } from "../../lib/errors.ts";

type Ipam = Record<string, unknown>;

function parse(ipam: Ipam, extra: Record<string, unknown> = {}, cniArgs = {}) {
  const conf = { type: "bridge", name: "net", ipam: { type: "host-local", ...ipam }, ...extra };
  return parseHostLocal(conf, cniArgs);
}

Deno.test("parseHostLocal: ranges leave out network, broadcast and gateway addresses", () => {
  const cases: [ipam: Ipam, range: string, gateway: string, count: bigint][] = [
    [{ subnet: "10.0.0.0/24" }, "10.0.0.1-10.0.0.254", "10.0.0.1", 253n],
    [{ subnet: "10.0.0.0/30" }, "10.0.0.1-10.0.0.2", "10.0.0.1", 1n],
    [{ subnet: "10.0.0.0/16", gateway: "10.0.9.9" }, "10.0.0.1-10.0.255.254", "10.0.9.9", 65533n],
    [
      { subnet: "10.0.0.0/24", rangeStart: "10.0.0.10", rangeEnd: "10.0.0.20" },
      "10.0.0.10-10.0.0.20",
      "10.0.0.1",
      11n,
    ],
    [{ subnet: "fd00::/64" }, "fd00::1-fd00::ffff:ffff:ffff:ffff", "fd00::1", 2n ** 64n - 2n],
    [{ ranges: [[{ subnet: "10.0.0.0/24" }]] }, "10.0.0.1-10.0.0.254", "10.0.0.1", 253n],
  ];
  for (const [ipam, range, gateway, count] of cases) {
    const [set] = parse(ipam).rangeSets;
    assertEquals(formatRange(set![0]!), range);
    assertEquals(set![0]!.gateway, gateway);
    assertEquals(capacity(set!), count);
  }
});

Deno.test("parseHostLocal: refuses what the reference plugin refuses", () => {
  const cases: [ipam: Ipam, words: string][] = [
    [{}, `no "subnet"`],
    [{ subnet: "10.0.0.0" }, "prefix length"],
    [{ subnet: "10.0.0.0/31" }, "too small"],
    [{ subnet: "10.0.0.0/32" }, "too small"],
    [{ subnet: "fd00::/127" }, "too small"],
    [{ subnet: "10.0.0.5/24" }, "10.0.0.0"],
    [{ subnet: "10.0.0.0/24", gateway: "10.0.1.1" }, "gateway 10.0.1.1"],
    [{ subnet: "10.0.0.0/24", rangeStart: "10.0.1.1" }, "rangeStart 10.0.1.1"],
    [{ subnet: "10.0.0.0/24", rangeEnd: "fd00::1" }, "rangeEnd fd00::1"],
    [{ subnet: "10.0.0.0/24", rangeStart: "10.0.0.9", rangeEnd: "10.0.0.8" }, "before"],
    [{ ranges: [[]] }, "empty range set"],
    [{ ranges: [[{ subnet: "10.0.0.0/24" }, { subnet: "fd00::/64" }]] }, "mixes"],
    [{ ranges: [[{ subnet: "10.0.0.0/24" }], [{ subnet: "10.0.0.0/16" }]] }, "overlap"],
    [{ subnet: "10.0.0.0/24", routes: [{ dst: "x" }] }, "prefix length"],
    [{ subnet: "10.0.0.0/24", routes: [{}] }, `route without "dst"`],
    [{ subnet: "10.0.0.0/24", routes: [{ dst: "0.0.0.0/0", gw: "x" }] }, "gateway"],
    [{ subnet: 7 }, `"subnet"`],
  ];
  for (const [ipam, words] of cases) {
    const error = assertThrows(() => parse(ipam), CniError, words);
    assertEquals([error.plugin, error.code], ["host-local", CniCode.INVALID_NETWORK_CONFIG]);
  }
});

Deno.test("parseHostLocal: takes requested addresses from everywhere, and none it cannot give", () => {
  const subnet = "10.0.0.0/24";
  assertEquals(parse({ subnet }, {}, { IP: "10.0.0.5" }).requested, ["10.0.0.5"]);
  assertEquals(parse({ subnet }, { args: { cni: { ips: ["10.0.0.6"] } } }).requested, ["10.0.0.6"]);
  assertEquals(parse({ subnet }, { runtimeConfig: { ips: ["10.0.0.7/24"] } }).requested, [
    "10.0.0.7",
  ]);
  for (const ip of ["10.0.1.1", "10.0.0.0", "10.0.0.255", "10.0.0.1", "fd00::2", "x", ""]) {
    assertThrows(() => parse({ subnet }, { runtimeConfig: { ips: [ip] } }), InputError);
  }
});

Deno.test("supportsHostLocal: names the key it does not know", () => {
  const supports = (ipam: Ipam) => supportsHostLocal({ type: "bridge", ipam });
  assertEquals(supports({ type: "host-local", subnet: "10.0.0.0/24", dataDir: "/x" }), true);
  assertEquals(supports({ flavour: 1 }), "ipam.flavour");
  assertEquals(
    supports({ ranges: [[{ subnet: "10.0.0.0/24", colour: 1 }]] }),
    "ipam.ranges.colour",
  );
  assertEquals(supports({ routes: [{ dst: "0.0.0.0/0", table: 7 }] }), "ipam.routes.table");
});
