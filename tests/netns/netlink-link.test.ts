import { assert, assertEquals, assertThrows } from "@std/assert";
import { InputError } from "../../lib/errors.ts";
import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import {
  type BridgePortOptions,
  createBridge,
  createVeth,
  deleteLink,
  deleteLinkGroup,
  getLink,
  listLinks,
  requireLink,
  setBridgePort,
  setLink,
} from "../../lib/netlink/link.ts";
import { RTM } from "../../lib/netlink/message.ts";
import { type Netns, newNetns, withNetns } from "../../lib/sys/netns.ts";
import { createTap } from "../../lib/sys/tap.ts";
import { assertRefused, Sandbox } from "../support/oracle.ts";

Deno.test("NetlinkConnection: stays in the namespace it was opened in", () => {
  using sandbox = new Sandbox();
  createBridge(sandbox.nl, { name: "only-here" });
  assert(getLink(sandbox.nl, "only-here") !== undefined);
  using outside = NetlinkConnection.open();
  assertEquals(getLink(outside, "only-here"), undefined);
});

Deno.test("NetlinkConnection: reads dumps of many datagrams", () => {
  using sandbox = new Sandbox();
  for (let number = 0; number < 100; number++) createBridge(sandbox.nl, { name: `b${number}` });
  const names = listLinks(sandbox.nl, { kind: "bridge" }).map(({ name }) => name);
  assertEquals(new Set(names).size, 100);
  const replies = sandbox.nl.dump(RTM.GETLINK, new Uint8Array(16));
  assertEquals(replies.filter(({ type }) => type === RTM.NEWLINK).length, 101);
});

Deno.test("NetlinkConnection: is usable after a refusal, which names the offset", () => {
  using sandbox = new Sandbox();
  const index = createBridge(sandbox.nl, { name: "br0" });
  const error = assertRefused("EINVAL", () => setLink(sandbox.nl, index, { mtu: 7 }));
  assertEquals([error.op, error.object], ["RTM_NEWLINK", 'link "br0"']);
  assert(error.extAck !== undefined && error.message.includes(error.extAck));
  assertEquals(requireLink(sandbox.nl, "br0").index, index);
  // An attribute of the wrong size: ifinfomsg, then IFLA_MTU with two bytes.
  const payload = new Uint8Array(24);
  payload.set([6, 0, 4, 0, 1, 2], 16);
  const malformed = assertRefused("ERANGE", () => sandbox.nl.request(RTM.NEWLINK, 0, payload));
  assertEquals(malformed.offset, 32);
});

Deno.test("createBridge: makes what ip shows; twice is refused; deleteLink takes it away", () => {
  using sandbox = new Sandbox();
  const { nl } = sandbox;
  const index = createBridge(nl, {
    name: "ignite0",
    mac: "02:00:00:00:00:01",
    mtu: 1400,
    up: true,
    mcastSnooping: false,
  });
  const [shown] = sandbox.json("ip -d -j link show ignite0");
  assertEquals(shown!.ifindex, index);
  assertEquals(shown!.address, "02:00:00:00:00:01");
  assertEquals(shown!.mtu, 1400);
  assert(shown!.flags.includes("UP"));
  assertEquals(shown!.linkinfo.info_kind, "bridge");
  assertEquals(shown!.linkinfo.info_data.mcast_snooping, 0);
  assertEquals(getLink(nl, "ignite0"), getLink(nl, index));
  assertEquals(requireLink(nl, "ignite0").bridge?.mcastSnooping, false);
  assertRefused("EEXIST", () => createBridge(nl, { name: "ignite0" }));
  assertEquals(deleteLink(nl, "ignite0"), true);
  assertEquals(sandbox.json("ip -j link show type bridge"), []);
  assertEquals(deleteLink(nl, "ignite0"), false);
  assertEquals(deleteLink(nl, index), false);
});

Deno.test("createVeth: makes the peer straight in the other namespace", () => {
  using host = new Sandbox();
  using vm = new Sandbox();
  const bridge = createBridge(host.nl, { name: "br0", up: true });
  const request = {
    name: "veth0",
    mac: "02:00:00:00:00:02",
    mtu: 1300,
    master: bridge,
    up: true,
    peer: { name: "eth0", mac: "02:00:00:00:00:03", mtu: 1300, netnsFd: vm.netns.fd },
  } as const;
  const index = createVeth(host.nl, request).index;
  const [near] = host.json("ip -d -j link show veth0");
  const [far] = vm.json("ip -d -j link show eth0");
  assertEquals(near!.ifindex, index);
  assertEquals([near!.address, near!.mtu, near!.master], ["02:00:00:00:00:02", 1300, "br0"]);
  assert(near!.flags.includes("UP"));
  assertEquals([far!.address, far!.mtu, far!.link_index], ["02:00:00:00:00:03", 1300, index]);
  assert(!far!.flags.includes("UP"));
  assertEquals(requireLink(host.nl, index).peerIndex, far!.ifindex);

  const taken = { ...request, name: "veth1" };
  assertEquals(
    assertRefused("EEXIST", () => createVeth(host.nl, taken)).object,
    'link "veth1" with peer "eth0"',
  );
  assertEquals(getLink(host.nl, "veth1"), undefined);
  assertRefused("EEXIST", () => createVeth(host.nl, { ...request, peer: { name: "other" } }));

  assertEquals(deleteLink(host.nl, "veth0"), true);
  assertEquals(getLink(vm.nl, "eth0"), undefined);
  assertEquals(deleteLink(host.nl, "veth0"), false);
});

