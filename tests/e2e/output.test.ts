/**
 * What --output prints is read by the programs that it is for: cloud-init and netplan, QEMU, and a guest
 * that boots with it. The VMMs that Debian does not have are in tests/unit/cli-output.test.ts.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";
import { QEMU, QemuGuest } from "../support/qemu.ts";

/** Two networks: the first has IPv4 and IPv6, the second a route of its own and jumbo frames. */
async function makeNetworks(host: Host) {
  const network = (name: string, ranges: string[], plugin: object, routes: object[]) =>
    host.writeFile(
      `/etc/cni/net.d/${name}.conflist`,
      JSON.stringify({
        cniVersion: "1.0.0",
        name,
        plugins: [{
          type: "bridge",
          bridge: `br-${name}`,
          isGateway: true,
          ...plugin,
          ipam: {
            type: "host-local",
            ranges: ranges.map((subnet) => [{ subnet }]),
            routes,
          },
        }],
      }),
    );
  await host.sh("mkdir -p /etc/cni/net.d");
  const defaults = [{ dst: "0.0.0.0/0" }, { dst: "::/0" }];
  await network("one", ["10.20.0.0/16", "fd00:20::/64"], { mtu: 1400 }, defaults);
  await network("two", ["10.21.0.0/24"], { mtu: 9000 }, [{ dst: "10.99.0.0/16", gw: "10.21.0.7" }]);
}

const ON_BOTH = ["web", "--network", "one", "--network", "two"];

/** Attaches "web" to two networks. */
async function attachTwo(host: Host) {
  await makeNetworks(host);
  return (await host.mustTapkit("attach-vm", ...ON_BOTH)).json[0];
}

async function output(host: Host, format: string): Promise<string> {
  const { stdout } = await host.mustTapkit("attach-vm", "web", "--list", "--output", format);
  return stdout.trimEnd();
}

/** The settings of a unit file, `Section.Key=value`, sorted. Empty lines do not count. */
function settings(unit: string): string[] {
  let section = "";
  return unit.split("\n").flatMap((line) => {
    const header = /^\[(\w+)\]$/.exec(line);
    if (header !== null) section = header[1]!;
    return header === null && line !== "" && !line.startsWith("#") ? [`${section}.${line}`] : [];
  }).sort();
}

