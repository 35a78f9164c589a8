import { assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { PUBLISHING_NETWORK } from "../support/dual-network.ts";
import {
  REFERENCE_BRIDGE,
  REFERENCE_PORTMAP,
  referenceNetwork,
  requireReference,
} from "../support/cni-reference.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { STATES } from "../support/attack-scene.ts";
import { honestFrame, loopbackFrames, unheard } from "../support/loopback.ts";
import { eventually, type Machine } from "../support/machine.ts";
import { Wiretap } from "../support/wiretap.ts";

const QUICK = { timeoutSeconds: 1 };

/** Which of the host's links have `route_localnet`. */
async function opened(host: Host): Promise<string[]> {
  const text = await host.sh("cd /proc/sys/net/ipv4/conf; grep -l 1 */route_localnet || :");
  return text.split("\n").filter(Boolean).map((path) => path.split("/")[0]!);
}

const drop = (host: Host, link: string) => host.sh(`tc filter show dev ${link} ingress`);

/** A container on a bridge of the host, by another runtime. */
async function addContainer(host: Host, bridge = "ignite0", ip = "172.18.200.1"): Promise<void> {
  await host.sh(`
    ip netns add box
    ip link add box0 type veth peer name eth0 netns box
    ip link set box0 master ${bridge} up
    ip -n box link set eth0 up
    ip -n box addr add ${ip}/16 dev eth0`);
}

/** Asserts that no frame to 127.0.0.0/8 comes in, where one to the host's own address does. */
async function assertClosed(
  host: Host,
  attacker: { path: string; mac: string; hostMac: string; ip: string; gateway: string },
  what: string,
): Promise<void> {
  const { path, mac, hostMac, ip, gateway } = attacker;
  using tap = Wiretap.open(path, "eth0");
  const before = await unheard(host);
  for (const frame of loopbackFrames(mac, hostMac, ip)) tap.send(frame);
  tap.send(honestFrame(mac, hostMac, ip, gateway));
  await eventually(3000, `${what}: the honest datagram comes`, async () => {
    return await unheard(host) > before;
  });
  assertEquals(await unheard(host) - before, 1, what);
}

async function macOf(machine: Machine, link: string, netns?: string): Promise<string> {
  const where = netns === undefined ? {} : { netns };
  const text = await machine.must("ip", ["-j", "link", "show", "dev", link], where);
  return JSON.parse(text)[0].address;
}

for (const firewall of ["nftables", "iptables"]) {
  for (const bridged of [0, 1]) {
    const title = `${firewall}, bridge-nf-call-iptables ${bridged}`;
    Deno.test(`attach-vm --ports: 127.0.0.1 stays closed whatever is flushed (${title})`, async (t) => {
      await using host = await Host.create();
      const peer = await host.addLan();
      await host.sh(`sysctl -qw net.bridge.bridge-nf-call-iptables=${bridged}`);
      const flags = ["--firewall", firewall, "--no-antispoof"];
      const { json } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80", ...flags);
      const { json: [second] } = await host.mustTapkit("attach-vm", "mal", ...flags);
      await using web = await NetnsGuest.start(host, json[0]);
      await using mal = await NetnsGuest.start(host, second);
      await web.dhcp();
      await mal.dhcp();
      await web.serveHttp(80, "hello");
      await addContainer(host);
      await peer.serveHttp(80, "lan");
      await host.mustTapkit("map-port", "--to", "192.0.2.2", "8081:80");
      assertEquals(await opened(host), ["eth-lan", "ignite0"]);
      const [hostMac, lanMac] = [await macOf(host, "ignite0"), await macOf(host, "eth-lan")];
      const attackers = [
        {
          path: mal.netnsPath,
          mac: second.interfaces[0].mac,
          hostMac,
          ip: "172.18.0.3",
          gateway: "172.18.0.1",
        },
        {
          path: host.path("/run/netns/box"),
          mac: await macOf(host, "eth0", "box"),
          hostMac,
          ip: "172.18.200.1",
          gateway: "172.18.0.1",
        },
        {
          path: peer.netnsPath,
          mac: await macOf(peer, "eth0"),
          hostMac: lanMac,
          ip: "192.0.2.2",
          gateway: "192.0.2.1",
        },
      ];
      const closed = async (what: string, those = attackers) => {
        for (const attacker of those) {
          await assertClosed(host, attacker, `${what}, ${attacker.ip}`);
        }
      };
      assertEquals((await host.fetch("http://127.0.0.1:8080/")).body, "hello");
      assertEquals((await host.fetch("http://127.0.0.1:8081/")).body, "lan");
      await closed("as attached");
      for (const [state, script] of Object.entries(STATES)) {
        if (script === "") continue;
        await t.step(state, async () => {
          await host.sh(script);
          await closed(state);
          await host.mustTapkit("attach-vm", "web", "mal");
          await host.mustTapkit("attach-vm", "--restore");
          assertEquals((await host.fetch("http://127.0.0.1:8080/")).body, "hello", state);
          assertEquals((await host.fetch("http://127.0.0.1:8081/")).body, "lan", state);
          await closed(`mended ${state}`);
        });
      }
      // What opened goes with the last that needed it, though the bridge stays.
      await host.mustTapkit("map-port", "--to", "192.0.2.2", "--remove", "8081:80");
      assertEquals(await opened(host), ["ignite0"]);
      await host.mustTapkit("attach-vm", "web", "mal", "--remove");
      assertEquals(await opened(host), []);
      assertEquals(await drop(host, "ignite0"), "");
      await closed("all removed", attackers.slice(1));
    });
  }
}

Deno.test("attach-vm, map-port: route_localnet is there while a mapping needs it", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "keeper", "--ports", "192.0.2.1:7000:80");
  assertEquals(await opened(host), []);
  const qdiscs = await host.sh("tc qdisc show");
  const steps: readonly (readonly [string, ...string[]])[] = [
    ["attach-vm", "web", "--ports", "8080:80"],
    ["attach-vm", "web", "--ports", "none"],
    ["attach-vm", "web", "--ports", "127.0.0.1:8080:80"],
    ["map-port", "web", "127.0.0.1:8080:80", "--remove"],
    ["map-port", "web", "8080:80"],
    ["attach-vm", "api", "--ports", "0:80"],
    ["attach-vm", "web", "--remove"],
    ["attach-vm", "api", "--ports", "192.0.2.1:8080:80"],
    ["map-port", "api", "127.0.0.3:8080:80"],
    ["attach-vm", "api", "--remove"],
  ];
  const seen: (readonly string[])[] = [];
  for (const [script, ...args] of steps) {
    await t.step(`${script} ${args.join(" ")}`, async () => {
      await host.mustTapkit(script, ...args);
      seen.push(await opened(host));
      const filter = await drop(host, "ignite0");
      assertEquals(
        filter !== "",
        seen.at(-1)!.length > 0,
        `${script} ${args.join(" ")}: ${filter}`,
      );
    });
  }
  const [open, shut] = [["ignite0"], []];
  assertEquals(seen, [open, shut, open, shut, open, open, open, shut, open, shut]);
  assertEquals(await host.sh("tc qdisc show"), qdiscs);
});

