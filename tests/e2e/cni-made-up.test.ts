/**
 * attach-vm on a made-up network that behaves as field reports say that some makers' do: see
 * tests/support/made-up-network.ts for what it does and what it cannot show.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { FORWARDING } from "../support/snapshot.ts";
import { Host } from "../support/host.ts";
import { fetchName, serveName } from "../support/http.ts";
import { eventually, type Machine, ROOT } from "../support/machine.ts";
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

/** Lines of a snapshot that come and go while a VM is attached. */
const PASSING = [/made-up\/calls/, /(fe80|ff00):/, /serve-dhcp/, /tapkit_limits .* elements/];

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

    const start = async () => {
      const guest = await NetnsGuest.start(host, record);
      await guest.dhcp();
      await serveName(guest);
      return guest;
    };
    const passes = async (guest: NetnsGuest) => {
      const reached = await fetchName(guest, "192.0.2.2", 8000);
      assertEquals([reached, await fetchName(peer, "192.0.2.1", 8080)], ["peer", "web"]);
      assertEquals(await check(host), { code: 0, problems: [] });
    };
    {
      await using guest = await start();
      const [link] = JSON.parse(await guest.must("ip", ["-j", "link", "show", "eth0"]));
      assertEquals(link.mtu, 65521);
      await passes(guest);
    }
    // As after a reboot, but for what the network keeps.
    await host.sh("ip netns delete tapkit-web");
    assertEquals((await host.mustTapkit("attach-vm", "--restore", options)).json, [record]);
    await using guest = await start();
    await passes(guest);
    await host.sh(`ip link set $(ls /sys/class/net | grep vethmu) nomaster`);
    assertMatch((await check(host)).problems.join("\n"), /is not a port of "mubr0"/);
    await host.mustTapkit("attach-vm", "web", options);
    await passes(guest);

    const accepts = `iptables-${variant} -F TAPKIT-ACCEPT`;
    await host.sh(accepts);
    assertEquals((await check(host)).code, 3);
    await host.mustTapkit("attach-vm", "web", options);
    await passes(guest);
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

