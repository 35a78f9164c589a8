import { assertEquals, assertMatch } from "@std/assert";
import { requireReference } from "../support/cni-reference.ts";
import { DUAL_BRIDGE, PUBLISHING_NETWORK } from "../support/dual-network.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { Lan } from "../support/lan.ts";
import { eventually, Machine } from "../support/machine.ts";

const QUICK = { timeoutSeconds: 1 };
const IPTABLES_FLUSH = `
  for program in iptables ip6tables; do
    for table in filter nat mangle raw; do $program -t $table -F; done
  done`;

/** A host between two LANs, with a machine on each that takes it for its router and serves HTTP. */
async function betweenLans(): Promise<{ host: Host; one: Machine; two: Machine }> {
  const host = await Host.create();
  const one = await host.addLan();
  const lan = host.own(await Lan.create());
  const two = host.own(await Machine.create({ name: "two" }));
  await lan.connect(host, { link: "eth-two", addresses: ["198.51.100.1/24", "2001:db8:2::1/64"] });
  await lan.connect(two, {
    addresses: ["198.51.100.2/24", "2001:db8:2::2/64"],
    gateways: ["198.51.100.1", "2001:db8:2::1"],
  });
  await one.serveHttp(80, "one");
  await two.serveHttp(80, "two");
  return { host, one, two };
}

const reaches = async (machine: Machine, address: string, netns?: string) =>
  (await machine.fetch(`http://${address}/`, { ...QUICK, ...netns === undefined ? {} : { netns } }))
    .status === 200;

/** Whether either of the LANs reaches the other, by IPv4 and by IPv6. */
async function routed({ one, two }: { one: Machine; two: Machine }): Promise<boolean[]> {
  return await Promise.all([
    reaches(one, "198.51.100.2"),
    reaches(two, "192.0.2.2"),
    reaches(one, "[2001:db8:2::2]"),
    reaches(two, "[2001:db8::2]"),
  ]);
}

