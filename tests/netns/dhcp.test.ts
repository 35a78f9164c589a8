import { assertEquals, assertInstanceOf, assertStringIncludes } from "@std/assert";
import { wireGuard } from "../../lib/vm/wire/guard.ts";
import { tapGuard } from "../../lib/vm/wire/guest-guard.ts";
import { buildUdpFrame, parseUdpFrame } from "../../lib/dhcp/frame.ts";
import type { DhcpGuest } from "../../lib/dhcp/lease.ts";
import { DhcpType, optionU8 } from "../../lib/dhcp/options.ts";
import { decodeDhcp, type DhcpMessage, encodeDhcp } from "../../lib/dhcp/packet.ts";
import { type DhcpCounters, DhcpServer } from "../../lib/dhcp/server.ts";
import { SyscallError } from "../../lib/errors.ts";
import { ipToBytes } from "../../lib/inet/ip.ts";
import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import { addRedirectFilter, replaceBpfFilter } from "../../lib/netlink/filter.ts";
import { createVeth, deleteLink, requireLink, setLink } from "../../lib/netlink/link.ts";
import { addIngressQdisc } from "../../lib/netlink/qdisc.ts";
import { Inotify, InotifyEvent } from "../../lib/sys/inotify.ts";
import { closeFd, failedWith, writeFd } from "../../lib/sys/libc.ts";
import { type Netns, newNetns, withNetns } from "../../lib/sys/netns.ts";
import { openPacketSocket } from "../../lib/sys/packet.ts";
import type { Socket } from "../../lib/sys/socket.ts";
import { readGolden } from "../golden/read.ts";
import { type ClientName, CLIENTS, hasClient, runClient } from "../support/dhcp-clients.ts";
import {
  DhcpWire,
  GUEST_MAC,
  pathOf,
  plugTap,
  readFrame,
  serving,
  TAP,
} from "../support/dhcp-wire.ts";
import { bytes, ethernet } from "../support/frames.ts";
import { GUARD_CASES } from "../support/guard-cases.ts";

const GUEST: DhcpGuest = {
  mac: GUEST_MAC,
  address: "172.18.0.2/16",
  gateway: "172.18.0.1",
  routes: [{ dst: "10.9.0.0/16", gw: "172.18.0.7" }],
  nameservers: ["127.0.0.53", "192.0.2.53", "192.0.2.54"],
  search: ["example.org", "lab.example.org"],
  hostname: "web",
  mtu: 1400,
};

const [DISCOVER, REQUEST] = readGolden("udhcpc", "dhcp");

function tapOf(netns: Netns, guest: Partial<DhcpGuest> = {}) {
  return { key: "web/eth0", netnsPath: pathOf(netns), tap: TAP, guest: { ...GUEST, ...guest } };
}

/** The golden request with something about it changed. */
function variant(frame: Uint8Array, changes: Partial<DhcpMessage>): Uint8Array<ArrayBuffer> {
  const datagram = parseUdpFrame(frame)!;
  const payload = encodeDhcp({ ...decodeDhcp(datagram.payload), ...changes });
  return buildUdpFrame({ ...datagram, payload });
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (let round = 0; round < 400; round++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`waited in vain for ${what}`);
}

/** The next DHCP message that comes out of a TAP. */
async function nextReply(fd: number): Promise<DhcpMessage> {
  let reply: DhcpMessage | undefined;
  await until(() => {
    const frame = readFrame(fd);
    const datagram = frame === undefined ? undefined : parseUdpFrame(frame);
    if (datagram?.sourcePort === 67) reply = decodeDhcp(datagram.payload);
    return reply !== undefined;
  }, "a reply");
  return reply!;
}

function countersOf(server: DhcpServer): Partial<DhcpCounters> {
  const counters = Object.entries(server.counters.get("web/eth0") ?? {});
  return Object.fromEntries(counters.filter(([, count]) => count > 0));
}

function openFds(): number {
  return [...Deno.readDirSync("/proc/self/fd")].length;
}

