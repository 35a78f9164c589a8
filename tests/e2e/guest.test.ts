import { assertEquals, assertNotEquals } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { eventually, type Machine } from "../support/machine.ts";

const MODES = ["tc-redirect", "dhcp-bridge"] as const;

/** The same test of either mode; `args` choose it. */
function testModes(name: string, test: (args: readonly string[]) => Promise<void>): void {
  for (const mode of MODES) Deno.test(`${name}, mode ${mode}`, () => test(["--mode", mode]));
}

/** A host with a LAN, and a guest on it that has its lease and serves HTTP on port 80. */
async function withGuest(
  args: readonly string[],
  test: (parts: { host: Host; peer: Machine; guest: NetnsGuest }) => Promise<void>,
): Promise<void> {
  await using host = await Host.create();
  const peer = await host.addLan();
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...args);
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await guest.serveHttp(80, "hello");
  await test({ host, peer, guest });
}

/** For the host's bridge and the one that may be in the VM's namespace. */
async function setBridgeNetfilter(host: Host, vm: string, value: 0 | 1): Promise<void> {
  for (const table of ["iptables", "ip6tables"]) {
    const command = ["sysctl", "-qw", `net.bridge.bridge-nf-call-${table}=${value}`];
    await host.must(command[0]!, command.slice(1));
    await host.must("ip", ["netns", "exec", `tapkit-${vm}`, ...command]);
  }
}

/** The address that a server sees its client by; httpd listens on a socket of both families. */
async function clientSeenBy(client: Machine, server: string): Promise<string> {
  const { body } = await client.fetch(`http://${server}/cgi-bin/client`);
  return body.replace(/^\[::ffff:(.*)\]$/, "$1");
}

testModes("attach-vm: the guest's lease is its record", async (args) => {
  await using host = await Host.create();
  const peer = await host.addLan({ mtu: 1450 });
  const { json: [record] } = await host.mustTapkit("attach-vm", "web_1.example", ...args);
  await using guest = await NetnsGuest.start(host, record);
  const lease = await guest.dhcp();
  const { options: _options, ...seen } = lease;
  assertEquals(seen, {
    ip: "172.18.0.2",
    mask: "16",
    router: ["172.18.0.1"],
    routes: [],
    dns: ["192.0.2.53"],
    search: ["example.test"],
    hostname: "web-1.example",
    mtu: "1450",
    lease: "86400",
    serverid: "172.18.0.1",
  });
  // It reaches the LAN, and the LAN sees the host's address.
  await peer.serveHttp(8000, "lan");
  assertEquals(await clientSeenBy(guest, "192.0.2.2:8000"), "192.0.2.1");
});

for (const value of [0, 1] as const) {
  testModes(`attach-vm --ports: everywhere, bridge-nf-call-iptables ${value}`, async (args) => {
    await withGuest(["--ports", "8080:80", ...args], async ({ host, peer, guest }) => {
      await setBridgeNetfilter(host, "web", value);
      assertEquals(await clientSeenBy(peer, "192.0.2.1:8080"), "192.0.2.2");
      assertEquals((await host.fetch("http://127.0.0.1:8080/")).body, "hello");
      assertEquals((await host.fetch("http://192.0.2.1:8080/")).body, "hello");
      assertEquals((await host.fetch("http://172.18.0.1:8080/")).body, "hello");
      assertEquals((await guest.fetch("http://192.0.2.1:8080/")).body, "hello");
      assertEquals((await guest.fetch("http://172.18.0.1:8080/")).body, "hello");
      // Another guest of the network, directly and by the port.
      const { json: [record] } = await host.mustTapkit("attach-vm", "api", ...args);
      await using other = await NetnsGuest.start(host, record);
      await setBridgeNetfilter(host, "api", value);
      await other.dhcp();
      assertEquals(await clientSeenBy(other, "172.18.0.2"), "172.18.0.3");
      assertEquals((await other.fetch("http://192.0.2.1:8080/")).body, "hello");

      const before = await host.mustTapkit("attach-vm", "web", "--ports", "none");
      assertEquals(before.json[0].ports, []);
      const replies = await Promise.all(
        [peer, host, guest, other].map((machine) => machine.fetch("http://192.0.2.1:8080/", QUICK)),
      );
      assertEquals(replies.filter(({ status }) => status === 200), []);
    });
  });
}

const QUICK = { timeoutSeconds: 1 };

testModes("attach-vm --ports: an address of the host listens there only", async (args) => {
  await withGuest(
    ["--ports", "192.0.2.1:8080:80", "--ports", "127.0.0.1:8081:80", ...args],
    async (parts) => {
      const { host, peer, guest } = parts;
      await host.must("ip", ["addr", "add", "192.0.2.7/24", "dev", "eth-lan"]);
      assertEquals((await peer.fetch("http://192.0.2.1:8080/")).status, 200);
      assertEquals((await host.fetch("http://192.0.2.1:8080/")).status, 200);
      assertEquals((await host.fetch("http://127.0.0.1:8081/")).status, 200);
      assertEquals((await guest.fetch("http://192.0.2.1:8080/")).status, 200);
      const others = [
        [peer, "http://192.0.2.7:8080/"],
        [host, "http://127.0.0.1:8080/"],
        [peer, "http://192.0.2.1:8081/"],
        [guest, "http://172.18.0.1:8081/"],
      ] as const;
      await Promise.all(others.map(async ([machine, url]) => {
        assertNotEquals((await machine.fetch(url, QUICK)).status, 200, url);
      }));
    },
  );
});

