/**
 * attach-vm on networks of the reference plugins, executed by the specification.
 *
 * @module
 */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import {
  REFERENCE_BRIDGE,
  REFERENCE_PORTMAP,
  requireReference,
  runOnMachine,
  SHARED,
} from "../support/cni-reference.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import type { Machine } from "../support/machine.ts";

requireReference();

// deno-lint-ignore no-explicit-any -- CNI's own shapes.
type Json = any;

function bridge(ipam: Json, conf: Json = {}): Json {
  return { ...REFERENCE_BRIDGE, ipam, ...conf };
}

const POOL = REFERENCE_BRIDGE.ipam;
const LAN_POOL = {
  type: "host-local",
  subnet: "192.0.2.0/24",
  rangeStart: "192.0.2.100",
  rangeEnd: "192.0.2.110",
};
const STATIC = { type: "static", addresses: [{ address: "10.8.0.2/24" }] };

/** A network, what is asked of it, and a page of somebody whom its guest must reach. */
interface Case {
  readonly name: string;
  readonly plugins: readonly Json[];
  readonly args?: readonly string[];
  readonly disableCheck?: boolean;
  readonly prepare?: string;
  readonly url: string;
  /** Looked at while it is attached. */
  readonly look?: (host: Host, peer: Machine, record: Json) => Promise<void>;
}