const TOLD: Readonly<Record<ClientName, Readonly<Record<string, string>>>> = {
  udhcpc: {
    ip: "172.18.0.2",
    mask: "16",
    subnet: "255.255.0.0",
    router: "172.18.0.1",
    serverid: "172.18.0.1",
    broadcast: "172.18.255.255",
    dns: "192.0.2.53 192.0.2.54",
    domain: "example.org",
    search: "example.org lab.example.org",
    hostname: "web",
    mtu: "1400",
    lease: "4294967295",
    staticroutes: "10.9.0.0/16 172.18.0.7 0.0.0.0/0 172.18.0.1",
  },
  dhclient: {
    new_ip_address: "172.18.0.2",
    new_subnet_mask: "255.255.0.0",
    new_routers: "172.18.0.1",
    new_dhcp_server_identifier: "172.18.0.1",
    new_broadcast_address: "172.18.255.255",
    new_domain_name_servers: "192.0.2.53 192.0.2.54",
    new_domain_name: "example.org",
    new_domain_search: "example.org. lab.example.org.",
    new_host_name: "web",
    new_interface_mtu: "1400",
    new_dhcp_lease_time: "4294967295",
    new_rfc3442_classless_static_routes: "16 10 9 172 18 0 7 0 172 18 0 1",
  },
  dhcpcd: {
    new_ip_address: "172.18.0.2",
    new_subnet_cidr: "16",
    new_routers: "172.18.0.1",
    new_dhcp_server_identifier: "172.18.0.1",
    new_broadcast_address: "172.18.255.255",
    new_domain_name_servers: "192.0.2.53 192.0.2.54",
    new_domain_name: "example.org",
    new_domain_search: "example.org lab.example.org",
    new_host_name: "web",
    new_interface_mtu: "1400",
    new_dhcp_lease_time: "4294967295",
    new_classless_static_routes: "10.9.0.0/16 172.18.0.7 0.0.0.0/0 172.18.0.1",
  },
};

for (const client of Object.keys(CLIENTS) as ClientName[]) {
  Deno.test({
    name: `DhcpServer: ${client} gets its lease and all that goes with it`,
    ignore: !hasClient(client),
    fn: async () => {
      await using wire = new DhcpWire();
      using server = new DhcpServer();
      server.sync([tapOf(wire.host)]);
      await using _serving = serving(server);
      const told = await runClient(wire, client);
      const expected = TOLD[client];
      const relevant = Object.keys(expected).map((name) => [name, told[name]]);
      assertEquals(Object.fromEntries(relevant), expected);
      assertEquals(countersOf(server), { received: 2, offered: 1, acked: 1 });
    },
  });
}

Deno.test("DhcpServer: answers on the TAP itself and counts what came", async () => {
  using netns = newNetns();
  const fd = plugTap(netns, TAP);
  try {
    using server = new DhcpServer();
    server.sync([tapOf(netns)]);
    await using _serving = serving(server);
    writeFd(fd, DISCOVER!);
    const offer = await nextReply(fd);
    assertEquals([optionU8(offer.options, 53), offer.yiaddr], [DhcpType.OFFER, "172.18.0.2"]);
    writeFd(fd, REQUEST!);
    assertEquals(optionU8((await nextReply(fd)).options, 53), DhcpType.ACK);

    const elsewhere = new Map(decodeDhcp(parseUdpFrame(REQUEST!)!.payload).options);
    elsewhere.set(50, ipToBytes("172.18.0.3"));
    writeFd(fd, variant(REQUEST!, { options: elsewhere }));
    assertEquals(optionU8((await nextReply(fd)).options, 53), DhcpType.NAK);

    writeFd(fd, variant(DISCOVER!, { chaddr: "02:00:00:00:00:0b" }));
    writeFd(fd, variant(DISCOVER!, { options: new Map([[53, Uint8Array.of(DhcpType.RELEASE)]]) }));
    const damaged = DISCOVER!.slice();
    damaged[100]! ^= 1;
    writeFd(fd, damaged);
    await until(() => countersOf(server).received === 6, "six frames");
    assertEquals(countersOf(server), {
      received: 6,
      offered: 1,
      acked: 1,
      naked: 1,
      ignored: 1,
      released: 1,
      malformed: 1,
    });
  } finally {
    closeFd(fd);
  }
});

Deno.test("DhcpServer: takes a guest's change over, and tries again what was missing", async () => {
  using netns = newNetns();
  const notes: string[] = [];
  using server = new DhcpServer({ note: (text) => notes.push(text) });
  await using _serving = serving(server);
  const missing = tapOf(netns);
  for (let round = 0; round < 2; round++) {
    server.sync([missing, { ...missing, key: "lost/eth0", netnsPath: "/run/netns/nowhere" }]);
    assertEquals([...server.errors.keys()].toSorted(), ["lost/eth0", "web/eth0"]);
  }
  assertEquals(notes.length, 2);
  assertStringIncludes(notes.join("\n"), "no DHCP for lost/eth0");
  const error = server.errors.get("lost/eth0");
  assertInstanceOf(error, SyscallError);
  assertEquals(error.code, "ENOENT");

  const fd = plugTap(netns, TAP);
  try {
    server.sync([tapOf(netns)]);
    assertEquals(server.errors.size, 0);
    writeFd(fd, DISCOVER!);
    assertEquals((await nextReply(fd)).yiaddr, "172.18.0.2");
    server.sync([tapOf(netns, { address: "172.18.0.9/16" })]);
    writeFd(fd, DISCOVER!);
    assertEquals((await nextReply(fd)).yiaddr, "172.18.0.9");
    server.sync([], (key) => key !== "web/eth0");
    assertEquals(countersOf(server), { received: 2, offered: 2 });
    server.sync([tapOf(netns, { mac: "nonsense" })]);
    assertEquals([server.counters.size, server.errors.size], [0, 1]);
    server.sync([]);
    assertEquals([server.counters.size, server.errors.size], [0, 0]);
  } finally {
    closeFd(fd);
  }
});

