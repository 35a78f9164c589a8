/**
 * attach-vm on a made-up network that behaves as field reports say that some makers' do: see
 * tests/support/made-up-network.ts for what it does and what it cannot show.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { fetchName, serveName } from "../support/http.ts";
import type { Machine } from "../support/machine.ts";
import { MadeUpNetwork, type MadeUpOptions } from "../support/made-up-network.ts";

const PORTMAP = { type: "portmap", capabilities: { portMappings: true } };

async function hostWith(
  options: MadeUpOptions = {},
): Promise<{ host: Host; peer: Machine; network: MadeUpNetwork }> {
  const host = await Host.create();
  const peer = await host.addLan();
  await serveName(peer, 8000);
  return { host, peer, network: await MadeUpNetwork.install(host, options) };
}

async function check(host: Host, name = "web"): Promise<{ code: number; problems: string[] }> {
  const { code, json } = await host.tapkit("attach-vm", name, "--check");
  return { code, problems: json[0].problems };
}

const VARIANTS = [
  // Of the other variant than the network's own rules are.
  { variant: "legacy", plugins: "/opt/cni/bin", portmap: "built in" },
  { variant: "nft", plugins: "/opt/cni/bin:/usr/lib/cni", portmap: "executed" },
];

for (const { variant, plugins, portmap } of VARIANTS) {
  Deno.test(`attach-vm: a made-up network beside a DROP policy in iptables-${variant}, portmap ${portmap}`, async () => {
    const { host: one, peer, network } = await hostWith({ chained: [PORTMAP] });
    await using host = one;
    await host.sh(`iptables-${variant} -P FORWARD DROP`);
    const options = { env: { CNI_PATH: plugins } };
    const { json: [record], stderr } = await host.mustTapkit(
      ...["attach-vm", "web", "--ports", "8080:80"] as const,
      options,
    );
    assertMatch(stderr, /"eth0" gets an MTU of 65521: .* gave 65535, a TAP takes no more/);
    assertMatch(stderr, /set net\.ipv4\.ip_forward=1/);
    assertEquals(record.interfaces[0].mtu, 65521);
    const [port] = JSON.parse(
      await host.must("ip", ["-j", "link", "show", "master", network.bridge]),
    );
    assertEquals(port.mtu, 65521);

    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    assertEquals(JSON.parse(await guest.must("ip", ["-j", "link", "show", "eth0"]))[0].mtu, 65521);
    await serveName(guest);
    const passes = async () => [
      await fetchName(guest, "192.0.2.2", 8000),
      await fetchName(peer, "192.0.2.1", 8080),
    ];
    assertEquals(await passes(), ["peer", "web"]);
    assertEquals(await check(host), { code: 0, problems: [] });

    const accepts = `iptables-${variant} -F TAPKIT-ACCEPT`;
    await host.sh(accepts);
    assertEquals((await check(host)).code, 3);
    await host.mustTapkit("attach-vm", "web", options);
    assertEquals(await passes(), ["peer", "web"]);
    assertEquals(await check(host), { code: 0, problems: [] });
    await host.mustTapkit("attach-vm", "web", "--remove", options);
    assertEquals(await network.given(), {});
  });
}

Deno.test("attach-vm: is reached from elsewhere on its network where bridges are filtered beside a DROP policy", async () => {
  const { host: one, network } = await hostWith();
  await using host = one;
  await host.sh(`
    iptables -P FORWARD DROP
    sysctl -qw net.bridge.bridge-nf-call-iptables=1
    ip netns add other
    ip link add vother type veth peer name eth0 netns other
    ip link set vother master ${network.bridge} up
    ip -n other link set eth0 up
    ip -n other address add 10.40.0.200/24 dev eth0
  `);
  const { json: [record] } = await host.mustTapkit("attach-vm", "web");
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await guest.serveHttp(80, "guest");
  const { body } = await host.fetch("http://10.40.0.2/", { netns: "other" });
  assertEquals(body, "guest");
});

Deno.test("attach-vm --mtu: on an executed network both ends of the pair get it", async () => {
  const { host: one, network } = await hostWith();
  await using host = one;
  const { stderr } = await host.mustTapkit("attach-vm", "web", "--mtu", "1376");
  assertMatch(stderr, /"mubr0" of network "made-up" keeps its MTU of 65535.*more than 1376 bytes/);
  const mtus = async () => {
    const outer = JSON.parse(
      await host.must("ip", ["-j", "link", "show", "master", network.bridge]),
    );
    const inner = JSON.parse(await host.must("ip", ["-n", "tapkit-web", "-j", "link"]));
    return [...outer, ...inner].filter(({ ifname }) => ifname !== "lo").map(({ mtu }) => mtu);
  };
  assertEquals(await mtus(), [1376, 1376, 1376]);
  assertEquals(await check(host), { code: 0, problems: [] });
  await host.sh("ip link set $(ls /sys/class/net | grep vethmu) mtu 9000");
  assertMatch((await check(host)).problems.join(), /"vethmu.*" has MTU 9000, not 1376/);
  await network.calls();
  await host.mustTapkit("attach-vm", "web");
  assertEquals([await mtus(), await network.calls()], [[1376, 1376, 1376], []]);
});

Deno.test("attach-vm --check: sees without the plugin what became of the interface, and attaching again mends it", async (t) => {
  const { host: one, network } = await hostWith();
  await using host = one;
  const { json: [record] } = await host.mustTapkit("attach-vm", "web");
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  const reaches = async () => {
    return await fetchName(guest, "192.0.2.2", 8000);
  };
  assertEquals(await reaches(), "peer");
  await network.calls();
  const port = "$(ls /sys/class/net | grep vethmu)";
  const remake = `ip link delete ${network.bridge}`;
  const losses: [loss: string, problem: RegExp, cuts?: boolean][] = [
    [`ip link set ${port} down`, /link "vethmu.*" is down/, true],
    [`ip link set ${port} nomaster`, /link "vethmu.*" is no port of "mubr0"$/m, true],
    ["ip -n tapkit-web link set eth0 down", /link "eth0" is down/, true],
    ["ip -n tapkit-web address flush dev eth0", /lacks the address 10\.40\.0\.2\/24/],
    ["ip -n tapkit-web route del default", /route to 0\.0\.0\.0\/0 by 10\.40\.0\.1 is gone/],
    [remake, /link "vethmu.*" is no port of "mubr0", which is gone/, true],
  ];
  for (const [loss, problem, cuts = false] of losses) {
    await t.step(loss, async () => {
      await host.sh(loss);
      const { code, problems } = await check(host);
      assertEquals(code, 3);
      assertMatch(problems.join("\n"), problem);
      if (cuts) assertEquals(await reaches(), "closed");
      if (loss === remake) await network.makeBridge();
      const again = await host.mustTapkit("attach-vm", "web");
      assertMatch(again.stderr, /mending/);
      assertEquals(again.json, [record]);
      assertEquals(await check(host), { code: 0, problems: [] });
      assertEquals([await reaches(), await network.calls()], ["peer", []]);
    });
  }
});

Deno.test("attach-vm --restore: a network that keys its IPAM by container id gives the address again, and the MAC is given by tapkit", async (t) => {
  const { host: one, network } = await hostWith();
  await using host = one;
  const before = await host.snapshot();
  // Its address goes before the others' do, so that a lower one is free.
  await host.mustTapkit("attach-vm", "first");
  const { json: [record] } = await host.mustTapkit("attach-vm", "web");
  await host.mustTapkit("attach-vm", "first", "--remove");
  assertEquals(record.interfaces[0].addresses[0].address, "10.40.0.3/24");
  const port = "$(ls /sys/class/net | grep vethmu)";
  const holds = host.spawn("sleep", ["60"], { netns: "tapkit-web" });
  const losses: [loss: string, calls: string[]][] = [
    ["ip netns delete tapkit-web", ["ADD"]],
    [`ip link delete ${port}`, ["ADD"]],
  ];
  await network.calls();
  // A process in a namespace without a name keeps the pair.
  for (const [loss, calls] of losses) {
    await t.step(loss, async () => {
      await host.sh(loss);
      const restored = await host.mustTapkit("attach-vm", "--restore");
      assertEquals(restored.json, [record], restored.stderr);
      assert(!restored.stderr.includes("warning"), restored.stderr);
      assertEquals(await network.calls(), calls);
      assertEquals(await check(host), { code: 0, problems: [] });
      await using guest = await NetnsGuest.start(host, record);
      await guest.dhcp();
      assertEquals(await fetchName(guest, "192.0.2.2", 8000), "peer");
    });
  }
  await t.step("while it is down the address is not given back", async () => {
    await host.sh("ip netns delete tapkit-web");
    await network.stop();
    const failed = await host.tapkit("attach-vm", "--restore");
    assertEquals(failed.code, 1);
    assertMatch(failed.stderr, /connection refused/);
    await network.start();
    assertEquals((await host.mustTapkit("attach-vm", "--restore")).json, [record]);
    assertEquals(await network.calls(), ["ADD", "ADD"]);
  });
  await t.step("what refuses ADD for what is there is asked to let go of it first", async () => {
    await host.sh("ip netns delete tapkit-web");
    await network.refuseTwice();
    const { json: [changed], stderr } = await host.mustTapkit("attach-vm", "--restore");
    assertEquals(await network.calls(), ["ADD", "DEL", "ADD"]);
    assertMatch(stderr, /making room by DEL: made-up: ADD .*has an address already/);
    assertEquals(changed.interfaces[0].mac, record.interfaces[0].mac);
    assertMatch(stderr, /warning: "eth0" had the address 10\.40\.0\.3, now it has 10\.40\.0\.2/);
  });
  await holds[Symbol.asyncDispose]();
  await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals(await network.given(), {});
  await host.assertRestored(before, {
    except: [/made-up\/(calls|once)/, /ip_forward/, /(fe80|ff00):/],
  });
});

Deno.test("attach-vm --mac: is given where the plugin takes none, unless its CHECK pins another", async () => {
  const { host: one } = await hostWith();
  await using host = one;
  const mac = "02:00:00:00:00:77";
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--mac", mac);
  assertEquals(record.interfaces[0].mac, mac);
  const [eth0] = JSON.parse(
    await host.must("ip", ["-n", "tapkit-web", "-j", "link", "show", "eth0"]),
  );
  assertEquals(eth0.address, mac);
  assertEquals(await check(host), { code: 0, problems: [] });

  // Behind it a plugin that has seen which MAC the interface got.
  await host.writeFile(
    "/opt/cni/bin/pins",
    `#!/bin/sh
     conf=$(cat)
     now=$(nsenter --net=$CNI_NETNS ip -o link show eth0 | sed 's/.*ether \\([^ ]*\\).*/\\1/')
     case $CNI_COMMAND in
       ADD) echo $now >/run/pinned; printf '%s' "$conf" | sed 's/.*"prevResult"://; s/}$//' ;;
       CHECK) [ $now = $(cat /run/pinned) ] || { echo '{"code": 9, "msg": "MAC is not allowed"}'; exit 1; } ;;
     esac`,
    0o755,
  );
  await MadeUpNetwork.install(host, {
    name: "pinned",
    bridge: "pinbr0",
    prefix: "10.50.0",
    mtu: 1500,
    cniVersion: "0.4.0",
    chained: [{ type: "pins" }],
    priority: 50,
  });
  const pinned = ["attach-vm", "pin", "--network", "pinned"] as const;
  const before = await host.snapshot();
  const refused = await host.tapkit(...pinned, "--mac", mac);
  assertEquals(refused.code, 1);
  assertMatch(refused.stderr, /"pinned" gave the MAC .* not 02:00:00:00:00:77/);
  await host.assertRestored(before, { except: [/pinned/, /(fe80|ff00):/, /serve-dhcp/] });
  await host.mustTapkit(...pinned);
  await host.sh("ip netns delete tapkit-pin");
  const { stderr } = await host.mustTapkit("attach-vm", "--restore");
  assertMatch(stderr, /warning: "eth0" had the MAC address .*, now it has/);
  assertEquals(await check(host, "pin"), { code: 0, problems: [] });
});

Deno.test("attach-vm: an address that another VM has is refused, and --check names both", async () => {
  const { host: one, network } = await hostWith();
  await using host = one;
  await host.mustTapkit("attach-vm", "a");
  await network.forget();
  const before = await host.snapshot();
  const refused = await host.tapkit("attach-vm", "b");
  assertEquals(refused.code, 1);
  assertMatch(
    refused.stderr,
    /network "made-up" gave the address 10\.40\.0\.2, which VM "a" has: .*IPAM/,
  );
  await host.assertRestored(before, { except: [/made-up\/calls/, /(fe80|ff00):/, /serve-dhcp/] });
  assertEquals(await check(host, "a"), { code: 0, problems: [] });

  // As a version that did not compare left it.
  const vms = "/var/lib/tapkit/vms";
  await host.mustTapkit("attach-vm", "a", "--remove");
  await host.mustTapkit("attach-vm", "a");
  await host.mustTapkit("attach-vm", "b");
  await host.sh(`sed -i 's/10\\.40\\.0\\.3/10.40.0.2/g' ${vms}/b.json`);
  for (const [name, other] of [["a", "b"], ["b", "a"]] as const) {
    const { code, problems } = await check(host, name);
    assertEquals(code, 3);
    assertMatch(
      problems.join("\n"),
      new RegExp(`10\\.40\\.0\\.2 of "eth0" of VM "${name}" is that of VM "${other}" too`),
    );
  }
});
