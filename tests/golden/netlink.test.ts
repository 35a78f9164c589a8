import { assert, assertEquals, assertInstanceOf } from "@std/assert";
import { addAddress, decodeAddress, deleteAddress, IFA_F } from "../../lib/netlink/address.ts";
import type { NetlinkConnection } from "../../lib/netlink/connection.ts";
import {
  addRedirectFilter,
  decodeFilter,
  encodeFilterKey,
  replaceBpfFilter,
} from "../../lib/netlink/filter.ts";
import { decodeLink, IFF, type Link } from "../../lib/netlink/link-message.ts";
import {
  createBridge,
  createVeth,
  deleteLink,
  setBridgePort,
  setLink,
} from "../../lib/netlink/link.ts";
import { decodeMessages, type Message, NLM_F, RTM } from "../../lib/netlink/message.ts";
import {
  addClsactQdisc,
  addIngressQdisc,
  decodeQdisc,
  deleteQdisc,
  TC_H,
} from "../../lib/netlink/qdisc.ts";
import type { Change } from "../../lib/netlink/requests.ts";
import { addRoute, decodeRoute, type Route } from "../../lib/netlink/route.ts";
import { readGolden } from "./read.ts";

/** Stops a verb at its first request, which it keeps. */
class Recorder extends Error {
  recorded: { type: number; flags: number; payload: Uint8Array } | undefined;

  request(type: number, flags: number, payload: Uint8Array): never {
    this.recorded = { type, flags: flags | NLM_F.REQUEST | NLM_F.ACK, payload };
    throw this;
  }

  change({ type, flags, payload }: Change): never {
    return this.request(type, flags, payload);
  }
}

function firstRequest(verb: (nl: NetlinkConnection) => unknown) {
  const recorder = new Recorder();
  try {
    verb(recorder as unknown as NetlinkConnection);
  } catch (error) {
    assertInstanceOf(error, Recorder);
  }
  assert(recorder.recorded !== undefined, "no request was made");
  return recorder.recorded;
}

function onlyMessage(name: string): Message {
  const [message, ...rest] = readGolden(name).flatMap(decodeMessages);
  assert(message !== undefined && rest.length === 0, `${name} holds not one message`);
  return message;
}

/** The descriptor of the peer's namespace in the process that was traced. */
const NETNS_FD = 4;

const PROGRAM = [
  { code: 40, jt: 0, jf: 0, k: 12 },
  { code: 21, jt: 0, jf: 1, k: 2048 },
  { code: 6, jt: 0, jf: 0, k: 2 },
  { code: 6, jt: 0, jf: 0, k: 0xffffffff },
] as const;

const br0 = 2; // the index of the first link made after lo
const v1 = 2; // a pair's far end comes first
const v0 = 3;

interface RequestCase {
  readonly golden: string;
  readonly verb: (nl: NetlinkConnection) => unknown;
  /** Flags that only one of the two sets, and why. */
  readonly flagsDiffer?: { readonly flags: number; readonly because: string };
}

const ECHO = {
  flags: NLM_F.ECHO,
  because: "the echo tells the new link's index, which ip does not need",
};