Deno.test("DhcpServer: follows a path to the namespace that took the place of another", async () => {
  using before = newNetns();
  using after = newNetns();
  const fds = [before, after].map((netns) => plugTap(netns, TAP));
  const directory = Deno.makeTempDirSync();
  try {
    const netnsPath = `${directory}/netns`;
    using server = new DhcpServer();
    await using _serving = serving(server);
    for (const netns of [before, after]) {
      Deno.symlinkSync(pathOf(netns), netnsPath);
      server.sync([{ ...tapOf(netns), netnsPath }]);
      Deno.removeSync(netnsPath);
    }
    writeFd(fds[0]!, DISCOVER!);
    writeFd(fds[1]!, DISCOVER!);
    await nextReply(fds[1]!);
    assertEquals(countersOf(server), { received: 1, offered: 1 });
  } finally {
    fds.forEach(closeFd);
    Deno.removeSync(directory, { recursive: true });
  }
});

/** Deletes or changes the TAP of a namespace. */
function change(netns: Netns, what: "delete" | "up" | "down"): void {
  withNetns(netns, () => {
    using nl = NetlinkConnection.open();
    if (what === "delete") deleteLink(nl, TAP);
    else setLink(nl, requireLink(nl, TAP).index, { up: what === "up" });
  });
}

Deno.test("DhcpServer: forgets a TAP that vanishes, and keeps nothing of its namespace", async () => {
  using netns = newNetns();
  using server = new DhcpServer();
  await using _serving = serving(server);
  for (const ways of [["delete"], ["down", "delete"]] as const) {
    const before = openFds();
    closeFd(plugTap(netns, TAP));
    server.sync([tapOf(netns)]);
    assertEquals(openFds(), before + 1);
    for (const way of ways) {
      change(netns, way);
      if (way === "down") await new Promise((resolve) => setTimeout(resolve, 60));
    }
    await until(() => server.counters.size === 0, "the TAP to be forgotten");
    assertEquals(openFds(), before);
    assertEquals(server.errors.size, 0);
  }
});

Deno.test("DhcpServer: serves a TAP again that was down, from the start or for a while", async () => {
  using netns = newNetns();
  const fd = plugTap(netns, TAP);
  try {
    change(netns, "down");
    using server = new DhcpServer();
    server.sync([tapOf(netns)]);
    await using _serving = serving(server);
    for (let round = 0; round < 2; round++) {
      await new Promise((resolve) => setTimeout(resolve, 30));
      change(netns, "up");
      writeFd(fd, DISCOVER!);
      await nextReply(fd);
      change(netns, "down");
    }
    assertEquals(countersOf(server), { received: 2, offered: 2 });
  } finally {
    closeFd(fd);
  }
});

