/**
 * attach-vm on a network whose addresses the reference dhcp plugin's daemon leases from a server on
 * the LAN.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { formatMac } from "../../lib/inet/mac.ts";
import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import { requireLink } from "../../lib/netlink/link.ts";
import { openNetns, withNetns } from "../../lib/sys/netns.ts";
import { openPacketSocket } from "../../lib/sys/packet.ts";
import { REFERENCE_DIR, requireReference } from "../support/cni-reference.ts";
import { bytes, ethernet, ipv4, udp } from "../support/frames.ts";
import { type CarriedFrame, NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { eventually, type Machine } from "../support/machine.ts";
import type { Running } from "../support/running.ts";

requireReference();

const IP = 0x0800;
const ROGUE_MAC = "02:00:00:00:00:66";
const LEASE_SECONDS = 10;
const SOCKET = "/run/tapkit-test-dhcp.sock";

/** A host with the plugin's daemon, and the machine of its LAN that has the DHCP server. */
interface LeasingHost extends AsyncDisposable {
  readonly host: Host;
  readonly peer: Machine;
  /** Its standard output says what becomes of its leases. */
  readonly daemon: Running;
}

async function leasingHost(): Promise<LeasingHost> {
  const host = await Host.create();
  const peer = await host.addLan();
  await peer.serveHttp(80, "page");
  await peer.writeFile("/run/leases", "");
  await peer.writeFile("/run/udhcpd.conf", serverConfig("192.0.2.150", LEASE_SECONDS));
  peer.spawn("busybox", ["udhcpd", "-f", "/run/udhcpd.conf"]);
  const daemon = await startDaemon(host);
  const ipam = { type: "dhcp", daemonSocketPath: SOCKET };
  const list = {
    cniVersion: "0.4.0",
    name: "net",
    plugins: [{ type: "macvlan", master: "eth-lan", ipam }],
  };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", JSON.stringify(list));
  return { host, peer, daemon, [Symbol.asyncDispose]: () => host[Symbol.asyncDispose]() };
}

async function startDaemon(host: Host): Promise<Running> {
  // One that was killed leaves its socket behind.
  await host.sh(`rm -f ${SOCKET}`);
  const command = `exec ${REFERENCE_DIR}/dhcp daemon -socketpath ${SOCKET} 2>&1`;
  const daemon = host.spawn("sh", ["-c", command]);
  await eventually(5000, "the daemon listens", async () => {
    return (await host.run("test", ["-S", SOCKET])).code === 0;
  });
  return daemon;
}

/** udhcpd's configuration: ten addresses from the first one on. */
function serverConfig(first: string, leaseSeconds: number): string {
  const last = first.replace(/\d+$/, (number) => `${Number(number) + 9}`);
  return `start ${first}\nend ${last}\nmax_leases 10\ninterface eth0\nlease_file /run/leases\n` +
    "pidfile /run/udhcpd.pid\noption subnet 255.255.255.0\noption router 192.0.2.2\n" +
    `min_lease ${leaseSeconds}\noption lease ${leaseSeconds}\n`;
}

/** The address of each lease that the server has given and nobody has given back. */
async function leasedAddresses(peer: Machine): Promise<string[]> {
  // At the signal it writes the file anew, and then waits for requests again.
  await peer.sh(`
    pid=$(cat /run/udhcpd.pid)
    touch -d @0 /run/leases
    kill -USR1 $pid
    until [ $(stat -c %Y /run/leases) != 0 ] && grep -q '^State:.S' /proc/$pid/status; do
      sleep 0.02
    done`);
  const lines = (await peer.must("busybox", ["dumpleases", "-f", "/run/leases"])).split("\n");
  return lines.filter((line) => /^([0-9a-f]{2}:){5}/.test(line) && !line.includes("expired"))
    .map((line) => line.split(/\s+/)[1]!);
}

/** Waits until the server has read the release, a datagram; for less than a lease still lasts. */
async function givenBack(peer: Machine): Promise<void> {
  await eventually(LEASE_SECONDS * 1000 / 3, "the lease is given back", async () => {
    return (await leasedAddresses(peer)).length === 0;
  });
}