Deno.test("createVeth: in one namespace, without anything optional", () => {
  using sandbox = new Sandbox();
  const index = createVeth(sandbox.nl, { name: "v0", peer: { name: "v1" } }).index;
  assertEquals(requireLink(sandbox.nl, "v1").peerIndex, index);
  assertEquals(requireLink(sandbox.nl, "v0").up, false);
});

Deno.test("createVeth: refuses a malformed MAC before it does anything", () => {
  using sandbox = new Sandbox();
  const peer = { name: "v1", mac: "03:00:00:00:00:01" };
  assertThrows(() => createVeth(sandbox.nl, { name: "v0", peer }), InputError);
  assertEquals(listLinks(sandbox.nl).map(({ name }) => name), ["lo"]);
});

Deno.test("setLink: changes everything at once, and back", () => {
  using sandbox = new Sandbox();
  const { nl } = sandbox;
  const bridge = createBridge(nl, { name: "br0" });
  const index = createVeth(nl, { name: "v0", peer: { name: "v1" } }).index;
  setLink(nl, index, {
    name: "eth7",
    mac: "02:00:00:00:00:0c",
    mtu: 1280,
    alias: "seven",
    master: bridge,
    promiscuous: true,
    up: true,
  });
  const [shown] = sandbox.json("ip -d -j link show eth7");
  assertEquals([shown!.address, shown!.mtu, shown!.ifalias, shown!.master], [
    "02:00:00:00:00:0c",
    1280,
    "seven",
    "br0",
  ]);
  assert(shown!.flags.includes("UP") && shown!.flags.includes("PROMISC"));
  setLink(nl, index, { master: 0, alias: "", promiscuous: false, up: false, name: "v0" });
  const [after] = sandbox.json("ip -d -j link show v0");
  assertEquals([after!.master, after!.ifalias], [undefined, undefined]);
  assert(!after!.flags.includes("UP") && !after!.flags.includes("PROMISC"));
  assertRefused("ENODEV", () => setLink(nl, 4711, { up: true }));
});

Deno.test("setLink: moves a link to another namespace and changes it there", () => {
  using host = new Sandbox();
  using vm = new Sandbox();
  const index = createVeth(host.nl, { name: "v0", peer: { name: "v1" } }).index;
  setLink(host.nl, index, { netnsFd: vm.netns.fd, name: "eth0", mtu: 1280, up: true });
  assertEquals(getLink(host.nl, "v0"), undefined);
  const moved = requireLink(vm.nl, "eth0");
  assertEquals([moved.mtu, moved.up], [1280, true]);
});

Deno.test("setBridgePort: sets what ip -d link show says of the port", () => {
  using sandbox = new Sandbox();
  const { nl } = sandbox;
  const bridge = createBridge(nl, { name: "br0", up: true });
  const index =
    createVeth(nl, { name: "v0", master: bridge, up: true, peer: { name: "v1" } }).index;
  const options: readonly (readonly [keyof BridgePortOptions, string])[] = [
    ["hairpin", "hairpin"],
    ["isolated", "isolated"],
    ["learning", "learning"],
  ];
  for (const on of [true, false]) {
    const wanted: BridgePortOptions = Object.fromEntries(options.map(([name]) => [name, on]));
    setBridgePort(nl, index, wanted);
    const [shown] = sandbox.json("ip -d -j link show v0");
    const data = shown!.linkinfo.info_slave_data;
    for (const [name, key] of options) assertEquals(data[key], on, name);
    assertEquals({ ...requireLink(nl, index).bridgePort }, wanted);
  }
  setBridgePort(nl, index, { hairpin: true });
  assertEquals(requireLink(nl, index).bridgePort?.isolated, false);
  setLink(nl, index, { master: 0 });
  const error = assertRefused("EOPNOTSUPP", () => setBridgePort(nl, index, { hairpin: true }));
  assertEquals(error.object, 'bridge port "v0"');
});