Deno.test("--output cloud-init: cloud-init and netplan make of it what the record has", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const { interfaces: [eth0, eth1] } = await attachTwo(host);
  const config = await output(host, "cloud-init");
  const [four, six] = eth0.addresses.map(({ address }: { address: string }) => address);
  await host.writeFile("/tmp/network-config", config);

  await t.step("cloud-init, for systemd-networkd", async () => {
    await host.must("cloud-init", [
      ...["devel", "net-convert", "--network-data", "/tmp/network-config", "--kind", "yaml"],
      ...["--directory", "/tmp/networkd", "--distro", "debian", "--output-kind", "networkd"],
    ]);
    const read = async (name: string) =>
      settings(
        await host.readFile(`/tmp/networkd/etc/systemd/network/10-cloud-init-${name}.network`),
      );
    assertEquals(await read("eth0"), [
      `Address.Address=${four}`,
      `Address.Address=${six}`,
      "Link.MTUBytes=1400",
      `Match.MACAddress=${eth0.mac}`,
      "Match.Name=eth0",
      "Network.DHCP=no",
      "Network.DNS=192.0.2.53",
      "Network.Domains=example.test",
      "Route.Destination=0.0.0.0/0",
      "Route.Gateway=10.20.0.1",
      "Route.Gateway=fd00:20::1",
    ]);
    assertEquals(await read("eth1"), [
      `Address.Address=${eth1.addresses[0].address}`,
      "Link.MTUBytes=9000",
      `Match.MACAddress=${eth1.mac}`,
      "Match.Name=eth1",
      "Network.DHCP=no",
      "Route.Destination=10.99.0.0/16",
      "Route.Gateway=10.21.0.7",
    ]);
  });

  await t.step("cloud-init, for the others", async () => {
    const kinds = [
      ["eni", "debian"],
      ["sysconfig", "fedora"],
      ["network-manager", "fedora"],
      ["netplan", "ubuntu"],
    ] as const;
    for (const [kind, distro] of kinds) {
      await host.must("cloud-init", [
        ...["devel", "net-convert", "--network-data", "/tmp/network-config", "--kind", "yaml"],
        ...["--directory", `/tmp/${kind}`, "--distro", distro, "--output-kind", kind],
      ]);
      const written = await host.sh(`grep -rh '' /tmp/${kind}`);
      for (const text of [eth0.mac, "10.20.0.1", "fd00:20::1", "10.21.0.7", "9000"]) {
        assert(written.toLowerCase().includes(text), `${kind}: ${text}: ${written}`);
      }
    }
  });

  await t.step("netplan, which refuses keys that it does not know", async () => {
    const generate = async (text: string) => {
      await host.writeFile("/tmp/netplan/etc/netplan/50.yaml", text, 0o600);
      return await host.run("netplan", ["generate", "--root-dir", "/tmp/netplan"]);
    };
    await host.sh("mkdir -p /tmp/netplan/etc/netplan");
    const { code, stderr } = await generate(`{"network":${config}}`);
    assertEquals(code, 0, stderr);
    const file = (name: string) => `/tmp/netplan/run/systemd/network/10-netplan-${name}`;
    const eth1Network = settings(await host.readFile(file("eth1.network")));
    assert(eth1Network.includes("Route.Gateway=10.21.0.7"), eth1Network.join("\n"));
    const eth0Network = settings(await host.readFile(file("eth0.network")));
    for (const line of [`Network.Address=${six}`, "Network.Gateway=fd00:20::1"]) {
      assert(eth0Network.includes(line), eth0Network.join("\n"));
    }
    assertMatch(await host.readFile(file("eth0.link")), /^Name=eth0\n[^]*^MTUBytes=1400$/m);
    const wrong = config.replace('"routes"', '"rutes"');
    assertMatch((await generate(`{"network":${wrong}}`)).stderr, /unknown key .*rutes/);
  });
});

Deno.test("--output qemu: a guest boots with the words, and has each interface with its MAC and MTU", async () => {
  await using host = await Host.create();
  await host.addLan();
  const { vm, netns, interfaces } = await attachTwo(host);
  const words = (await output(host, "qemu")).split(" ");
  await using guest = await QemuGuest.boot(host, { vm, netns, interfaces }, { devices: words });
  for (const { name, mac, mtu } of interfaces) {
    const link = await guest.sh(`ip link show ${name}`);
    assertMatch(link, new RegExp(`mtu ${mtu} `));
    assertMatch(link, new RegExp(`link/ether ${mac} `));
  }
  assertEquals(guest.lease.ip, interfaces[0].addresses[0].address.replace(/\/.*/, ""));
});

Deno.test("--output cmdline: a guest without a DHCP client boots with the words, and is reached", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  const append = await output(host, "cmdline");
  await using guest = await QemuGuest.boot(host, record, { append });
  assertEquals((await peer.fetch("http://192.0.2.1:8080/")).status, 200);
  assertEquals(await guest.sh("hostname"), "web\n");
  assertEquals(await guest.sh("cat /etc/resolv.conf"), "nameserver 192.0.2.53\n");
  assertMatch(await guest.sh("ip route"), /^default via 172\.18\.0\.1 /m);
});

Deno.test("--output cmdline: ipconfig of Debian's initramfs makes of it what the record has", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web");
  const word = await output(host, "cmdline");
  await host.sh("ip netns add guest; ip -n guest link add eth0 type veth peer far");
  await host.sh("ip -n guest link set far up");
  await host.must("/usr/lib/klibc/bin/ipconfig", ["-t", "10", word.replace(/^ip=/, "")], {
    netns: "guest",
  });
  assertMatch(await host.sh("ip -n guest -br -4 address show eth0"), / 172\.18\.0\.2\/16 /);
  assertMatch(await host.sh("ip -n guest route"), /^default via 172\.18\.0\.1 dev eth0/m);
  const read = await host.readFile("/run/net-eth0.conf");
  assertMatch(read, /^IPV4DNS0='192\.0\.2\.53'$/m);
  assertMatch(read, /^HOSTNAME='web'$/m);
});