/** Whether the host forwards. */
async function forwarding(host: Host): Promise<string> {
  return (await host.sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"))
    .replaceAll("\n", "");
}

/** A container on a bridge of another runtime. */
async function addContainer(host: Host, bridge: string, subnet: string): Promise<void> {
  await host.sh(`
    ip link show ${bridge} >/dev/null 2>&1 || {
      ip link add ${bridge} type bridge
      ip addr add ${subnet}.1/24 dev ${bridge}
      ip link set ${bridge} up
    }
    ip netns add ${bridge}
    ip link add ${bridge}0 type veth peer name eth0 netns ${bridge}
    ip link set ${bridge}0 master ${bridge} up
    ip -n ${bridge} link set eth0 up
    ip -n ${bridge} addr add ${subnet}.200/16 dev eth0
    ip -n ${bridge} route replace default via ${subnet}.1`);
}

const DUAL = {
  ...PUBLISHING_NETWORK,
  plugins: [
    {
      ...DUAL_BRIDGE,
      ipam: {
        type: "host-local",
        ranges: [[{ subnet: "172.18.0.0/24" }], [{ subnet: "fd00:5::/64" }]],
      },
    },
    PUBLISHING_NETWORK.plugins[1],
  ],
};
const BOTH_OFF = "00";
const NEITHER = [false, false, false, false];

for (const firewall of ["nftables", "iptables"]) {
  Deno.test(`attach-vm: a host that forwards for guests is no router for others (${firewall})`, async (t) => {
    const lans = await betweenLans();
    await using host = lans.host;
    await host.writeFile("/etc/cni/net.d/10-dual.conflist", JSON.stringify(DUAL));
    // As a network of Weave's before anything forwards: it waits for that.
    await addContainer(host, "weave", "172.20.0");
    assertEquals([await forwarding(host), ...await routed(lans)], [BOTH_OFF, ...NEITHER]);
    const flags = ["--firewall", firewall, "--plugins", "builtin", "--ports", "8080:80"];
    const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...flags);
    {
      await using guest = await NetnsGuest.start(host, record);
      await guest.dhcp();
      const six = record.interfaces[0].addresses[1];
      await guest.sh(`ip -6 addr add ${six.address} dev eth0 nodad
        ip -6 route add default via ${six.gateway}`);
      await guest.settle();
      await guest.serveHttp(80, "guest");
      await addContainer(host, "later", "172.21.0");
      // A machine that has a route to them.
      await lans.one.sh("ip route add 172.16.0.0/12 via 192.0.2.1");
      const works = async () => {
        assertEquals(await forwarding(host), "11");
        for (const address of ["192.0.2.2", "198.51.100.2", "[2001:db8::2]", "[2001:db8:2::2]"]) {
          assertEquals(await reaches(guest, address), true, address);
        }
        for (const address of ["192.0.2.1:8080", "[2001:db8::1]:8080"]) {
          assertEquals(await reaches(lans.one, address), true, address);
        }
        assertEquals(await reaches(lans.two, "198.51.100.1:8080"), true);
        for (const bridge of ["weave", "later"]) {
          assertEquals(await reaches(host, "192.0.2.2", bridge), true, bridge);
        }
      };
      await works();
      assertEquals(await routed(lans), NEITHER);

      // What a flush takes is open until it is put back; --check says so.
      const set = firewall === "nftables"
        ? "nft flush set inet tapkit apart4; nft flush set inet tapkit apart6"
        : "iptables -D TAPKIT-FORWARD -i eth-lan -o eth-two -m comment --comment host -j DROP";
      for (const damage of [firewall === "nftables" ? "nft flush ruleset" : IPTABLES_FLUSH, set]) {
        await t.step(damage, async () => {
          await host.sh(damage);
          const { code, json } = await host.tapkit("attach-vm", "web", "--check");
          assertEquals(code, 3, damage);
          assertMatch(json[0].problems.join("\n"), /not forwarded from "eth-lan" to "eth-two"/);
          await host.mustTapkit("attach-vm", "web");
          assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
          await works();
          assertEquals(await routed(lans), NEITHER);
        });
      }
      await t.step("another's attach finds the rules gone, and makes all of them", async () => {
        await host.sh(firewall === "nftables" ? "nft flush ruleset" : IPTABLES_FLUSH);
        await host.mustTapkit("attach-vm", "api", "--firewall", firewall, "--plugins", "builtin");
        assertEquals(await routed(lans), NEITHER);
      });
    }
    await host.mustTapkit("attach-vm", "api", "--remove");
    assertEquals(await forwarding(host), "11");
    await host.sh("ip netns del later; ip link del later");
    const { stderr } = await host.mustTapkit("attach-vm", "web", "--remove");
    assertMatch(stderr, /ip_forward stays 1: bridge "weave" may rely on it/);
    assertEquals(await forwarding(host), "11");
    const rules = await host.sh("nft list ruleset; ls /run/tapkit 2>/dev/null || :");
    assertEquals(/tapkit|settings/i.test(rules), false, rules);
  });
}