Deno.test("attach-vm --ports: what is there at the link's ingress lives on, and a value of its own", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "keeper");
  await host.sh(`
    echo 1 >/proc/sys/net/ipv4/conf/ignite0/route_localnet
    tc qdisc add dev ignite0 clsact
    tc filter add dev ignite0 ingress pref 1 handle 7 protocol all bpf bytecode '1,6 0 0 4294967295' da
    tc filter add dev ignite0 egress pref 3 protocol all bpf bytecode '1,6 0 0 4294967295' da`);
  const before = await host.snapshot();
  const filters = () =>
    host.sh("tc filter show dev ignite0 ingress; tc filter show dev ignite0 egress");
  const foreign = await filters();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  assertMatch(await filters(), /pref 1 bpf chain 0 handle 0x746b/);
  await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals(await filters(), foreign);
  await host.assertRestored(before, { except: [/tapkit\/generation|serve-dhcp|fe80:|ff00::/] });
  // A priority of another kind, and the other qdisc.
  await host.sh(`
    tc qdisc delete dev ignite0 clsact
    tc qdisc add dev ignite0 ingress
    tc filter add dev ignite0 ingress pref 1 protocol all u32 match u32 0 0 action mirred egress mirror dev lo`);
  const other = await host.sh("tc filter show dev ignite0 ingress");
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  assertMatch(await host.sh("tc filter show dev ignite0 ingress"), /pref 2 bpf .* handle 0x746b/);
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
  await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals(await host.sh("tc filter show dev ignite0 ingress"), other);
  assertEquals(await opened(host), ["ignite0"]);
});

Deno.test("attach-vm --check: a filter that is gone is missed, and attaching again puts it back", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  await addBridge(host);
  const before = await host.snapshot();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  for (
    const breaking of [
      "tc qdisc delete dev ignite0 clsact",
      "tc filter delete dev ignite0 ingress",
      // The journal too: what tapkit opened is known by the record.
      "tc qdisc delete dev ignite0 clsact; rm -r /run/tapkit",
    ]
  ) {
    await t.step(breaking, async () => {
      await host.sh(breaking);
      const { code, json } = await host.tapkit("attach-vm", "web", "--check");
      assertEquals([code, json[0].problems], [3, [
        'the filter of "ignite0" that keeps 127.0.0.0/8 closed is missing',
      ]]);
      await host.mustTapkit("attach-vm", "web");
      assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
    });
  }
  await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals(await opened(host), []);
  // A bridge of others, whose MAC follows its ports.
  await host.assertRestored(before, {
    except: [/ip_forward|forwarding|accept_redirects|fe80:|ff00::|link ignite0/],
  });
});

/** A bridge of the default network's name that stays. */
async function addBridge(host: Host): Promise<void> {
  await host.sh(
    "ip link add ignite0 type bridge; ip link set ignite0 up promisc on; ip addr add 172.18.0.1/16 dev ignite0",
  );
  await host.mustTapkit("install-default-cni", "--subnet", "172.18.0.0/16", "--force");
}