/** Whether a frame is DHCP: a request of a client, or an answer of a server. */
function dhcpOf({ bytes: frame }: CarriedFrame): "request" | "answer" | undefined {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  if (frame.length < 42 || view.getUint16(12) !== IP || frame[23] !== 17) return undefined;
  const port = view.getUint16(14 + (frame[14]! & 0xf) * 4 + 2);
  return port === 67 ? "request" : port === 68 ? "answer" : undefined;
}

/** Offers of a server that nobody asked, to everybody and to one guest. */
function rogueOffers(mac: string, ip: string): Uint8Array<ArrayBuffer>[] {
  const offer = udp({ source: 67, destination: 68 }, 308);
  const all = { from: ROGUE_MAC, to: "ff:ff:ff:ff:ff:ff" };
  const own = { from: ROGUE_MAC, to: mac };
  const source = "192.0.2.66";
  return [
    bytes(ethernet(IP, all), ipv4(offer, { source, destination: "255.255.255.255" })),
    bytes(ethernet(IP, own), ipv4(offer, { source, destination: ip })),
    bytes(ethernet(IP, own), ipv4(offer, { source, destination: ip, options: 8 })),
    bytes(ethernet(IP, own), ipv4(offer, { source, destination: ip, fragment: 0x2000 })),
    bytes(ethernet(IP, own, [0x8100]), ipv4(offer, { source, destination: ip })),
  ];
}

/** Puts frames on the LAN as a machine's own. */
function sendFrom(machine: Machine, frames: readonly Uint8Array<ArrayBuffer>[]): void {
  using netns = openNetns(machine.netnsPath);
  using socket = withNetns(netns, () => {
    using nl = NetlinkConnection.open();
    return openPacketSocket({ ifindex: requireLink(nl, "eth0").index });
  });
  for (const frame of frames) socket.send(frame);
}

Deno.test("attach-vm: a lease of the dhcp plugin is renewed while the VM is there, then given back", async () => {
  await using network = await leasingHost();
  const { host, peer, daemon } = network;
  const before = await host.snapshot();
  const { json: [record] } = await host.mustTapkit("attach-vm", "web");
  const [{ mac, mode, leased, addresses: [{ address }] }] = record.interfaces;
  assertEquals([mode, leased], ["tc-redirect", true]);
  assertMatch(address, /^192\.0\.2\.1[56]\d\/24$/);
  const ip = address.split("/")[0];
  assertEquals(await leasedAddresses(peer), [ip]);
  {
    await using guest = await NetnsGuest.start(host, record);
    // Until the lease was renewed, so that the server's answers are among what might be heard.
    const frames = await guest.sniff(async () => {
      const lease = await guest.dhcp();
      assertEquals([lease.ip, lease.router], [ip, ["192.0.2.2"]]);
      sendFrom(peer, rogueOffers(mac, ip));
      await daemon.line((line) => line.includes("lease renewed"), {
        timeoutMs: LEASE_SECONDS * 1000,
      });
      // The plugin's CHECK asks for another lease.
      const check = await host.tapkit("attach-vm", "web", "--check");
      assertEquals([check.code, check.json], [0, [{ vm: "web", problems: [] }]], check.stderr);
      sendFrom(peer, rogueOffers(mac, ip));
      await guest.dhcp();
    });
    assertEquals(daemon.lines.filter((line) => line.includes("acquiring lease")).length, 2);
    const heard = frames.filter(({ direction }) => direction === "to-guest");
    assertEquals(heard.filter((frame) => dhcpOf(frame) === "request"), []);
    const answers = heard.filter((frame) => dhcpOf(frame) === "answer");
    const lan = [
      ROGUE_MAC,
      JSON.parse(await peer.must("ip", ["-j", "link", "show", "eth0"]))[0].address,
    ];
    const fromLan = answers.filter(({ bytes }) => lan.includes(formatMac(bytes.subarray(6, 12))));
    assertEquals(fromLan, []);
    assert(answers.length >= 4, "tapkit's own answers");

    // A server of the guest's own gets no request, and nobody an answer.
    await guest.writeFile("/run/leases", "");
    await guest.writeFile("/run/udhcpd.conf", serverConfig("192.0.2.170", 3600));
    guest.spawn("busybox", ["udhcpd", "-f", "/run/udhcpd.conf"]);
    const stranger = await peer.run("busybox", [
      ...["udhcpc", "-i", "eth0", "-s", "/bin/true", "-f", "-q", "-n", "-t", "2", "-T", "1"],
    ]);
    assertEquals(stranger.code, 1, stranger.stderr);

    const link = await host.must("ip", ["-n", "tapkit-web", "-j", "link", "show", "eth0"]);
    const again = await host.mustTapkit("attach-vm", "web");
    assertEquals([again.json, again.stderr], [[record], ""]);
    assertEquals(await host.must("ip", ["-n", "tapkit-web", "-j", "link", "show", "eth0"]), link);

    // Each comes half a lease after the one before: by the second the first lease is over.
    await eventually(3 * LEASE_SECONDS * 1000, "the lease is renewed twice", () => {
      return daemon.lines.filter((line) => line.includes("lease renewed")).length >= 2;
    });
    assertEquals(JSON.parse(link)[0].operstate, "UP");
    assertEquals(await host.must("ip", ["-n", "tapkit-web", "-j", "link", "show", "eth0"]), link);
    assertEquals((await guest.fetch("http://192.0.2.2/")).body, "page");
    assertEquals(await leasedAddresses(peer), [ip]);
  }
  await host.mustTapkit("attach-vm", "web", "--remove");
  await givenBack(peer);
  await host.assertRestored(before);
});

