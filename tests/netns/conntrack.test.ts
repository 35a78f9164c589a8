import process from "node:process";
import { assert, assertEquals } from "@std/assert";
import { SyscallError } from "../../lib/errors.ts";
import { ipToBytes } from "../../lib/inet/ip.ts";
import {
  decodeFlow,
  type DeletedFlows,
  deleteFlows,
  encodeFilter,
  type FlowMatch,
} from "../../lib/netlink/conntrack.ts";
import { NFNL_SUBSYS, nfnlType, openNetfilter } from "../../lib/netlink/nfnetlink.ts";
import { libc } from "../../lib/sys/libc.ts";
import { type Netns, newNetns, withNetns } from "../../lib/sys/netns.ts";
import { Socket } from "../../lib/sys/socket.ts";
import { runInside } from "../support/topology.ts";

const IPCTNL_MSG_CT_GET = 1;
const [AF_INET, AF_INET6, SOCK_DGRAM] = [2, 10, 2];

// libc stays open: the first test to open it would be told that it leaks it.
libc();

/** A namespace that tracks what it sends to itself. */
function trackingNetns(): Netns {
  const netns = newNetns();
  runInside(
    netns,
    `ip link set lo up
     ip address add 192.0.2.1/32 dev lo
     nft 'table inet track { chain output { type filter hook output priority 0; ct state new accept
     }
     }'`,
  );
  return netns;
}

/** Sends a datagram from each of `count` ports. */
function sendFrom(netns: Netns, count: number, address: string, port: number): void {
  const bytes = ipToBytes(address);
  const ipv4 = bytes.length === 4;
  const sockaddr = new Uint8Array(ipv4 ? 16 : 28);
  const view = new DataView(sockaddr.buffer);
  view.setUint16(0, ipv4 ? AF_INET : AF_INET6, true);
  view.setUint16(2, port);
  sockaddr.set(bytes, ipv4 ? 4 : 8);
  withNetns(netns, () => {
    // Open until the end: a port that is free again may be chosen again.
    using sockets = new DisposableStack();
    for (let index = 0; index < count; index++) {
      const domain = ipv4 ? AF_INET : AF_INET6;
      const socket = sockets.use(Socket.open(domain, SOCK_DGRAM, 0, "udp socket"));
      socket.send(new Uint8Array(1), sockaddr);
    }
  });
}

Deno.test("deleteFlows: deletes what matches, however many flows there are", () => {
  for (const extra of [0, 600]) {
    using netns = trackingNetns();
    using nl = withNetns(netns, openNetfilter);
    const count = (match: FlowMatch) => {
      const type = nfnlType(NFNL_SUBSYS.CTNETLINK, IPCTNL_MSG_CT_GET);
      return nl.dump(type, encodeFilter(match)).length;
    };
    deleteFlows(nl, { matches: [{ protocol: "udp" }] });
    sendFrom(netns, 3, "127.0.0.1", 53);
    sendFrom(netns, 4, "192.0.2.1", 53);
    sendFrom(netns, 5, "::1", 53);
    sendFrom(netns, 2 + extra, "127.0.0.1", 54);

    // What the kernel filters by.
    assertEquals(count({ protocol: "udp", originalDestinationPort: 53, family: 4 }), 7);
    assertEquals(count({ protocol: "udp", originalDestinationPort: 53, family: 6 }), 5);
    assertEquals(count({ protocol: "tcp", originalDestinationPort: 53, family: 4 }), 0);
    assertEquals(count({ originalSource: "192.0.2.1" }), 4);
    assertEquals(count({ replySource: "192.0.2.1" }), 4);
    assertEquals(count({}), 14 + extra);

    const dns = { protocol: "udp", originalDestinationPort: 53 } as const;
    const left = (flows: DeletedFlows) => {
      deleteFlows(nl, flows);
      return count({}) - extra;
    };
    assertEquals(left({ matches: [{ ...dns, family: 4 }], confirm: () => false }), 14);
    assertEquals(left({ matches: [{ ...dns, originalDestination: "127.0.0.1", family: 4 }] }), 11);
    assertEquals(left({ matches: [{ ...dns, family: 6 }] }), 6);
    assertEquals(left({ addresses: ["192.0.2.1", "::1"], confirm: () => false }), 2);
    assertEquals(left({ matches: [dns, { originalSource: "192.0.2.1" }] }), 2);
  }
});

Deno.test("decodeFlow: reads what the kernel sends", () => {
  using netns = trackingNetns();
  using nl = withNetns(netns, openNetfilter);
  sendFrom(netns, 1, "::1", 53);
  const [message] = nl.dump(nfnlType(NFNL_SUBSYS.CTNETLINK, IPCTNL_MSG_CT_GET), encodeFilter({}));
  const flow = decodeFlow(message!.payload)!;
  assertEquals(flow.family, 6);
  assertEquals([flow.original.source, flow.original.destination], ["::1", "::1"]);
  assertEquals([flow.original.protocol, flow.original.destinationPort], [17, 53]);
  assertEquals(flow.reply.destinationPort, flow.original.sourcePort);
});

Deno.test("deleteFlows: all of an address go within a second, of 240,000", () => {
  using netns = trackingNetns();
  using nl = withNetns(netns, openNetfilter);
  const sockaddr = new Uint8Array(16);
  const view = new DataView(sockaddr.buffer);
  view.setUint16(0, AF_INET, true);
  withNetns(netns, () => {
    using sockets = new DisposableStack();
    for (let index = 0; index < 60; index++) {
      const socket = sockets.use(Socket.open(AF_INET, SOCK_DGRAM, 0, "udp socket"));
      // To itself from there, or from 127.0.0.1.
      sockaddr.set(ipToBytes(index % 2 === 0 ? "192.0.2.1" : "127.0.0.1"), 4);
      for (let port = 1; port <= 4000; port++) {
        view.setUint16(2, port);
        try {
          socket.send(new Uint8Array(1), sockaddr);
        } catch (error) {
          // An earlier one came to nobody.
          if (!(error instanceof SyscallError)) throw error;
        }
      }
    }
  });
  const tracked = () => Number(runInside(netns, "cat /proc/sys/net/netfilter/nf_conntrack_count"));
  assert(tracked() > 100_000, `${tracked()} flows`);
  // Of processor time, whatever else the machine does.
  const began = process.cpuUsage();
  deleteFlows(nl, { addresses: ["192.0.2.1"] });
  const { user, system } = process.cpuUsage(began);
  const took = (user + system) / 1000;
  const left = tracked();
  assert(left > 50_000 && left <= 120_000, `${left} flows of others`);
  assert(took < 1000, `${took} ms`);
});