Deno.test("attach-vm: what links inherit from conf.default does not matter", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await host.writeFile("/etc/cni/net.d/10-dual.conflist", JSON.stringify(PUBLISHING_NETWORK));
  await host.sh(`
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    cd /proc/sys/net
    echo 0 >ipv4/conf/default/forwarding; echo 0 >ipv6/conf/default/forwarding
    echo 8 >ipv4/conf/default/arp_ignore; echo 1 >ipv4/conf/default/rp_filter
    echo 1 >ipv4/conf/default/route_localnet
    echo 1 >ipv6/conf/default/disable_ipv6; echo 1 >ipv6/conf/default/accept_ra`);
  const before = await host.snapshot();
  const flags = ["--plugins", "builtin"];
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...flags);
  assertEquals((await opened(host)).includes("cni0"), false);
  {
    await using guest = await NetnsGuest.start(host, record);
    const { ip } = await guest.dhcp();
    const [, six] = record.interfaces[0].addresses;
    await guest.sh(`
      ip -6 addr add ${six.address} dev eth0 nodad
      ip -6 route add default via ${six.gateway}`);
    await guest.settle();
    await peer.serveHttp(80, "lan");
    assertEquals((await guest.fetch("http://192.0.2.2/")).body, "lan", ip);
    assertEquals((await guest.fetch("http://[2001:db8::2]/")).body, "lan");
    assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
    // Others may set them later.
    const settings = ["ipv4/conf/cni0/forwarding=0", "ipv4/conf/cni0/arp_ignore=8"]
      .concat("ipv6/conf/cni0/forwarding=0");
    for (const setting of settings) {
      const [path, value] = setting.split("=");
      await host.sh(`echo ${value} >/proc/sys/net/${path}`);
      const { code, json } = await host.tapkit("attach-vm", "web", "--check");
      assertEquals([code, json[0].problems.length], [3, 1], JSON.stringify(json));
      await host.mustTapkit("attach-vm", "web");
      assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
    }
    assertNotEquals((await guest.fetch("http://192.0.2.2/", QUICK)).status, 0);
  }
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm: what executed plugins open is closed, and goes back with the last VM", async (t) => {
  requireReference();
  await using host = await Host.create();
  const peer = await host.addLan();
  const ipam = { ...REFERENCE_BRIDGE.ipam, subnet: "10.20.0.0/16" };
  const plugins = [
    { ...REFERENCE_BRIDGE, hairpinMode: true, ipam },
    { ...REFERENCE_PORTMAP, snat: true },
  ];
  await host.writeFile("/etc/cni/net.d/10-net.conflist", referenceNetwork(plugins));
  const flags = ["--plugins", "exec"];
  const { json: [record] } = await host.mustTapkit(
    "attach-vm",
    "web",
    "--ports",
    "8080:80",
    ...flags,
  );
  await host.mustTapkit("attach-vm", "api", "--ports", "8081:80", ...flags);
  await using web = await NetnsGuest.start(host, record);
  await web.dhcp();
  await web.serveHttp(80, "hello");
  assertEquals((await host.fetch("http://127.0.0.1:8080/")).body, "hello");
  assertEquals((await peer.fetch("http://192.0.2.1:8080/")).body, "hello");
  await host.sh(`
    ip netns add box
    ip link add box0 type veth peer name eth0 netns box
    ip link set box0 master cnibr0 up
    ip -n box link set eth0 up
    ip -n box addr add 10.20.200.1/16 dev eth0`);
  const box = {
    path: host.path("/run/netns/box"),
    mac: await macOf(host, "eth0", "box"),
    hostMac: await macOf(host, "cnibr0"),
    ip: "10.20.200.1",
    gateway: "10.20.0.1",
  };
  assertEquals(await opened(host), ["cnibr0"]);
  await assertClosed(host, box, "as attached");
  await host.sh(STATES["after nft flush ruleset"]);
  await assertClosed(host, box, "after nft flush ruleset");
  await host.sh("tc qdisc delete dev cnibr0 clsact");
  const check = await host.tapkit("attach-vm", "api", "--check");
  assertMatch(check.json[0].problems.join(), /filter of "cnibr0" that keeps 127.0.0.0\/8 closed/);
  await host.mustTapkit("attach-vm", "web", "api");
  await assertClosed(host, box, "mended");
  for (
    const [args, links] of [
      [["attach-vm", "web", "--remove"], ["cnibr0"]],
      [["attach-vm", "api", "--ports", "192.0.2.1:8081:80"], []],
      [["attach-vm", "api", "--ports", "8081:80"], ["cnibr0"]],
      [["map-port", "api", "--remove", "8081:80"], []],
      [["attach-vm", "api", "--ports", "8081:80"], ["cnibr0"]],
      [["attach-vm", "api", "--remove"], []],
    ] as const
  ) {
    await t.step(args.join(" "), async () => {
      const [script, ...rest] = args;
      await host.mustTapkit(script, ...rest);
      assertEquals(await opened(host), [...links], args.join(" "));
    });
  }
  assertEquals(await drop(host, "cnibr0"), "");
});