Deno.test("attach-vm: forwarding goes back to what it was with the last guest", async () => {
  const lans = await betweenLans();
  await using host = lans.host;
  await host.writeFile("/etc/cni/net.d/10-dual.conflist", JSON.stringify(DUAL));
  await host.sh(`
    cd /proc/sys/net
    echo 0 >ipv4/conf/all/accept_redirects; echo 1 >ipv4/conf/eth-two/forwarding
    echo 1 >ipv6/conf/eth-lan/accept_ra`);
  const settings = async () =>
    (await host.snapshot()).split("\n").filter((line) => line.startsWith("sysctl "));
  const before = await settings();
  for (const last of ["web", "to"]) {
    await host.mustTapkit("attach-vm", "web", "--plugins", "builtin");
    await host.mustTapkit("map-port", "--to", "192.0.2.2", "8081:80");
    await host.mustTapkit("map-port", "--to", "2001:db8::2", "8081:80");
    assertEquals(await forwarding(host), "11");
    // By its own setting this link's forwarding was on.
    assertEquals(await routed(lans), [false, true, false, false]);
    const removals = [
      ["attach-vm", "web", "--remove"],
      ["map-port", "--to", "192.0.2.2", "--remove", "8081:80"],
      ["map-port", "--to", "2001:db8::2", "--remove", "8081:80"],
    ] as const;
    const order = last === "web" ? removals.toReversed() : removals;
    for (const [index, [script, ...args]] of order.entries()) {
      const { stderr } = await host.mustTapkit(script, ...args);
      assertEquals(stderr, "");
      assertEquals(await forwarding(host) === "00", index === 2);
    }
    assertEquals(await settings(), before);
  }
  // An attach that fails turns nothing on for good.
  await host.serveHttp(8080, "mine");
  assertEquals((await host.tapkit("attach-vm", "web", "--ports", "8080:80")).code, 1);
  assertEquals(await settings(), before);
});

Deno.test("attach-vm: a host that forwarded before tapkit came forwards as before", async () => {
  const lans = await betweenLans();
  await using host = lans.host;
  await host.writeFile("/etc/cni/net.d/10-dual.conflist", JSON.stringify(DUAL));
  await host.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
  const settings = async () =>
    (await host.snapshot()).split("\n").filter((line) => line.startsWith("sysctl "));
  const before = await settings();
  const all = [true, true, true, true];
  assertEquals(await routed(lans), all);
  await host.mustTapkit("attach-vm", "web", "--plugins", "builtin", "--ports", "8080:80");
  assertEquals(await routed(lans), all);
  await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals(await routed(lans), all);
  assertEquals(await settings(), before);
});

Deno.test("attach-vm: frames that pass a bridge to a LAN are not taken for forwarded ones", async () => {
  const lans = await betweenLans();
  await using host = lans.host;
  // With a port that is no container's, and machines of others behind it.
  await host.sh(`
    sysctl -qw net.bridge.bridge-nf-call-iptables=1
    ip link add br0 type bridge
    ip link add card type vxlan id 7 dev eth-lan dstport 4789
    ip link set card master br0 up; ip link set br0 up`);
  for (const number of [1, 2]) {
    await host.sh(`
      ip netns add m${number}; ip link add m${number} type veth peer name eth0 netns m${number}
      ip link set m${number} master br0 up; ip -n m${number} link set eth0 up
      ip -n m${number} addr add 203.0.113.${number}/24 dev eth0`);
  }
  await host.mustTapkit("attach-vm", "web");
  const apart = await host.sh("nft list set inet tapkit apart4");
  assertMatch(apart, /"br0" \. "eth-lan"/);
  assertEquals(apart.includes('"br0" . "br0"'), false, apart);
  // New ports of a bridge take a moment.
  await eventually(8000, "one machine behind the bridge reaches the other", async () => {
    const ping = ["ping", "-c1", "-W1", "203.0.113.2"];
    return (await host.run("busybox", ping, { netns: "m1" })).code === 0;
  });
});

Deno.test("attach-vm: forwarding that a plugin of others turns on joins no LANs, and goes back", async () => {
  requireReference();
  const lans = await betweenLans();
  await using host = lans.host;
  await host.writeFile("/etc/cni/net.d/10-dual.conflist", JSON.stringify(DUAL));
  const before = await host.snapshot();
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--plugins", "exec");
  {
    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    assertEquals(await forwarding(host), "11");
    assertEquals(await routed(lans), NEITHER);
    assertEquals(await reaches(guest, "198.51.100.2"), true);
    assertEquals((await host.tapkit("attach-vm", "web", "--check")).json[0].problems, []);
  }
  await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals(await forwarding(host), BOTH_OFF);
  // The reference plugins leave their bridge and their chains.
  await host.assertRestored(before, {
    except: [/cni0|CNI-|iptables|tables-|nft |fe80:|ff00::|10\.|172\.18/],
  });
});
