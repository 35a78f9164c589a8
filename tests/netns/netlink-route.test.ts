import { assert, assertEquals, assertThrows } from "@std/assert";
import { InputError } from "../../lib/errors.ts";
import { addAddress, deleteAddress, listAddresses } from "../../lib/netlink/address.ts";
import { createBridge, setLink } from "../../lib/netlink/link.ts";
import {
  addRoute,
  getRoute,
  listRoutes,
  type RouteRequest,
  RT_TABLE,
} from "../../lib/netlink/route.ts";
import { assertRefused, Sandbox } from "../support/oracle.ts";

/** A sandbox with a bridge that is up. */
function bridged(): { sandbox: Sandbox; bridge: number } {
  const sandbox = new Sandbox();
  return { sandbox, bridge: createBridge(sandbox.nl, { name: "br0", up: true }) };
}

/** One that also has the addresses routes need. */
function addressed(): { sandbox: Sandbox; bridge: number } {
  const made = bridged();
  addAddress(made.sandbox.nl, { index: made.bridge, address: "10.0.0.1/24" });
  addAddress(made.sandbox.nl, { index: made.bridge, address: "fd00::1/64", noDad: true });
  return made;
}

for (
  const [request, shown] of [
    [
      { address: "10.0.0.1/24", broadcast: "10.0.0.255" },
      {
        family: "inet",
        local: "10.0.0.1",
        prefixlen: 24,
        broadcast: "10.0.0.255",
        scope: "global",
      },
    ],
    [{ address: "127.9.0.1/32" }, {
      family: "inet",
      local: "127.9.0.1",
      prefixlen: 32,
      scope: "host",
    }],
    [
      { address: "FD00:0::1/64", noDad: true },
      { family: "inet6", local: "fd00::1", prefixlen: 64, scope: "global", nodad: true },
    ],
  ] as const
) {
  Deno.test(`addAddress, deleteAddress: ${JSON.stringify(request)}`, () => {
    const { sandbox, bridge: index } = bridged();
    using _ = sandbox;
    const { nl } = sandbox;
    const found = () =>
      sandbox.json("ip -j address show dev br0")[0]!.addr_info
        .filter((info: { scope: string; local: string }) => !info.local.startsWith("fe80"));
    assertEquals(addAddress(nl, { index, ...request }), true);
    const [info, ...rest] = found();
    assertEquals(rest, []);
    for (const [key, value] of Object.entries(shown)) assertEquals(info[key], value, key);
    assertEquals(addAddress(nl, { index, ...request }), false);
    assertEquals(deleteAddress(nl, { index, address: request.address }), true);
    assertEquals(found(), []);
    assertEquals(deleteAddress(nl, { index, address: request.address }), false);
  });
}

Deno.test("addAddress, deleteAddress: tell refusals from what is there or gone already", () => {
  const { sandbox, bridge: index } = bridged();
  using _ = sandbox;
  const { nl } = sandbox;
  addAddress(nl, { index, address: "fd00::1/64", noDad: true });
  const error = assertRefused("EEXIST", () => addAddress(nl, { index, address: "fd00::1/80" }));
  assertEquals(error.object, 'address fd00::1/80 of link "br0"');
  assertEquals(addAddress(nl, { index, address: "10.0.0.1/24" }), true);
  assertEquals(addAddress(nl, { index, address: "10.0.0.1/16" }), true);
  assertRefused("ENODEV", () => addAddress(nl, { index: 4711, address: "10.0.0.1/24" }));
  assertEquals(deleteAddress(nl, { index: 4711, address: "10.0.0.1/24" }), false);
  assertThrows(() => addAddress(nl, { index, address: "10.0.0.1" }), InputError);
  assertThrows(() => deleteAddress(nl, { index, address: "10.0.0.256/24" }), InputError);
});

Deno.test("listAddresses: narrows to a link and a family", () => {
  const { sandbox, bridge } = addressed();
  using _ = sandbox;
  const { nl } = sandbox;
  const other = createBridge(nl, { name: "br1", up: true });
  addAddress(nl, { index: other, address: "10.1.0.1/24" });
  const texts = (filter?: { index?: number; family?: 4 | 6 }) =>
    listAddresses(nl, filter).map(({ address }) => address).filter((a) => !a.startsWith("fe80"));
  assertEquals(texts(), ["10.0.0.1/24", "10.1.0.1/24", "fd00::1/64"]);
  assertEquals(texts({ index: bridge }), ["10.0.0.1/24", "fd00::1/64"]);
  assertEquals(texts({ family: 4 }), ["10.0.0.1/24", "10.1.0.1/24"]);
  assertEquals(texts({ index: other, family: 4 }), ["10.1.0.1/24"]);
  assertEquals(texts({ family: 6 }), ["fd00::1/64"]);
  assertRefused("ENODEV", () => listAddresses(nl, { index: 4711 }));
  const [address] = listAddresses(nl, { index: bridge, family: 4 });
  assertEquals([address?.scope, address?.index], ["global", bridge]);
});