const CASES: readonly Case[] = [
  {
    name: "bridge, host-local, portmap, firewall",
    plugins: [
      bridge(POOL),
      REFERENCE_PORTMAP,
      { type: "firewall" },
    ],
    args: ["--ports", "8080:80", "--ip", "10.20.0.9"],
    // The reference portmap's CHECK looks for the IPv4 rules in ip6tables too, on any network: it
    // passes where that is not installed.
    prepare: `
      mkdir -p /run/bin /opt/cni/bin
      ln -s $(which iptables) /run/bin/
      printf '#!/bin/sh\nPATH=/run/bin exec /usr/lib/cni/portmap\n' >/opt/cni/bin/portmap
      chmod +x /opt/cni/bin/portmap`,
    url: "http://192.0.2.2/",
    look: async (host, peer, record) => {
      assertEquals(record.interfaces[0].addresses[0].address, "10.20.0.9/24");
      assertEquals((await peer.fetch("http://192.0.2.1:8080/")).body, "guest");
      assert(!(await host.sh("nft list table inet tapkit")).includes("8080"));
      const other = await host.tapkit("attach-vm", "other", "--ports", "8080:80");
      assertEquals(other.code, 1, other.stdout);
      assertMatch(other.stderr, /host port 8080\/tcp is already mapped to VM "web"/);
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
    name: "host-device, static",
    plugins: [{ type: "host-device", device: "hd0", ipam: STATIC }],
    prepare:
      "ip link add hd0 type veth peer hd1; ip link set hd1 up; ip addr add 10.8.0.1/24 dev hd1",
    url: "http://10.8.0.1/",
  },
  {
    name: "tuning",
    plugins: [bridge(POOL), { type: "tuning", mtu: 1400, capabilities: { mac: true } }],
    args: ["--mac", "02:00:00:00:00:78"],
    url: "http://10.20.0.1/",
    look: (_host, _peer, record) => {
      assertEquals([record.interfaces[0].mac, record.interfaces[0].mtu], [
        "02:00:00:00:00:78",
        1400,
      ]);
      return Promise.resolve();
    },
  },
  {
    name: "bandwidth",
    plugins: [bridge(POOL), { type: "bandwidth", capabilities: { bandwidth: true } }],
    args: ["--bandwidth", "100mbit"],
    url: "http://10.20.0.1/",
    look: async (host) => assertMatch(await host.must("tc", ["qdisc"]), /tbf .*rate 100Mbit/),
  },
  {
    name: "sbr",
    plugins: [bridge(POOL), { type: "sbr" }],
    // It takes the routes away that the reference bridge's CHECK looks for.
    disableCheck: true,
    url: "http://10.20.0.1/",
  },
  {
    name: "without addresses",
    plugins: [{ type: "bridge", bridge: "cnibr0" }],
    // The reference bridge's CHECK wants an IPAM plugin.
    disableCheck: true,
    url: "",
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
  for (const { name, plugins, args = [], disableCheck = false, prepare, url, look } of CASES) {
    await t.step(name, async () => {
      await writeNetwork(host, { disableCheck, plugins });
      if (prepare !== undefined) await host.sh(prepare);
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

Deno.test("attach-vm: three networks of different plugins, each with its TAP", async () => {
  const { host: one } = await hostOnLan();
  await using host = one;
  const networks: Record<string, Json> = {
    a: bridge({ ...POOL, ranges: [[{ subnet: "fd00:20::/64" }]] }),
    b: { type: "macvlan", master: "eth-lan", ipam: LAN_POOL },
    c: { type: "ptp", ipam: { type: "host-local", subnet: "10.21.0.0/24" } },
  };
  for (const [name, plugin] of Object.entries(networks)) {
    const list = { cniVersion: "1.0.0", name, plugins: [plugin] };
    await host.writeFile(`/etc/cni/net.d/${name}.conflist`, JSON.stringify(list));
  }
  const before = await host.snapshot();
  const words = Object.keys(networks).flatMap((name) => ["--network", name]);
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...words);
  const described = record.interfaces.map((
    { name, network, tap, addresses }: Json,
  ) => [name, network, tap, addresses.map(({ address }: Json) => address).join()]);
  assertEquals(described, [
    ["eth0", "a", "vm_eth0", "10.20.0.2/24,fd00:20::2/64"],
    ["eth1", "b", "vm_eth1", "192.0.2.100/24"],
    ["eth2", "c", "vm_eth2", "10.21.0.2/24"],
  ]);
  const check = await host.tapkit("attach-vm", "web", "--check");
  assertEquals([check.code, check.json[0]?.problems], [0, []], check.stderr);
  const stored = JSON.parse(await host.readFile("/var/lib/tapkit/vms/web.json"));
  const how = stored.at.facts.networks.flatMap(({ attachment: { plugins } }: Json) =>
    plugins.map(({ type, implementation }: Json) => `${type} ${implementation}`)
  );
  assertEquals(how, ["bridge exec", "macvlan exec", "ptp exec"]);
  // The configuration may go: DEL goes by what is recorded.
  await host.sh("rm /etc/cni/net.d/*");
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before, { except: [...SHARED, /\/etc\/cni\/net\.d\//] });
});

Deno.test("attach-vm: restored, removed and collected beside others' attachments, which stay", async (t) => {
  const { host: one } = await hostOnLan();
  await using host = one;
  const plugin = bridge(POOL);
  await writeNetwork(host, { plugins: [plugin] });
  // A container, as another runtime with libcni's own cache makes it.
  const foreign = { ...plugin, name: "net", cniVersion: "0.4.0" };
  await host.must("ip", ["netns", "add", "pod"]);
  const result = await runOnMachine(host, "ADD", { id: "pod", netns: "/run/netns/pod" }, foreign);
  const podAddress = result.ips[0].address.split("/")[0];
  await host.writeFile("/var/lib/cni/results/net-pod-eth0", "{}");
  const podIsThere = async () => {
    assertEquals(
      (await host.readFile(`/var/lib/cni/networks/net/${podAddress}`)).split(/\s/)[0],
      "pod",
    );
    assertEquals(await host.readFile("/var/lib/cni/results/net-pod-eth0"), "{}");
    const [link] = JSON.parse(await host.must("ip", ["-n", "pod", "-j", "addr", "show", "eth0"]));
    assertEquals(link.addr_info[0].local, podAddress);
    const masquerade = (await host.sh("iptables-save -t nat")).match(/id: \S+/g);
    assertEquals(masquerade?.filter((text) => text.includes('"pod\\"')).length, 3);
  };

  const { json: [web] } = await host.mustTapkit("attach-vm", "web");
  {
    // The two reach each other.
    await host.writeFile("/run/pod/index.html", "pod");
    host.spawn("ip", [
      "netns",
      "exec",
      "pod",
      "busybox",
      "httpd",
      "-f",
      "-p",
      "80",
      "-h",
      "/run/pod",
    ]);
    await using guest = await NetnsGuest.start(host, web);
    await guest.dhcp();
    assertStringIncludes((await guest.fetch(`http://${podAddress}/`)).body, "pod");
    await guest.serveHttp(80, "vm");
    const vmAddress = web.interfaces[0].addresses[0].address.split("/")[0];
    assertEquals((await host.fetch(`http://${vmAddress}/`, { netns: "pod" })).body, "vm");
  }
  await t.step("restored as after a reboot, where the pool has its file", async () => {
    // As after a reboot: the namespace's name is gone, the pool's file is not.
    await host.sh("ip netns delete tapkit-web");
    const { json: [restored] } = await host.mustTapkit("attach-vm", "--restore");
    assertEquals(restored, web);
    await podIsThere();
  });

  await t.step("a living one is not collected, a dead one is", async () => {
    // A living one is not collected, a dead one is, also when its record is the only sign of it.
    assertEquals((await host.mustTapkit("attach-vm", "--gc")).json, []);
    await host.sh("ip netns delete tapkit-web");
    assertEquals((await host.mustTapkit("attach-vm", "--gc")).json, [{ vm: "web", removed: true }]);
    await host.awaitGone("/var/lib/tapkit");
    await podIsThere();
  });

  // A lost record: the cache tells which network it was on.
  await host.mustTapkit("attach-vm", "web");
  await host.sh("rm /var/lib/tapkit/vms/web.json; rm /etc/cni/net.d/*");
  assertEquals((await host.mustTapkit("attach-vm", "web", "--remove")).json, [
    { vm: "web", removed: true },
  ]);
  const pool = await host.sh("ls /var/lib/cni/networks/net");
  assertEquals(pool.split(/\s+/).filter((name) => name.startsWith("10.")), [podAddress]);
  await podIsThere();
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
    /cannot attach "web": broken: ADD .*: no.*undoing plugin "broken" failed for the same reason/,
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