Deno.test("--output env: a shell reads each interface", async () => {
  await using host = await Host.create();
  await host.addLan();
  const { interfaces: [eth0, eth1] } = await attachTwo(host);
  const shown = await host.sh(
    `${await output(host, "env")}
    echo $TAPKIT_INTERFACES $TAPKIT_ETH0_MAC $TAPKIT_ETH1_MAC $TAPKIT_ETH1_IP $TAPKIT_ETH1_MTU`,
  );
  const ip = eth1.addresses[0].address.replace(/\/.*/, "");
  assertEquals(shown, `eth0 eth1 ${eth0.mac} ${eth1.mac} ${ip} 9000\n`);
});

Deno.test("attach-vm -- VMM: placeholders of each interface; one that is not there starts nothing", async () => {
  await using host = await Host.create();
  await host.addLan();
  await makeNetworks(host);
  const run = (word: string) => host.tapkit("attach-vm", ...ON_BOTH, "--", "echo", word);
  const { stdout } = await run("{tap} {eth0.tap} {eth1.tap} {eth1.netmask} {eth1.mtu} {eth1.x}");
  assertEquals(stdout, "vm_eth0 vm_eth0 vm_eth1 255.255.255.0 9000 {eth1.x}\n");
  const refused = await run("{eth2.tap}");
  assertEquals([refused.code, refused.stdout], [125, ""]);
  assertMatch(refused.stderr, /interface "eth2" that "web" does not have: name one that it has/);
  assertEquals((await host.mustTapkit("attach-vm", "--list")).stdout, "");
});

Deno.test("attach-vm --queues: a guest has so many queues, which are checked and made again", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const queued = ["web", "--queues", "2", "--ports", "8080:80"];
  const { json: [record] } = await host.mustTapkit("attach-vm", ...queued);
  assertEquals(record.interfaces[0].queues, 2);
  const tap = async () => {
    const [link] = JSON.parse(await host.sh("ip -n tapkit-web -d -j link show vm_eth0"));
    const { multi_queue, numqueues } = link.linkinfo.info_data;
    return { multi_queue, numqueues };
  };
  {
    const devices = ["-smp", "2", ...(await output(host, "qemu")).split(" ")];
    await using guest = await QemuGuest.boot(host, record, { devices });
    assertEquals(await guest.sh("ls /sys/class/net/eth0/queues"), "rx-0\nrx-1\ntx-0\ntx-1\n");
    assertEquals(await tap(), { multi_queue: true, numqueues: 2 });
    assertEquals((await peer.fetch("http://192.0.2.1:8080/")).status, 200);
  }
  // What opens a TAP for one queue cannot open it.
  const single = await host.run(QEMU, [
    ...["-M", "none", "-nodefaults", "-display", "none", "-S"],
    ...["-netdev", "tap,id=n0,ifname=vm_eth0,script=no,downscript=no"],
  ], { netns: "tapkit-web" });
  assertMatch(single.stderr, /could not configure \/dev\/net\/tun \(vm_eth0\): Invalid argument/);
  const refused = await host.tapkit("attach-vm", "web", "--list", "--output", "firecracker");
  assertMatch(
    refused.stderr,
    /Firecracker cannot open the TAP of "web".*attach it without --queues/,
  );
  const asked = await host.tapkit("attach-vm", "api", "--queues=2", "--output", "firecracker");
  assertEquals([asked.code, asked.stdout], [2, ""]);

  await host.sh(`ip -n tapkit-web link delete vm_eth0
    ip netns exec tapkit-web ip tuntap add vm_eth0 mode tap
    ip -n tapkit-web link set vm_eth0 up`);
  const { json: [{ problems }] } = await host.tapkit("attach-vm", "web", "--check");
  assert(problems.includes('TAP "vm_eth0" has one queue only'), problems.join("; "));
  const { done: [again] } = await host.mustTapkit("attach-vm", "web");
  assertEquals([again!.tapReplaced, (await tap()).multi_queue], [true, true]);
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
});