Deno.test("listLinks: narrows to a kind, and to a bridge's ports", () => {
  using sandbox = new Sandbox();
  const { nl } = sandbox;
  const bridges = ["br0", "br1"].map((name) => createBridge(nl, { name }));
  for (const [index, master] of bridges.entries()) {
    createVeth(nl, { name: `p${index}`, master, peer: { name: `q${index}` } });
  }
  withNetns(sandbox.netns, () => createTap({ name: "tap0" }));
  const names = (filter?: { kind?: string; master?: number }) =>
    listLinks(nl, filter).map(({ name }) => name).sort();
  assertEquals(names(), ["br0", "br1", "lo", "p0", "p1", "q0", "q1", "tap0"]);
  assertEquals(names({ kind: "bridge" }), ["br0", "br1"]);
  assertEquals(names({ kind: "tun" }), ["tap0"]);
  assertEquals(names({ master: bridges[0]! }), ["p0"]);
  assertEquals(names({ kind: "veth", master: bridges[1]! }), ["p1"]);
  assertEquals(names({ kind: "bridge", master: bridges[1]! }), []);
});

Deno.test("listLinks: knows the kinds that networks are made of", () => {
  using sandbox = new Sandbox();
  sandbox.run("ip", "link", "add", "name", "v0", "type", "veth", "peer", "name", "v1");
  sandbox.run("ip", "link", "add", "name", "m0", "link", "v0", "type", "macvlan");
  sandbox.run("ip", "link", "add", "name", "i0", "type", "ifb");
  sandbox.run("ip", "link", "add", "name", "x0", "type", "vxlan", "id", "7", "dstport", "4789");
  const kinds = Object.fromEntries(listLinks(sandbox.nl).map(({ name, kind }) => [name, kind]));
  assertEquals([kinds.m0, kinds.i0, kinds.x0, kinds.v0], ["macvlan", "ifb", "vxlan", "veth"]);
  assertEquals(requireLink(sandbox.nl, "m0").peerIndex, requireLink(sandbox.nl, "v0").index);
});

Deno.test("getLink, requireLink, deleteLink: tell what is not there from what fails", () => {
  using sandbox = new Sandbox();
  const { nl } = sandbox;
  for (const key of ["nothing", "a-name-that-is-too-long", "", 4711, 0]) {
    assertEquals(getLink(nl, key), undefined);
    assertEquals(deleteLink(nl, key), false);
    assertRefused("ENODEV", () => requireLink(nl, key));
  }
  const error = assertRefused("EOPNOTSUPP", () => deleteLink(nl, "lo"));
  assertEquals(error.object, 'link "lo"');
});

Deno.test("deleteLinkGroup: the links of one group go, their other ends too, others stay", async () => {
  using here = newNetns();
  using there = newNetns();
  const open = (netns: Netns) => withNetns(netns, () => NetlinkConnection.open());
  using nl = open(here);
  using other = open(there);
  createVeth(nl, { name: "a", peer: { name: "eth0", netnsFd: there.fd, group: 77 } });
  createVeth(nl, { name: "b", peer: { name: "eth1", netnsFd: there.fd } });
  const bridge = createBridge(other, { name: "br0" });
  setLink(other, bridge, { group: 77 });
  assertEquals(await deleteLinkGroup(other, 77), true);
  const names = (of: NetlinkConnection) => listLinks(of).map(({ name }) => name).sort();
  assertEquals([names(nl), names(other)], [["b", "lo"], ["eth1", "lo"]]);
  assertEquals(await deleteLinkGroup(other, 77), false);
});

Deno.test("TAPKIT_DEBUG=netlink: prints every message on stderr", () => {
  const script = `
    import { NetlinkConnection } from "./lib/netlink/connection.ts";
    import { getLink } from "./lib/netlink/link.ts";
    using nl = NetlinkConnection.open();
    getLink(nl, "lo");
    getLink(nl, "none");
  `;
  const { stderr, success } = runScript(script);
  assert(success, stderr);
  assert(/^netlink > RTM_GETLINK flags=0x1 seq=1 [0-9a-f]+$/m.test(stderr), stderr);
  assert(/^netlink < RTM_NEWLINK /m.test(stderr), stderr);
  assert(/^netlink < NLMSG_ERROR /m.test(stderr), stderr);
});

function runScript(script: string): { stderr: string; success: boolean } {
  const { stderr, success } = new Deno.Command(Deno.execPath(), {
    args: ["eval", "--ext=ts", script],
    cwd: new URL("../..", import.meta.url),
    env: { TAPKIT_DEBUG: "netlink", NO_COLOR: "1" },
  }).outputSync();
  return { stderr: new TextDecoder().decode(stderr), success };
}
