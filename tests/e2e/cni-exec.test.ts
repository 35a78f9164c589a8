/**
 * attach-vm on networks of the reference plugins, executed by the specification.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { requireReference } from "../support/cni-reference.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import type { Machine } from "../support/machine.ts";

requireReference();

// deno-lint-ignore no-explicit-any -- CNI's own shapes.
type Json = any;

/** What the plugins keep for the next attachment, and no attachment owns. */
const SHARED = [
  /^ip6?tables-\S+ (\*|:|COMMIT|-A \S+ .*CNI-|-A CNI-(FORWARD|ADMIN|HOSTPORT))/,
  /^nft table ip6? (nat|filter|mangle)/,
  /cnibr0/,
  /^(address|route) .*(10\.20\.0\.|fe80:|ff00:)/,
  /serve-dhcp/,
];

function bridge(ipam: Json, conf: Json = {}): Json {
  return { type: "bridge", bridge: "cnibr0", isGateway: true, ipMasq: true, ipam, ...conf };
}

const POOL = { type: "host-local", subnet: "10.20.0.0/24", routes: [{ dst: "0.0.0.0/0" }] };
const LAN_POOL = {
  type: "host-local",
  subnet: "192.0.2.0/24",
  rangeStart: "192.0.2.100",
  rangeEnd: "192.0.2.110",
};

/** A network, what is asked of it, and a page of somebody whom its guest must reach. */
interface Case {
  readonly name: string;
  readonly plugins: readonly Json[];
  readonly args?: readonly string[];
  readonly disableCheck?: boolean;
  readonly url: string;
  /** Looked at while it is attached. */
  readonly look?: (host: Host, peer: Machine, record: Json) => Promise<void>;
}

const CASES: readonly Case[] = [
  {
    name: "bridge, host-local, portmap, firewall",
    plugins: [
      bridge(POOL),
      { type: "portmap", capabilities: { portMappings: true } },
      { type: "firewall" },
    ],
    args: ["--ports", "8080:80", "--ip", "10.20.0.9"],
    // With IPv4 alone the reference portmap looks for its IPv6 chains all the same.
    disableCheck: true,
    url: "http://192.0.2.2/",
    look: async (host, peer, record) => {
      assertEquals(record.interfaces[0].addresses[0].address, "10.20.0.9/24");
      assertEquals((await peer.fetch("http://192.0.2.1:8080/")).body, "guest");
      assertEquals((await host.run("nft", ["list", "table", "inet", "tapkit"])).code, 1);
      const other = await host.tapkit("attach-vm", "other", "--ports", "8080:80");
      assertEquals(other.code, 1, other.stdout);
      assertMatch(other.stderr, /host port 8080\/tcp is already mapped to VM "web"/);
      const change = await host.tapkit("attach-vm", "web", "--ports", "8081:80");
      assertEquals(change.code, 1);
      assertMatch(change.stderr, /published by a CNI plugin/);
    },
  },
  { name: "ptp", plugins: [{ type: "ptp", ipMasq: true, ipam: POOL }], url: "http://192.0.2.2/" },
  {
    name: "macvlan",
    plugins: [{ type: "macvlan", master: "eth-lan", ipam: LAN_POOL }],
    args: ["--mac", "02:00:00:00:00:77"],
    url: "http://192.0.2.2/",
  },
  {
    name: "bandwidth",
    plugins: [bridge(POOL), { type: "bandwidth", capabilities: { bandwidth: true } }],
    args: ["--bandwidth", "100mbit"],
    url: "http://10.20.0.1/",
    look: async (host) => assertMatch(await host.must("tc", ["qdisc"]), /tbf .*rate 100Mbit/),
  },
];

/** A host on a LAN, with a page of its own and one of its peer. */
async function hostOnLan(): Promise<{ host: Host; peer: Machine }> {
  const host = await Host.create();
  const peer = await host.addLan();
  await host.serveHttp(80, "page");
  await peer.serveHttp(80, "page");
  return { host, peer };
}

async function writeNetwork(host: Host, conf: Json): Promise<void> {
  const list = { cniVersion: "0.4.0", name: "net", ...conf };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", JSON.stringify(list));
}

Deno.test("attach-vm: networks of the reference plugins: attach, packets, CHECK, DEL, nothing left", async (t) => {
  const { host: one, peer } = await hostOnLan();
  await using host = one;
  for (const { name, plugins, args = [], disableCheck = false, url, look } of CASES) {
    await t.step(name, async () => {
      await writeNetwork(host, { disableCheck, plugins });
      const before = await host.snapshot();
      const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...args);
      assertEquals(record.interfaces[0].mode, "tc-redirect");
      {
        await using guest = await NetnsGuest.start(host, record);
        if (url !== "") {
          const lease = await guest.dhcp();
          assertEquals(lease.ip, record.interfaces[0].addresses[0].address.split("/")[0]);
          await guest.serveHttp(80, "guest");
          assertEquals((await guest.fetch(url)).body, "page");
        }
        await look?.(host, peer, record);
      }
      const check = await host.tapkit("attach-vm", "web", "--check");
      assertEquals([check.code, check.json], [0, [{ vm: "web", problems: [] }]], check.stderr);
      const again = await host.mustTapkit("attach-vm", "web");
      assertEquals([again.json, again.stderr], [[record], ""]);
      await host.mustTapkit("attach-vm", "web", "--remove");
      await host.assertRestored(before, { except: SHARED });
      const rules = await host.sh("iptables-save; ip6tables-save");
      assert(!rules.includes(record.id.slice(0, 12)), rules);
      if (url.includes("10.20") || name === "ptp") assert(!/10\.20\.0\.[2-9]/.test(rules), rules);
      await host.mustTapkit("attach-vm", "web", "--remove");
    });
  }
});

Deno.test("attach-vm: a plugin that fails leaves no trace, and a missing one is named", async () => {
  const { host: one } = await hostOnLan();
  await using host = one;
  await host.writeFile(
    "/opt/cni/bin/broken",
    `#!/bin/sh\necho '{"code":7,"msg":"no"}'; exit 1\n`,
    0o755,
  );
  await writeNetwork(host, { plugins: [bridge(POOL), { type: "broken" }, { type: "firewall" }] });
  const before = await host.snapshot();
  const failed = await host.tapkit("attach-vm", "web");
  assertEquals([failed.code, failed.stdout], [1, ""]);
  assertMatch(
    failed.stderr,
    /cannot attach "web": broken: ADD failed with code 7: no.*broken: DEL/,
  );
  await host.mustTapkit("attach-vm", "web", "--remove").catch(() => {});
  await writeNetwork(host, { plugins: [{ type: "calico" }] });
  const missing = await host.tapkit("attach-vm", "api");
  assertEquals(missing.code, 1);
  assertMatch(
    missing.stderr,
    /plugin "calico", which is in none of \/opt\/cni\/bin, \/usr\/lib\/cni: install/,
  );
  await host.assertRestored(before, { except: [...SHARED, /\/etc\/cni\/net\.d\//] });
});