Deno.test("DhcpServer: tells of another descriptor, and ends when told to", async () => {
  const directory = Deno.makeTempDirSync();
  try {
    using server = new DhcpServer();
    using inotify = new Inotify();
    inotify.watch(directory, InotifyEvent.MOVED_TO | InotifyEvent.CLOSE_WRITE);
    let changes = 0;
    server.watch(inotify.fd, () => {
      inotify.drain();
      changes++;
    });
    const end = new AbortController();
    const run = server.run(end.signal);
    Deno.writeTextFileSync(`${directory}/record`, "");
    await until(() => changes === 1, "the change");
    Deno.writeTextFileSync(`${directory}/record`, "");
    end.abort();
    await run;
    assertEquals(changes, 1);
    await server.run(AbortSignal.abort());
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

/** ARP of a hardware that is none. */
const [ARP, MARKER] = [0x0806, 0xfefe];
const PEER_MAC = "02:00:00:00:00:0b";

/** A path for frames: one end's way in and the other end's way out. */
interface Path {
  send(frame: Uint8Array<ArrayBuffer>): void;
  receive(): Uint8Array | undefined;
}

function marker(number: number): Uint8Array<ArrayBuffer> {
  const numbers = [MARKER, number].flatMap((value) => [value >> 8, value & 0xff]);
  return bytes(ethernet(ARP), numbers, new Uint8Array(42));
}

function markerOf(frame: Uint8Array): number | undefined {
  const half = (offset: number) => (frame[offset]! << 8) | frame[offset + 1]!;
  return half(12) === ARP && half(14) === MARKER ? half(16) : undefined;
}

/** Which of some frames come through, when each is followed by a marker of its own. */
async function carried(frames: readonly Uint8Array[], path: Path): Promise<boolean[]> {
  // A link drops frames for a moment after it came up.
  await until(() => {
    path.send(marker(frames.length));
    return path.receive() !== undefined;
  }, "the link");
  const results: boolean[] = [];
  for (const [index, frame] of frames.entries()) {
    path.send(bytes(frame));
    path.send(marker(index));
    let came = false;
    await until(() => {
      for (let received = path.receive(); received !== undefined; received = path.receive()) {
        const number = markerOf(received);
        if (number === index) return true;
        if (number === undefined) came = true;
      }
      return false;
    }, "the marker");
    results.push(came);
  }
  return results;
}

/** What one tag more makes of a tagged frame: the kernel takes the outermost off. */
function onWire(frame: Uint8Array): Uint8Array {
  const tagged = (frame[12] === 0x81 && frame[13] === 0) ||
    (frame[12] === 0x88 && frame[13] === 0xa8);
  return tagged ? bytes(frame.subarray(0, 12), [0x81, 0, 0, 5], frame.subarray(12)) : frame;
}

function receiveFrom(socket: Socket, buffer: Uint8Array<ArrayBuffer>): Uint8Array | undefined {
  try {
    const address = new Uint8Array(20);
    const frame = buffer.slice(0, socket.receive(buffer, 0, address));
    const PACKET_OUTGOING = 4;
    return address[10] === PACKET_OUTGOING ? undefined : frame;
  } catch (error) {
    if (failedWith(error, "EAGAIN")) return undefined;
    throw error;
  }
}

for (const leased of [false, true]) {
  Deno.test(`tapGuard, wireGuard: in the kernel, between a TAP and its network${leased ? " that leases" : ""}`, async () => {
    using vm = newNetns();
    using network = newNetns();
    for (const netns of [vm, network]) {
      withNetns(netns, () => {
        Deno.writeTextFileSync("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
      });
    }
    const tap = plugTap(vm, TAP);
    try {
      withNetns(vm, () => {
        using nl = NetlinkConnection.open();
        createVeth(nl, {
          name: "eth0",
          mac: GUEST_MAC,
          up: true,
          peer: { name: "port", mac: PEER_MAC, netnsFd: network.fd },
        });
        const [eth0, guest] = [requireLink(nl, "eth0").index, requireLink(nl, TAP).index];
        for (
          const [index, target, program] of [
            [guest, eth0, tapGuard()],
            [eth0, guest, wireGuard(GUEST_MAC, { leased })],
          ] as const
        ) {
          addIngressQdisc(nl, index);
          replaceBpfFilter(nl, { index, priority: 1, name: "guard", program });
          addRedirectFilter(nl, { index, target, priority: 2 });
        }
      });
      using port = withNetns(network, () => {
        using nl = NetlinkConnection.open();
        const { index } = requireLink(nl, "port");
        setLink(nl, index, { up: true });
        return openPacketSocket({ ifindex: index });
      });
      const buffer = new Uint8Array(2048);
      const frames = GUARD_CASES.map(([, frame]) => onWire(frame));
      const expected = (tagged: boolean) =>
        GUARD_CASES.map(([name, frame, verdict]) => [
          name,
          verdict === "pass" && (tagged || onWire(frame) === frame),
        ]);
      const named = (results: boolean[]) =>
        results.map((came, index) => [GUARD_CASES[index]![0], came]);
      const toNetwork = await carried(frames, {
        send: (frame) => writeFd(tap, frame),
        receive: () => receiveFrom(port, buffer),
      });
      // Of a guest nothing passes with a tag.
      assertEquals(named(toNetwork), expected(false));
      const inward: Path = { send: (frame) => port.send(frame), receive: () => readFrame(tap) };
      const toGuest = await carried(frames, inward);
      assertEquals(named(toGuest), expected(true));

      const reflections: readonly [from: string, to: string, passes: boolean][] = [
        [GUEST_MAC, "ff:ff:ff:ff:ff:ff", false],
        [GUEST_MAC, PEER_MAC, false],
        [GUEST_MAC, GUEST_MAC, true],
        [PEER_MAC, "ff:ff:ff:ff:ff:ff", true],
        [PEER_MAC, GUEST_MAC, true],
      ];
      const arp = reflections.map(([from, to]) => {
        return bytes(ethernet(0x0806, { from, to }), new Uint8Array(46));
      });
      const heard = await carried(arp, inward);
      assertEquals(heard, reflections.map(([, , passes]) => passes));
    } finally {
      closeFd(tap);
    }
  });
}