for (
  const [request, shown] of [
    [{ dst: "0.0.0.0/0", gateway: "10.0.0.2" }, { dst: "default", gateway: "10.0.0.2" }],
    [
      { dst: "0.0.0.0/0", gateway: "10.0.0.2", metric: 5, mtu: 1400, src: "10.0.0.1" },
      { dst: "default", gateway: "10.0.0.2", metric: 5, prefsrc: "10.0.0.1" },
    ],
    [{ dst: "10.9.0.7/16" }, { dst: "10.9.0.0/16", scope: "link", dev: "br0" }],
    [{ dst: "10.9.0.1/32", protocol: "static" }, { dst: "10.9.0.1", protocol: "static" }],
    [
      { dst: "10.9.0.0/16", gateway: "192.0.2.1", onlink: true },
      { dst: "10.9.0.0/16", gateway: "192.0.2.1", flags: ["onlink"] },
    ],
    [
      { dst: "10.9.0.0/16", gateway: "fe80::2" },
      { dst: "10.9.0.0/16", via: { family: "inet6", host: "fe80::2" } },
    ],
    [{ dst: "10.9.0.0/16", table: 100 }, { dst: "10.9.0.0/16", dev: "br0" }],
    [{ dst: "10.9.0.0/16", table: 70000 }, { dst: "10.9.0.0/16", dev: "br0" }],
    [{ dst: "::/0", gateway: "fd00::2" }, { dst: "default", gateway: "fd00::2", metric: 1024 }],
    [
      { dst: "2001:db8::/32", gateway: "fe80::2", metric: 7 },
      { dst: "2001:db8::/32", gateway: "fe80::2", metric: 7 },
    ],
  ] as readonly (readonly [RouteRequest, Record<string, unknown>])[]
) {
  Deno.test(`addRoute: ${JSON.stringify(request)}`, () => {
    const { sandbox, bridge: oif } = addressed();
    using _ = sandbox;
    const { nl } = sandbox;
    const route = { ...request, oif };
    const family = request.dst.includes(":") ? "-6" : "-4";
    const table = request.table === undefined ? undefined : `${request.table}`;
    const show = () =>
      sandbox.json(`ip ${family} -j route show table all`).filter((line) => line.table === table);
    const before = new Set(show().map((line) => line.dst));
    const found = () => show().filter((line) => !before.has(line.dst));
    assertEquals(addRoute(nl, route), true);
    const [line, ...rest] = found();
    assertEquals(rest, []);
    for (const [key, value] of Object.entries(shown)) assertEquals(line![key], value, key);
    if (request.mtu !== undefined) assertEquals(line!.metrics, [{ mtu: request.mtu }]);
    assertEquals(addRoute(nl, route), false);
    assertEquals(found(), [line]);
  });
}

Deno.test("addRoute: another route in the same place is refused, not taken for this one", () => {
  const { sandbox, bridge: oif } = addressed();
  using _ = sandbox;
  const { nl } = sandbox;
  assertEquals(addRoute(nl, { dst: "0.0.0.0/0", gateway: "10.0.0.2", oif }), true);
  const error = assertRefused("EEXIST", () => {
    addRoute(nl, { dst: "0.0.0.0/0", gateway: "10.0.0.3", oif });
  });
  assertEquals(error.object, "route to 0.0.0.0/0 via 10.0.0.3");
  assertEquals(addRoute(nl, { dst: "0.0.0.0/0", gateway: "10.0.0.3", metric: 9 }), true);
  assertEquals(addRoute(nl, { dst: "::/0", gateway: "fd00::2", oif }), true);
  assertRefused("EEXIST", () => addRoute(nl, { dst: "::/0", gateway: "fd00::3", oif }));
  assertEquals(addRoute(nl, { dst: "0:0::/0", gateway: "fd00:0::2", oif }), false);
});