const REQUESTS: readonly RequestCase[] = [
  {
    golden: "link-add-bridge",
    flagsDiffer: ECHO,
    verb: (nl) =>
      createBridge(nl, {
        name: "br0",
        mac: "02:00:00:00:00:01",
        mtu: 1400,
        up: true,
        mcastSnooping: false,
      }),
  },
  {
    golden: "link-add-veth",
    flagsDiffer: ECHO,
    verb: (nl) =>
      createVeth(nl, {
        name: "v0",
        mac: "02:00:00:00:00:0a",
        mtu: 1400,
        master: br0,
        up: true,
        peer: { name: "eth0", mac: "02:00:00:00:00:0b", mtu: 1400, netnsFd: NETNS_FD },
      }),
  },
  {
    golden: "link-set",
    verb: (nl) =>
      setLink(nl, 4, {
        mac: "02:00:00:00:00:0c",
        mtu: 1300,
        master: br0,
        alias: "web",
        up: true,
        promiscuous: true,
      }),
  },
  { golden: "link-set-nomaster", verb: (nl) => setLink(nl, 4, { master: 0, up: false }) },
  {
    golden: "link-set-bridge-port",
    verb: (nl) => setBridgePort(nl, 4, { hairpin: true, learning: false, isolated: true }),
  },
  { golden: "link-delete", verb: (nl) => deleteLink(nl, v0) },
  {
    golden: "address-add-ipv4",
    verb: (nl) => {
      return addAddress(nl, { index: br0, address: "10.0.0.1/24", broadcast: "10.0.0.255" });
    },
  },
  {
    golden: "address-add-ipv6",
    verb: (nl) => addAddress(nl, { index: br0, address: "fd00::1/64", noDad: true }),
  },
  {
    golden: "address-delete",
    verb: (nl) => deleteAddress(nl, { index: br0, address: "10.0.0.1/24" }),
  },
  {
    golden: "route-add-default",
    verb: (nl) =>
      addRoute(nl, {
        dst: "0.0.0.0/0",
        gateway: "10.0.0.2",
        src: "10.0.0.1",
        metric: 5,
        mtu: 1400,
        oif: br0,
      }),
  },
  { golden: "route-add-link", verb: (nl) => addRoute(nl, { dst: "10.9.0.0/16", oif: br0 }) },
  {
    golden: "route-add-via-ipv6",
    verb: (nl) => addRoute(nl, { dst: "10.9.0.0/16", gateway: "fe80::2", oif: br0 }),
  },
  {
    golden: "route-add-table-onlink",
    verb: (nl) => {
      const gateway = "192.0.2.1";
      return addRoute(nl, { dst: "10.9.0.0/16", gateway, table: 1000, oif: br0, onlink: true });
    },
  },
  {
    golden: "route-add-ipv6",
    verb: (nl) => addRoute(nl, { dst: "2001:db8::/32", gateway: "fd00::2", oif: br0 }),
  },
  {
    golden: "route-add-unreachable",
    verb: (nl) => addRoute(nl, { dst: "10.9.0.0/16", type: "unreachable", metric: 7 }),
  },
  { golden: "qdisc-add-ingress", verb: (nl) => addIngressQdisc(nl, v0) },
  { golden: "qdisc-add-clsact", verb: (nl) => addClsactQdisc(nl, v0) },
  {
    golden: "filter-add-redirect",
    verb: (nl) => addRedirectFilter(nl, { index: v0, target: v1, priority: 10 }),
  },
  {
    golden: "filter-replace-bpf",
    verb: (nl) => replaceBpfFilter(nl, { index: v0, priority: 5, program: PROGRAM, name: "test" }),
  },
];

for (const { golden, verb, flagsDiffer } of REQUESTS) {
  Deno.test(`netlink request: ${golden} has the bytes that iproute2 sends`, () => {
    const wanted = onlyMessage(golden);
    const made = firstRequest(verb);
    assertEquals(made.type, wanted.type);
    assertEquals(made.flags ^ (flagsDiffer?.flags ?? 0), wanted.flags, flagsDiffer?.because);
    assertEquals(made.payload, wanted.payload);
  });
}

Deno.test("deleteQdisc: has the bytes of tc, but for the kind, which need not be known", () => {
  const wanted = onlyMessage("qdisc-delete-ingress");
  const made = firstRequest((nl) => deleteQdisc(nl, v0));
  assertEquals([made.type, made.flags], [wanted.type, wanted.flags]);
  assertEquals(made.payload, wanted.payload.subarray(0, made.payload.length));
});

Deno.test("encodeFilterKey: has the bytes that tc deletes a priority with", () => {
  const wanted = onlyMessage("filter-delete");
  assertEquals(wanted.type, RTM.DELTFILTER);
  assertEquals(encodeFilterKey({ index: v0, priority: 10, handle: 0 }), wanted.payload);
});

/** The payloads of a traced dump. */
function answers(name: string, type: number): Uint8Array[] {
  const messages = readGolden(name).flatMap(decodeMessages).filter((message) =>
    message.type === type
  );
  assert(messages.length > 0, `${name} holds no such messages`);
  return messages.map(({ payload }) => payload);
}

Deno.test("decodeLink: reads what the kernel tells ip -d link show", () => {
  const [lo, bridge, port, ...rest] = answers("link-show", RTM.NEWLINK).map(decodeLink);
  assertEquals(rest, []);
  const state = { promiscuous: false };
  assertEquals(lo, {
    ...state,
    index: 1,
    name: "lo",
    type: 772,
    mac: "00:00:00:00:00:00",
    mtu: 65536,
    group: 0,
    flags: 0x10049, // LOWER_UP, RUNNING, LOOPBACK, UP
    up: true,
    running: true,
  });
  assertEquals(bridge, {
    ...state,
    index: br0,
    name: "br0",
    kind: "bridge",
    type: 1,
    mac: "02:00:00:00:00:01",
    mtu: 1500,
    group: 0,
    flags: 0x1002, // MULTICAST, BROADCAST
    up: false,
    running: false,
    bridge: { mcastSnooping: true },
  });
  const wanted: Link = {
    ...state,
    index: 4,
    name: "v0",
    kind: "veth",
    type: 1,
    mac: "02:00:00:00:00:0a",
    mtu: 1500,
    group: 0,
    flags: 0x1003 | IFF.PROMISC,
    up: true,
    running: false,
    promiscuous: true,
    master: br0,
    alias: "web",
    peerIndex: 3,
    peerNsid: 0,
    bridgePort: { hairpin: true, learning: false, isolated: true },
  };
  assertEquals(port, wanted);
});

