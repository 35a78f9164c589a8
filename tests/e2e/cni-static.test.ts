/**
 * attach-vm on networks whose addresses the reference `static` IPAM gives.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import { requireReference } from "../support/cni-reference.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";

requireReference();

// deno-lint-ignore no-explicit-any -- CNI's own shapes.
type Json = any;

const ADDRESSES = [
  { address: "10.8.0.2/24", gateway: "10.8.0.1" },
  { address: "fd00:8::2/64", gateway: "fd00:8::1" },
];
const ROUTES = [{ dst: "0.0.0.0/0" }];

async function writeNetwork(host: Host, ipam: Json, conf: Json = {}): Promise<void> {
  const list = {
    cniVersion: "1.0.0",
    name: "net",
    plugins: [{
      type: "bridge",
      bridge: "br8",
      isGateway: true,
      ipMasq: true,
      ipam: { type: "static", ...ipam },
      ...conf,
    }],
  };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", JSON.stringify(list));
}

/** With their routers: a gateway without a default route by it is none. */
function addressesOf(record: Json): string[] {
  return record.interfaces[0].addresses.map(({ address, gateway }: Json) =>
    gateway === undefined ? address : `${address} via ${gateway}`
  );
}

Deno.test("attach-vm --ip: the static IPAM gives what is asked for", async (t) => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await peer.serveHttp(80, "page");
  const ips = { capabilities: { ips: true } };
  const cases: [name: string, ipam: Json, conf: Json, args: string[], addresses: string[]][] = [
    [
      "what is configured, without --ip",
      { addresses: ADDRESSES, routes: ROUTES },
      {},
      [],
      ["10.8.0.2/24 via 10.8.0.1", "fd00:8::2/64"],
    ],
    [
      "an address in the place of one of its subnet",
      { addresses: ADDRESSES, routes: ROUTES },
      {},
      ["--ip", "10.8.0.5"],
      ["10.8.0.5/24 via 10.8.0.1", "fd00:8::2/64"],
    ],
    [
      "the same where the plugin declares the capability",
      { addresses: ADDRESSES, routes: ROUTES },
      ips,
      ["--ip", "fd00:8:0::5"],
      ["10.8.0.2/24 via 10.8.0.1", "fd00:8::5/64"],
    ],
    ["by capability alone", {}, ips, ["--ip", "10.8.0.5/24"], ["10.8.0.5/24"]],
    ["without anything", {}, {}, ["--ip", "10.8.0.5/24"], ["10.8.0.5/24"]],
  ];
  for (const [name, ipam, conf, args, addresses] of cases) {
    await t.step(name, async () => {
      await writeNetwork(host, ipam, conf);
      const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...args);
      assertEquals(addressesOf(record), addresses);
      if (ipam.routes !== undefined) {
        await using guest = await NetnsGuest.start(host, record);
        await guest.dhcp();
        assertEquals((await guest.fetch("http://192.0.2.2/")).body, "page");
      }
      const check = await host.tapkit("attach-vm", "web", "--check");
      assertEquals([check.code, check.json[0]?.problems], [0, []], check.stderr);
      assertEquals((await host.mustTapkit("attach-vm", "web", ...args)).json, [record]);
      await host.sh("ip netns delete tapkit-web");
      const { json: [restored], stderr } = await host.mustTapkit("attach-vm", "--restore");
      assertEquals(restored, record);
      assertEquals(/warning/.test(stderr), false, stderr);
      await host.mustTapkit("attach-vm", "web", "--remove");
    });
  }
});

Deno.test("attach-vm --ip: what the static IPAM cannot give is refused, and nothing is touched", async () => {
  await using host = await Host.create();
  await host.addLan();
  await writeNetwork(host, { addresses: ADDRESSES });
  await host.mustTapkit("attach-vm", "api", "--ip", "10.8.0.7");
  const before = await host.snapshot();
  const cases: [ip: string, why: RegExp][] = [
    ["10.8.0.7", /network "net" cannot give the address 10\.8\.0\.7: VM "api" has it/],
    ["10.8.0.1", /it is the gateway's/],
    ["10.9.0.5", /it has 10\.8\.0\.2\/24, fd00:8::2\/64, and none in another subnet/],
    ["10.9.0.5/24", /and none in another subnet/],
  ];
  for (const [ip, why] of cases) {
    const { code, stderr } = await host.tapkit("attach-vm", "web", "--ip", ip);
    assertEquals(code, 2, stderr);
    assertMatch(stderr, why);
  }
  await writeNetwork(host, {});
  const short = await host.tapkit("attach-vm", "web", "--ip", "10.8.0.5");
  assertEquals(short.code, 2);
  assertMatch(short.stderr, /nothing says how long its prefix is: write it as in 10\.8\.0\.5\/24/);
  const settling = /(route|address) .*(anycast|fd00:8|fe80|ff0)/;
  const except = [/\/etc\/cni\/net\.d/, /serve-dhcp/, settling];
  await host.assertRestored(before, { except });
});

Deno.test("attach-vm --restore: an address that the static IPAM has no more is given up, with a warning", async () => {
  await using host = await Host.create();
  await host.addLan();
  await writeNetwork(host, { addresses: ADDRESSES.slice(0, 1) });
  await host.mustTapkit("attach-vm", "web", "--ip", "10.8.0.5");
  await writeNetwork(host, { addresses: [{ address: "10.9.0.2/24", gateway: "10.9.0.1" }] });
  await host.sh("ip netns delete tapkit-web; ip link delete br8");
  const { json: [record], stderr } = await host.mustTapkit("attach-vm", "--restore");
  assertEquals(addressesOf(record), ["10.9.0.2/24"]);
  assertMatch(stderr, /warning: "eth0" had the address 10\.8\.0\.5, now it has 10\.9\.0\.2/);
  await host.mustTapkit("attach-vm", "web", "--remove");
});