testModes("attach-vm: 127.0.0.0/8 and unpublished ports stay closed", async (args) => {
  await withGuest(["--ports", "127.0.0.1:8080:80", ...args], async ({ host, peer, guest }) => {
    await host.serveHttp(9000, "of the host");
    // A server of the host's loopback alone, and attackers who route its address at the host.
    for (const [machine, gateway] of [[peer, "192.0.2.1"], [guest, "172.18.0.1"]] as const) {
      await machine.sh(`
        ip route flush table local 127.0.0.0/8 || true
        ip addr flush dev lo
        ip route replace 127.0.0.0/8 via ${gateway}
        sysctl -qw net.ipv4.conf.all.route_localnet=1
      `);
      await Promise.all([8080, 9000].map(async (port) => {
        const { status } = await machine.fetch(`http://127.0.0.1:${port}/`, QUICK);
        assertNotEquals(status, 200, `${machine.name} ${port}`);
      }));
    }
    assertEquals((await host.fetch("http://127.0.0.1:8080/")).status, 200);
    // The guest's network routed at the host.
    await peer.must("ip", ["route", "add", "172.18.0.0/16", "via", "192.0.2.1"]);
    assertNotEquals((await peer.fetch("http://172.18.0.2/", QUICK)).status, 200);
  });
});

testModes("attach-vm --ports: a UDP client's next datagram reaches the new VM", async (args) => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const start = async (name: string) => {
    const ports = ["--ports", "5353:53/udp"];
    const { json: [record] } = await host.mustTapkit("attach-vm", name, ...ports, ...args);
    const guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    await guest.serveUdp(53, name);
    return guest;
  };
  const client = await peer.udpClient("192.0.2.1", 5353);
  {
    await using _old = await start("old");
    assertEquals((await client.answer("?")).split(" ")[0], "old");
    await host.mustTapkit("attach-vm", "old", "--remove");
  }
  assertEquals(await client.ask("?"), undefined);
  await using _new = await start("new");
  assertEquals((await client.answer("?")).split(" ")[0], "new");
});

testModes("serve-dhcp: no DHCP passes between a guest and its network", async (args) => {
  await using host = await Host.create();
  await host.addLan();
  const { json } = await host.mustTapkit("attach-vm", "web", "rogue", ...args);
  await using web = await NetnsGuest.start(host, json[0]);
  await using rogue = await NetnsGuest.start(host, json[1]);
  await rogue.dhcp();
  // One server in another guest, one on the bridge itself.
  const config = "start 172.18.9.1\nend 172.18.9.9\ninterface IF\noption subnet 255.255.0.0\n" +
    "option router 172.18.9.254\nlease_file /run/leases\npidfile /run/udhcpd.pid\n";
  for (const [machine, link] of [[rogue, "eth0"], [host, "ignite0"]] as const) {
    await machine.writeFile("/run/udhcpd.conf", config.replace("IF", link));
    await machine.writeFile("/run/leases", "");
    machine.spawn("busybox", ["udhcpd", "-f", "/run/udhcpd.conf"]);
  }
  for (let round = 0; round < 3; round++) {
    const lease = await web.dhcp();
    assertEquals([lease.ip, lease.router], ["172.18.0.2", ["172.18.0.1"]]);
  }
  // Neither side hears a word of it.
  const frames = await rogue.sniff(() => web.dhcp());
  assertEquals(
    frames.filter(({ direction, bytes }) => direction === "to-guest" && isDhcp(bytes)),
    [],
  );
});

function isDhcp(frame: Uint8Array): boolean {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  if (frame.length < 42 || view.getUint16(12) !== 0x0800 || frame[23] !== 17) return false;
  const ports = 14 + (frame[14]! & 0xf) * 4;
  return [67, 68].includes(view.getUint16(ports + 2));
}

testModes("attach-vm: a guest does not hear its own broadcasts back", async (args) => {
  await withGuest(args, async ({ guest }) => {
    const frames = await guest.sniff(async () => {
      await guest.run("busybox", ["arping", "-c", "2", "-w", "2", "-I", "eth0", "172.18.0.99"]);
    });
    const requests = frames.filter(({ bytes }) => bytes[12] === 0x08 && bytes[13] === 0x06);
    assertEquals(requests.filter(({ direction }) => direction === "to-guest").length, 0);
    assertNotEquals(requests.filter(({ direction }) => direction === "from-guest").length, 0);
  });
});

testModes("attach-vm: IPv6 of guests passes, though their namespaces have none", async (args) => {
  await using host = await Host.create();
  await host.addLan();
  // Addresses that the record does not have.
  const { json } = await host.mustTapkit("attach-vm", "a", "b", "--no-antispoof", ...args);
  await using a = await NetnsGuest.start(host, json[0]);
  await using b = await NetnsGuest.start(host, json[1]);
  // With duplicate address detection, which would hear its own probes from a hairpin port.
  await a.sh("ip addr add fd00:7::a/64 dev eth0");
  await b.sh("ip addr add fd00:7::b/64 dev eth0");
  for (const guest of [a, b]) await settled(guest);
  await a.serveHttp(80, "six");
  assertEquals((await b.fetch("http://[fd00:7::a]/")).body, "six");
});

/** Waits until no address is tentative, and asserts that none was found to be a duplicate. */
async function settled(guest: Machine): Promise<void> {
  await eventually(10_000, `no address of "${guest.name}" is tentative`, async () => {
    const show = ["-j", "-6", "addr", "show", "eth0"];
    const [{ addr_info: addresses }] = JSON.parse(await guest.must("ip", show));
    // deno-lint-ignore no-explicit-any
    assertEquals(addresses.filter((info: any) => info.dadfailed), []);
    // deno-lint-ignore no-explicit-any
    return !addresses.some((info: any) => info.tentative);
  });
}