Deno.test("decodeAddress: reads what the kernel tells ip address show", () => {
  const permanent = IFA_F.PERMANENT;
  const link = { index: br0, scope: "global", flags: permanent } as const;
  const loopback = { index: 1, scope: "host", flags: permanent } as const;
  // The link's own IPv6 address comes when the kernel gets to it.
  const addresses = answers("address-show", RTM.NEWADDR).map(decodeAddress)
    .filter((address) => address?.scope !== "link");
  assertEquals(addresses, [
    { ...loopback, address: "127.0.0.1/8", family: 4 },
    { ...link, address: "10.0.0.1/24", family: 4 },
    { ...loopback, address: "::1/128", family: 6 },
    { ...link, address: "fd00::1/64", family: 6, flags: permanent | IFA_F.NODAD },
  ]);
});

Deno.test("decodeRoute: reads what the kernel tells ip -4 route show table all", () => {
  const route = {
    family: 4,
    table: 254,
    scope: "global",
    type: "unicast",
    protocol: "boot",
  } as const;
  const own = { ...route, table: 255, scope: "host", type: "local", protocol: "kernel" } as const;
  const broadcast = { ...own, type: "broadcast", scope: "link" } as const;
  assertEquals(answers("route-show", RTM.NEWROUTE).map(decodeRoute), [
    {
      ...route,
      dst: "10.7.0.0/16",
      gateway: "192.0.2.1",
      oif: br0,
      table: 1000,
      onlink: true,
    },
    {
      ...route,
      dst: "0.0.0.0/0",
      gateway: "10.0.0.2",
      oif: br0,
      src: "10.0.0.1",
      metric: 5,
      mtu: 1400,
    },
    { ...route, dst: "10.0.0.0/24", oif: br0, src: "10.0.0.1", scope: "link", protocol: "kernel" },
    { ...route, dst: "10.8.0.0/16", type: "unreachable" },
    { ...route, dst: "10.9.0.0/16", gateway: "fe80::2", oif: br0 },
    { ...own, dst: "10.0.0.1/32", oif: br0, src: "10.0.0.1" },
    { ...broadcast, dst: "10.0.0.255/32", oif: br0, src: "10.0.0.1" },
    { ...own, dst: "127.0.0.0/8", oif: 1, src: "127.0.0.1" },
    { ...own, dst: "127.0.0.1/32", oif: 1, src: "127.0.0.1" },
    { ...broadcast, dst: "127.255.255.255/32", oif: 1, src: "127.0.0.1" },
  ]);
});

Deno.test("decodeRoute: reads what the kernel tells ip -6 route show table all", () => {
  const routes = answers("route-show-ipv6", RTM.NEWROUTE).map(decodeRoute);
  const wanted: Route = {
    family: 6,
    dst: "::/0",
    gateway: "fd00::2",
    oif: br0,
    table: 254,
    scope: "global",
    type: "unicast",
    protocol: "boot",
    metric: 1024,
    mtu: 1400,
  };
  assertEquals(routes.find((route) => route?.dst === "::/0"), wanted);
  const local = routes.find((route) => route?.dst === "fd00::1/128");
  assertEquals([local?.type, local?.table], ["local", 255]);
});

Deno.test("decodeQdisc: reads what the kernel tells tc qdisc show", () => {
  const ofLink = answers("qdisc-show", RTM.NEWQDISC).map(decodeQdisc)
    .filter(({ index }) => index === v0);
  assertEquals(ofLink, [
    { index: v0, kind: "noqueue", handle: 0, parent: TC_H.ROOT },
    { index: v0, kind: "ingress", handle: TC_H.INGRESS_HANDLE, parent: TC_H.INGRESS },
  ]);
});

Deno.test("decodeFilter: reads what the kernel tells tc filter show", () => {
  const filters = answers("filter-show", RTM.NEWTFILTER).map(decodeFilter);
  const filter = { index: v0, protocol: 3, parent: TC_H.INGRESS_HANDLE };
  assertEquals(filters, [
    { ...filter, kind: "bpf", priority: 5, handle: 0 },
    { ...filter, kind: "bpf", priority: 5, handle: 1, program: [...PROGRAM], directAction: true },
    { ...filter, kind: "u32", priority: 10, handle: 0 },
    { ...filter, kind: "u32", priority: 10, handle: 0x80000000 },
    { ...filter, kind: "u32", priority: 10, handle: 0x80000001, matchAll: true, redirectTo: v1 },
  ]);
});