Deno.test("attach-vm: the dhcp plugin's daemon hears the server after each change and --restore, or the mode is refused", async () => {
  await using network = await leasingHost();
  const { host, peer, daemon } = network;
  const before = await host.snapshot();
  // On a bridge's port it would hear nothing.
  const { code, stderr } = await host.tapkit("attach-vm", "web", "--mode", "dhcp-bridge");
  assertEquals(code, 2, stderr);
  assertMatch(stderr, /network "net" .*the dhcp plugin, which cannot renew .*: leave --mode out/);
  assertEquals(daemon.lines, []);
  await host.assertRestored(before);

  const { json: [record] } = await host.mustTapkit("attach-vm", "web");
  const passesCheck = async () => {
    const check = await host.tapkit("attach-vm", "web", "--check");
    assertEquals([check.code, check.json], [0, [{ vm: "web", problems: [] }]], check.stderr);
  };
  await passesCheck();
  // What a reboot does to both.
  daemon.kill();
  await daemon.status;
  await host.sh("ip netns delete tapkit-web");
  const second = await startDaemon(host);
  const { json: [restored] } = await host.mustTapkit("attach-vm", "--restore");
  assertEquals(restored, record);
  await passesCheck();
  const loose = await host.mustTapkit("attach-vm", "web", "--no-antispoof");
  assertEquals(loose.json[0].interfaces[0].leased, true);
  await passesCheck();
  // The guards go with the rest of the wire, and come back with it.
  await host.must("tc", ["-n", "tapkit-web", "qdisc", "delete", "dev", "eth0", "ingress"]);
  const mended = await host.mustTapkit("attach-vm", "web", { env: { TAPKIT_DEBUG: "1" } });
  assertMatch(mended.stderr, /repairing: the guard of "eth0" is missing/);
  await passesCheck();
  // A new daemon knows of no lease until CHECK asks it.
  second.kill();
  await second.status;
  const third = await startDaemon(host);
  assertEquals((await host.mustTapkit("attach-vm", "web")).json, mended.json);
  await third.line((line) => line.includes("lease acquired"));
  await host.mustTapkit("attach-vm", "web", "--remove");
  await givenBack(peer);
  await host.assertRestored(before);
});