Deno.test("attach-vm: says what drops the frames of a bridge that is no router", async () => {
  const { host: one } = await hostWith();
  await using host = one;
  const ipam = { type: "host-local", subnet: "10.70.0.0/24" };
  const plugins = [{ type: "bridge", bridge: "flat0", ipam }];
  const list = { cniVersion: "1.0.0", name: "flat", plugins };
  await host.writeFile("/etc/cni/net.d/70-flat.conflist", JSON.stringify(list));
  await host.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=1");
  const attach = async (name: string) => {
    return (await host.mustTapkit("attach-vm", name, "--network", "flat")).stderr;
  };
  assert(!(await attach("a")).includes("drops"));
  await host.sh("iptables -P FORWARD DROP");
  assertMatch(
    await attach("b"),
    /drops what "flat0" passes .*: set that to 0, or let it pass: ipt/,
  );
  await host.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
  assert(!(await attach("c")).includes("drops"));
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

Deno.test("attach-vm --mtu: where the bridge follows its ports, the host's larger packets arrive in fragments", async () => {
  const { host: one, network } = await hostWith({ followsPorts: true });
  await using host = one;
  const { json: [record], stderr } = await host.mustTapkit("attach-vm", "web", "--mtu", "1376");
  assert(!stderr.includes("warning"), stderr);
  const [bridge] = JSON.parse(await host.must("ip", ["-j", "link", "show", network.bridge]));
  assertEquals(bridge.mtu, 1376);
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await host.must("busybox", ["ping", "-c", "1", "-W", "2", "-s", "3000", "10.40.0.2"]);
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
    [`ip link set ${port} nomaster`, /link "vethmu.*" is not a port of "mubr0"$/m, true],
    ["ip -n tapkit-web link set eth0 down", /link "eth0" is down/, true],
    ["ip -n tapkit-web address flush dev eth0", /lacks the address 10\.40\.0\.2\/24/],
    ["ip -n tapkit-web route del default", /route to 0\.0\.0\.0\/0 by 10\.40\.0\.1 is gone/],
    [remake, /link "vethmu.*" is not a port of "mubr0", which is gone/, true],
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
      assertMatch(again.stderr, /repairing/);
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
    await host.sh(`ip link delete ${network.bridge}`);
    assertMatch((await host.tapkit("attach-vm", "--restore")).stderr, /mubr0 does not exist/);
    await network.makeBridge();
    assertEquals((await host.mustTapkit("attach-vm", "--restore")).json, [record]);
    assertEquals(await network.calls(), ["ADD", "ADD", "ADD"]);
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
    except: [/made-up\/(calls|once)/, ...FORWARDING, /(fe80|ff00):/],
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
  await host.assertRestored(before, {
    except: [/pinned/, /checked/, ...PASSING],
  });
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
  await host.assertRestored(before, { except: PASSING });
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

Deno.test("attach-vm --remove: what failed half way is known, and is not brought back", async (t) => {
  const { host: one, network } = await hostWith();
  await using host = one;
  const before = await host.snapshot();
  for (const finish of ["--restore", "web --remove", "--gc", "web"]) {
    await t.step(`then ${finish}`, async () => {
      await host.mustTapkit("attach-vm", "web");
      await network.stop();
      const failed = await host.tapkit("attach-vm", "web", "--remove");
      assertEquals(failed.code, 1);
      assertMatch(
        failed.stderr,
        /connection refused: see that what the network runs .* is up, then/,
      );
      assertEquals((await check(host)).problems, ['VM "web" was left half removed']);
      const list = await host.tapkit("attach-vm", "--list");
      assertEquals([list.code, list.stdout], [0, ""]);
      assertMatch(list.stderr, /"web" was left half removed: run attach-vm web --remove again/);
      const restored = await host.tapkit("attach-vm", "--restore");
      assertEquals([restored.code, restored.stdout], [1, ""]);
      await network.start();
      const { json, stderr } = await host.mustTapkit("attach-vm", ...finish.split(" "));
      assertEquals(json.length, finish === "--restore" ? 0 : 1);
      if (finish !== "web") assertEquals(await network.given(), {});
      else assertMatch(stderr, /"web" was left half removed: removing what is left/);
      await host.mustTapkit("attach-vm", "web", "--remove");
      assertEquals(await network.given(), {});
      await host.assertRestored(before, {
        except: [/made-up\/calls/, ...FORWARDING, /(fe80|ff00):/],
      });
    });
  }
});

Deno.test("attach-vm: who waits says for what, and for whom", async () => {
  const { host: one, network } = await hostWith();
  await using host = one;
  await network.hang();
  const script = `${Deno.execPath()} run -A ${ROOT}/scripts/attach-vm.ts`;
  const start = (name: string, words: string) =>
    host.spawn("bash", ["-c", `exec ${script} ${words} 2>/run/${name}`]);
  const says = async (name: string, what: RegExp) => {
    await eventually(20_000, `${name} says ${what}`, async () => {
      return what.test((await host.run("cat", [`/run/${name}`])).stdout);
    });
  };
  const a = start("a", "a");
  await says("a", /waiting for the plugin "made-up" of network "made-up" \(ADD\)/);
  const again = start("again", "a --remove");
  await says("again", /waiting for VM "a", held by attach-vm a \(pid \d+\)/);
  const lock = host.spawn("flock", ["/var/lib/tapkit/lock", "sleep", "60"]);
  const b = start("b", "b");
  await says("b", /waiting for what the VMs of this host share, held by flock .* \(pid \d+\)/);
  lock.kill();
  await lock.status;
  await network.start();
  const ends = await Promise.all([a.status, b.status, again.status]);
  assertEquals(ends.map(({ code }) => code), [0, 0, 0]);
});

Deno.test("attach-vm: a plugin's error is told once and shortened, with a mend", async () => {
  const { host: one, network } = await hostWith();
  await using host = one;
  await network.stop();
  const { code, stderr } = await host.tapkit("attach-vm", "web");
  assertEquals(code, 1);
  assertEquals(stderr.match(/connection refused/g)?.length, 1, stderr);
  assertMatch(stderr, /undoing plugin "made-up" failed for the same reason/);
  assertMatch(stderr, /see that what the network runs on this host is up\n$/);
  await host.writeFile(
    "/opt/cni/bin/made-up",
    `#!/bin/sh
     long=$(yes "a long word" | head -100 | tr '\\n' ' ')
     echo "{\\"code\\": 7, \\"msg\\": \\"begins $long ends\\", \\"details\\": \\"ends\\"}"
     echo "begins $long ends" >&2
     exit 1`,
    0o755,
  );
  const long = await host.tapkit("attach-vm", "web");
  assertMatch(long.stderr, /made-up: ADD failed with code 7: begins a long word .* … .* ends/);
  assert(long.stderr.length < 700, long.stderr);
  const debug = await host.tapkit("attach-vm", "web", { env: { TAPKIT_DEBUG: "1" } });
  assertMatch(debug.stderr, /begins (a long word ){100} ends/);
});

Deno.test("attach-vm --network: one network twice, and two with default routes", async (t) => {
  const { host: one } = await hostWith();
  await using host = one;
  await MadeUpNetwork.install(host, { name: "weave-net", bridge: "wbr0", prefix: "10.60.0" });
  const attach = (...networks: string[]) =>
    host.tapkit("attach-vm", "web", ...networks.flatMap((name) => ["--network", name]));
  const gateways = async () => {
    const routes = await host.must("ip", ["-n", "tapkit-web", "-j", "route", "show", "default"]);
    return JSON.parse(routes).map((
      { dev, gateway }: { dev: string; gateway: string },
    ) => [dev, gateway]);
  };
  // deno-lint-ignore no-explicit-any -- a record.
  const defaults = ([{ interfaces }]: any[]): number[] =>
    interfaces.map(({ routes }: { routes: unknown[] }) => routes.length);
  await t.step("a plugin that is known for it is refused before anything", async () => {
    const before = await host.snapshot();
    const { code, stderr } = await attach("weave-net", "weave-net");
    assertEquals(code, 2);
    assertMatch(stderr, /"weave-net" cannot be given twice: its plugin .* by the container/);
    await host.assertRestored(before);
  });
  await t.step("another is tried, undone, and the reason is told", async () => {
    const { code, stderr } = await attach("made-up", "made-up");
    assertEquals(code, 1);
    assertMatch(stderr, /file exists.*give network "made-up" once: .* one interface a container/);
    assertEquals((await host.run("ip", ["link", "show", "master", "mubr0"])).stdout, "");
  });
  await t.step("the reference bridge can", async () => {
    const ipam = { type: "host-local", subnet: "10.20.0.0/24" };
    const bridge = { type: "bridge", bridge: "cnibr0", isDefaultGateway: true, ipMasq: true, ipam };
    await host.writeFile(
      "/etc/cni/net.d/60-net.conflist",
      JSON.stringify({ cniVersion: "1.0.0", name: "net", plugins: [bridge] }),
    );
    const { code, stderr, json } = await attach("net", "net");
    assertEquals(code, 0, stderr);
    assertEquals(defaults(json), [1, 0]);
    assertEquals(await check(host), { code: 0, problems: [] });
    await host.sh("ip netns delete tapkit-web");
    assertEquals((await host.mustTapkit("attach-vm", "--restore")).json, json);
    await host.mustTapkit("attach-vm", "web", "--remove");
    assertEquals((await host.run("ip", ["link", "show", "master", "cnibr0"])).stdout, "");
  });
  await t.step("the first network's default route stays", async () => {
    const { code, stderr, json } = await attach("made-up", "weave-net");
    assertEquals(code, 0, stderr);
    assertEquals(await gateways(), [["eth0", "10.40.0.1"]]);
    assertEquals(defaults(json), [1, 0]);
    assertEquals(await check(host), { code: 0, problems: [] });
    await host.mustTapkit("attach-vm", "web", "--remove");
  });
  await t.step("beside the default network, in either order", async () => {
    await host.mustTapkit(
      "install-default-cni",
      "--subnet",
      "172.18.0.0/16",
      "--cni-conf-dir",
      "/run/default",
    );
    await host.sh("cp /run/default/* /etc/cni/net.d/");
    for (
      const [networks, gateway] of [
        [["made-up", "ignite-cni-bridge"], "10.40.0.1"],
        [["ignite-cni-bridge", "made-up"], "172.18.0.1"],
        [["ignite-cni-bridge", "ignite-cni-bridge"], "172.18.0.1"],
      ] as const
    ) {
      const { code, stderr } = await attach(...networks);
      assertEquals(code, 0, stderr);
      assertEquals(await gateways(), [["eth0", gateway]]);
      assertEquals(await check(host), { code: 0, problems: [] });
      await host.mustTapkit("attach-vm", "web", "--remove");
    }
  });
});
