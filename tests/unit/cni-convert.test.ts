import { assertEquals, assertThrows } from "@std/assert";
import { formatResult, isAtLeast, parseResult } from "../../lib/cni/convert.ts";
import { CNI_VERSIONS } from "../../lib/cni/types.ts";

const DNS = { nameservers: ["192.0.2.53"], domain: "example.test" };
const OLD = {
  ip4: {
    ip: "10.1.0.2/24",
    gateway: "10.1.0.1",
    routes: [{ dst: "0.0.0.0/0", gw: "10.1.0.1" }],
  },
  ip6: { ip: "fd00::2/64", routes: [{ dst: "::/0" }] },
  dns: DNS,
};
const ROUTES = [{ dst: "0.0.0.0/0", gw: "10.1.0.1" }, { dst: "::/0" }];
const ADDRESSES = [{ address: "10.1.0.2/24", gateway: "10.1.0.1" }, { address: "fd00::2/64" }];
const VERSIONED = [{ version: "4", ...ADDRESSES[0] }, { version: "6", ...ADDRESSES[1] }];
const INTERFACES = [{ name: "eth0", mac: "02:00:00:00:00:01", sandbox: "/run/netns/x" }];

/** One result, as each version writes it. */
const AS_WRITTEN: Readonly<Record<string, Record<string, unknown>>> = {
  "0.1.0": OLD,
  "0.2.0": OLD,
  "0.3.0": { interfaces: INTERFACES, ips: VERSIONED, routes: ROUTES, dns: DNS },
  "0.3.1": { interfaces: INTERFACES, ips: VERSIONED, routes: ROUTES, dns: DNS },
  "0.4.0": { interfaces: INTERFACES, ips: VERSIONED, routes: ROUTES, dns: DNS },
  "1.0.0": { interfaces: INTERFACES, ips: ADDRESSES, routes: ROUTES, dns: DNS },
  "1.1.0": { interfaces: INTERFACES, ips: ADDRESSES, routes: ROUTES, dns: DNS },
};

Deno.test("parseResult, formatResult: every version to every version", () => {
  for (const from of CNI_VERSIONS) {
    const written = { cniVersion: from, ...AS_WRITTEN[from] };
    const parsed = parseResult(written, "1.0.0");
    assertEquals([parsed.ips, parsed.routes, parsed.dns], [ADDRESSES, ROUTES, DNS], from);
    assertEquals(parsed.interfaces, isAtLeast(from, "0.3.0") ? INTERFACES : [], from);
    for (const to of CNI_VERSIONS) {
      const { interfaces: _, ...rest } = AS_WRITTEN[to]!;
      const keeps = isAtLeast(from, "0.3.0") && isAtLeast(to, "0.3.0");
      const expected = { cniVersion: to, ...keeps ? AS_WRITTEN[to] : rest };
      assertEquals(formatResult(parsed, to), expected, `${from} to ${to}`);
    }
  }
});

Deno.test("parseResult: nothing, null lists, keys of later versions", () => {
  const nothing = { interfaces: [], ips: [], routes: [], dns: {} };
  assertEquals(parseResult({}, "0.4.0"), { cniVersion: "0.4.0", ...nothing });
  assertEquals(parseResult({}, "0.2.0"), { cniVersion: "0.2.0", ...nothing });
  const nulls = { cniVersion: "1.0.0", interfaces: null, ips: null, routes: null, dns: null };
  assertEquals(parseResult(nulls, "0.4.0"), { cniVersion: "1.0.0", ...nothing });
  const later = {
    interfaces: [{ name: "e", mtu: 1400, socketPath: "/s" }],
    ips: [{ address: "10.0.0.2/24", interface: 0 }],
    routes: [{ dst: "10.9.0.0/16", mtu: 1300, priority: 7, table: 5 }],
  };
  const parsed = parseResult(later, "1.1.0");
  assertEquals(parsed, { cniVersion: "1.1.0", ...later, dns: {} });
  assertEquals(formatResult(parsed, "1.1.0"), { cniVersion: "1.1.0", ...later, dns: {} });
});

Deno.test("parseResult: what is malformed is named", () => {
  const cases: [raw: unknown, words: string][] = [
    [[], "the result is not a JSON object"],
    ["x", "the result is not a JSON object"],
    [{ cniVersion: "9.9.9" }, `unknown cniVersion "9.9.9"`],
    [{ ips: {} }, `"ips" is not a list`],
    [
      { ips: [{ address: "10.0.0.2" }] },
      `"10.0.0.2", which is not an address with a prefix length`,
    ],
    [{ ips: [{ address: "10.0.0.2/24", gateway: "x" }] }, `"x", which is not an address`],
    [{ ips: [{ address: "10.0.0.2/24", interface: "0" }] }, `"interface" is not a number`],
    [{ interfaces: [{}] }, `an interface's "name" is not text`],
    [{ routes: [{}] }, "a route is not text"],
    [{ dns: { nameservers: "x" } }, `"dns.nameservers" is not a list`],
    [{ cniVersion: "0.2.0", ip4: { ip: "x" } }, `"ip4" is "x"`],
  ];
  for (const [raw, words] of cases) {
    assertThrows(() => parseResult(raw, "1.0.0"), TypeError, words);
  }
});