Deno.test("addRoute: refusals carry the kernel's reason", () => {
  const { sandbox, bridge: oif } = addressed();
  using _ = sandbox;
  const { nl } = sandbox;
  const error = assertRefused("ENETUNREACH", () => {
    addRoute(nl, { dst: "0.0.0.0/0", gateway: "192.0.2.1", oif });
  });
  assert(error.extAck !== undefined);
  assertRefused("ENODEV", () => addRoute(nl, { dst: "10.9.0.0/16", oif: 4711 }));
  assertThrows(() => addRoute(nl, { dst: "10.9.0.0", oif }), InputError);
  assertThrows(() => addRoute(nl, { dst: "10.9.0.0/16", gateway: "gateway", oif }), InputError);
});

Deno.test("addRoute: unreachable, blackhole and prohibit need no link", () => {
  const { sandbox } = addressed();
  using _ = sandbox;
  for (const [index, type] of (["unreachable", "blackhole", "prohibit"] as const).entries()) {
    const dst = `10.9${index}.0.0/16`;
    assertEquals(addRoute(sandbox.nl, { dst, type }), true);
    assertEquals(sandbox.json(`ip -j route show type ${type}`)[0]?.dst, dst);
    assertEquals(addRoute(sandbox.nl, { dst, type }), false);
  }
});

Deno.test("listRoutes: narrows to family, table and link", () => {
  const { sandbox, bridge } = addressed();
  using _ = sandbox;
  const { nl } = sandbox;
  const other = createBridge(nl, { name: "br1", up: true });
  addAddress(nl, { index: other, address: "10.1.0.1/24" });
  addRoute(nl, { dst: "10.9.0.0/16", oif: other, table: 70000 });
  const texts = (filter: { family?: 4 | 6; table?: number; oif?: number }) =>
    listRoutes(nl, filter).map(({ dst }) => dst).filter((dst) => !/^(fe80|ff00)/.test(dst)).sort();
  assertEquals(texts({ family: 4, table: RT_TABLE.MAIN }), ["10.0.0.0/24", "10.1.0.0/24"]);
  assertEquals(texts({ family: 4, table: RT_TABLE.MAIN, oif: bridge }), ["10.0.0.0/24"]);
  assertEquals(texts({ table: 70000 }), ["10.9.0.0/16"]);
  assertEquals(texts({ family: 6, table: RT_TABLE.MAIN }), ["fd00::/64"]);
  assertEquals(texts({ family: 4, table: RT_TABLE.LOCAL, oif: other }), [
    "10.1.0.1/32",
    "10.1.0.255/32",
  ]);
  assertEquals(texts({ table: 12345 }), []);
  assertEquals(texts({ oif: 4711 }), []);
  assert(listRoutes(nl).length >= 9);
});

Deno.test("getRoute: tells the way, or that there is none", () => {
  const { sandbox, bridge: oif } = addressed();
  using _ = sandbox;
  const { nl } = sandbox;
  assertEquals(getRoute(nl, "192.0.2.1"), undefined);
  assertEquals(getRoute(nl, "2001:db8::1"), undefined);
  addRoute(nl, { dst: "0.0.0.0/0", gateway: "10.0.0.2", oif });
  addRoute(nl, { dst: "::/0", gateway: "fd00::2", oif });
  const four = getRoute(nl, "192.0.2.1");
  assertEquals([four?.dst, four?.gateway, four?.oif, four?.src, four?.table], [
    "192.0.2.1/32",
    "10.0.0.2",
    oif,
    "10.0.0.1",
    RT_TABLE.MAIN,
  ]);
  const six = getRoute(nl, "2001:db8::1");
  assertEquals([six?.dst, six?.gateway, six?.oif, six?.src], [
    "2001:db8::1/128",
    "fd00::2",
    oif,
    "fd00::1",
  ]);
  assertEquals(getRoute(nl, "10.0.0.1")?.type, "local");
  addRoute(nl, { dst: "198.51.100.0/24", type: "unreachable" });
  assertEquals(getRoute(nl, "198.51.100.1"), undefined);
  assertThrows(() => getRoute(nl, "192.0.2"), InputError);
});

Deno.test("setLink down takes addresses' routes away, which listRoutes shows", () => {
  const { sandbox, bridge } = addressed();
  using _ = sandbox;
  assert(listRoutes(sandbox.nl, { oif: bridge, family: 4 }).length > 0);
  setLink(sandbox.nl, bridge, { up: false });
  assertEquals(listRoutes(sandbox.nl, { oif: bridge, family: 4, table: RT_TABLE.MAIN }), []);
});
