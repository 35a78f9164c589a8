import { assertEquals } from "@std/assert";
import {
  addRedirectFilter,
  deleteFilter,
  listFilters,
  replaceBpfFilter,
  TC_ACT,
} from "../../lib/netlink/filter.ts";
import { createVeth, deleteLink, requireLink, setLink } from "../../lib/netlink/link.ts";
import {
  addClsactQdisc,
  addIngressQdisc,
  deleteQdisc,
  ingressKind,
  listQdiscs,
  TC_H,
} from "../../lib/netlink/qdisc.ts";
import { Bpf } from "../../lib/sys/bpf.ts";
import { SyscallError } from "../../lib/errors.ts";
import { withNetns } from "../../lib/sys/netns.ts";
import { openPacketSocket } from "../../lib/sys/packet.ts";
import type { Socket } from "../../lib/sys/socket.ts";
import { assertRefused, Sandbox } from "../support/oracle.ts";

/** Two pairs, a0–a1 and b0–b1, all ends up, none with an IPv6 address of its own. */
function pairs(sandbox: Sandbox): Record<"a0" | "a1" | "b0" | "b1", number> {
  const { nl } = sandbox;
  const index = (name: string) => requireLink(nl, name).index;
  for (const pair of ["a", "b"]) createVeth(nl, { name: `${pair}0`, peer: { name: `${pair}1` } });
  const ends = { a0: index("a0"), a1: index("a1"), b0: index("b0"), b1: index("b1") };
  for (const [name, end] of Object.entries(ends)) {
    sandbox.run("ip", "link", "set", name, "addrgenmode", "none");
    setLink(nl, end, { up: true });
  }
  return ends;
}

const TEST_PROTOCOL = 0x88b5; // ETH_P_802_EX1, for experiments
const DROPPED_PROTOCOL = 0x88b6;

/** Drops one protocol and leaves the rest to the filters behind. */
const DROP = [
  { code: Bpf.LD | Bpf.H | Bpf.ABS, jt: 0, jf: 0, k: 12 },
  { code: Bpf.JMP | Bpf.JEQ | Bpf.K, jt: 0, jf: 1, k: DROPPED_PROTOCOL },
  { code: Bpf.RET | Bpf.K, jt: 0, jf: 0, k: TC_ACT.SHOT },
  { code: Bpf.RET | Bpf.K, jt: 0, jf: 0, k: TC_ACT.UNSPEC >>> 0 },
] as const;

function frame(protocol: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(60).fill(0x5a);
  new DataView(bytes.buffer).setUint16(12, protocol);
  bytes[0] = 0x02;
  return bytes;
}

/** The protocols of the test's frames that wait in a socket. */
function received(socket: Socket): number[] {
  const protocols: number[] = [];
  const buffer = new Uint8Array(2048);
  while (true) {
    try {
      socket.receive(buffer);
    } catch (error) {
      if (error instanceof SyscallError && error.code === "EAGAIN") return protocols;
      throw error;
    }
    const protocol = new DataView(buffer.buffer).getUint16(12);
    if (protocol === TEST_PROTOCOL || protocol === DROPPED_PROTOCOL) protocols.push(protocol);
  }
}

/** What arrives at a link of frames of both protocols that are sent from another. */
async function carried(sandbox: Sandbox, from: number, to: number): Promise<number[]> {
  using sender = withNetns(sandbox.netns, () => openPacketSocket({ ifindex: from }));
  using receiver = withNetns(sandbox.netns, () => openPacketSocket({ ifindex: to }));
  sender.send(frame(DROPPED_PROTOCOL));
  sender.send(frame(TEST_PROTOCOL));
  // In their order: what has not come when the last one has does not come.
  const protocols: number[] = [];
  for (let round = 0; round < 500 && !protocols.includes(TEST_PROTOCOL); round++) {
    protocols.push(...received(receiver));
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return protocols;
}

for (const [kind, add] of [["ingress", addIngressQdisc], ["clsact", addClsactQdisc]] as const) {
  Deno.test(`${add.name}, deleteQdisc: add, see, add again, delete, delete again`, () => {
    using sandbox = new Sandbox();
    const { nl } = sandbox;
    const { a0 } = pairs(sandbox);
    const found = () =>
      sandbox.json("tc -j qdisc show dev a0").filter((qdisc) => qdisc.handle === "ffff:");
    assertEquals(ingressKind(nl, a0), undefined);
    assertEquals(add(nl, a0), true);
    assertEquals(found().map((qdisc) => qdisc.kind), [kind]);
    assertEquals(add(nl, a0), false);
    assertEquals(ingressKind(nl, a0), kind);
    assertEquals(listQdiscs(nl, a0).filter(({ parent }) => parent === TC_H.INGRESS), [
      { index: a0, kind, handle: TC_H.INGRESS_HANDLE, parent: TC_H.INGRESS },
    ]);
    assertRefused("EEXIST", () => (kind === "ingress" ? addClsactQdisc : addIngressQdisc)(nl, a0));
    assertEquals(deleteQdisc(nl, a0), true);
    assertEquals(found(), []);
    assertEquals(deleteQdisc(nl, a0), false);
    assertEquals(deleteQdisc(nl, 4711), false);
    assertRefused("ENODEV", () => add(nl, 4711));
  });
}

Deno.test("addRedirectFilter: add, see, add again", () => {
  using sandbox = new Sandbox();
  const { nl } = sandbox;
  const { a1, b0, b1 } = pairs(sandbox);
  const filter = { index: a1, target: b0, priority: 10 };
  const error = assertRefused("EINVAL", () => addRedirectFilter(nl, filter));
  assertEquals(error.object, 'redirecting filter 10 of link "a1" to link "b0"');
  addIngressQdisc(nl, a1);
  assertEquals(addRedirectFilter(nl, filter), true);
  const shown = sandbox.run("tc", "filter", "show", "dev", "a1", "parent", "ffff:");
  assertEquals(/pref 10 u32 .*\n +match 00000000\/00000000 at 0/.test(shown), true, shown);
  assertEquals(shown.includes("mirred (Egress Redirect to device b0) stolen"), true, shown);
  assertEquals(listFilters(nl, a1), [{
    index: a1,
    kind: "u32",
    priority: 10,
    protocol: 3,
    handle: 0x80000001,
    parent: TC_H.INGRESS_HANDLE,
    matchAll: true,
    redirectTo: b0,
  }]);
  assertEquals(addRedirectFilter(nl, filter), false);
  assertEquals(listFilters(nl, a1).length, 1);
  assertRefused("EEXIST", () => addRedirectFilter(nl, { ...filter, target: b1 }));
  assertRefused("ENODEV", () => addRedirectFilter(nl, { ...filter, priority: 11, target: 4711 }));
});

Deno.test("replaceBpfFilter, deleteFilter: add, see, replace, delete, delete again", () => {
  using sandbox = new Sandbox();
  const { nl } = sandbox;
  const { a1, b0 } = pairs(sandbox);
  addIngressQdisc(nl, a1);
  const filter = { index: a1, priority: 5, program: DROP, name: "drop" };
  replaceBpfFilter(nl, filter);
  const shown = sandbox.run("tc", "filter", "show", "dev", "a1", "parent", "ffff:");
  const bytecode = "bytecode '4,40 0 0 12,21 0 1 34998,6 0 0 2,6 0 0 4294967295'";
  assertEquals(shown.includes(`handle 0x1 direct-action not_in_hw ${bytecode}`), true, shown);
  assertEquals(listFilters(nl, a1), [{
    index: a1,
    kind: "bpf",
    priority: 5,
    protocol: 3,
    handle: 1,
    parent: TC_H.INGRESS_HANDLE,
    program: [...DROP],
    directAction: true,
  }]);
  replaceBpfFilter(nl, { ...filter, program: DROP.slice(2) });
  assertEquals(listFilters(nl, a1).map(({ program }) => program), [DROP.slice(2)]);
  assertRefused("EEXIST", () => addRedirectFilter(nl, { index: a1, target: b0, priority: 5 }));
  const empty = { ...filter, priority: 6, program: [] };
  const error = assertRefused("EINVAL", () => replaceBpfFilter(nl, empty));
  assertEquals(error.object, 'drop filter 6 of link "a1"');
  assertEquals(addRedirectFilter(nl, { index: a1, target: b0, priority: 10 }), true);
  assertEquals(listFilters(nl, a1).map(({ priority }) => priority), [5, 10]);
  const key = { index: a1, priority: 5, handle: 1 };
  assertEquals(deleteFilter(nl, { ...key, handle: 2 }), false);
  assertEquals(deleteFilter(nl, key), true);
  assertEquals(listFilters(nl, a1).map(({ priority }) => priority), [10]);
  assertEquals(deleteFilter(nl, key), false);
  assertEquals(deleteFilter(nl, { ...key, index: 4711 }), false);
});

Deno.test("replaceBpfFilter: hangs on either hook of clsact", () => {
  using sandbox = new Sandbox();
  const { nl } = sandbox;
  const { a1 } = pairs(sandbox);
  addClsactQdisc(nl, a1);
  for (
    const [parent, hook] of [[TC_H.CLSACT_INGRESS, "ingress"], [
      TC_H.CLSACT_EGRESS,
      "egress",
    ]] as const
  ) {
    const filter = { index: a1, priority: 5, program: DROP, name: "drop", parent };
    replaceBpfFilter(nl, filter);
    replaceBpfFilter(nl, filter);
    assertEquals(listFilters(nl, a1, parent).length, 1);
    const shown = sandbox.run("tc", "filter", "show", "dev", "a1", hook);
    assertEquals(shown.includes("direct-action"), true, shown);
    assertEquals(deleteFilter(nl, { index: a1, priority: 5, handle: 1, parent }), true);
    assertEquals(deleteFilter(nl, { index: a1, priority: 5, handle: 1, parent }), false);
  }
});

Deno.test("addRedirectFilter, replaceBpfFilter: carry, and drop, real frames", async () => {
  using sandbox = new Sandbox();
  const { nl } = sandbox;
  const { a0, a1, b0, b1 } = pairs(sandbox);
  assertEquals(await carried(sandbox, a0, b1), []);
  addIngressQdisc(nl, a1);
  addRedirectFilter(nl, { index: a1, target: b0, priority: 10 });
  assertEquals(await carried(sandbox, a0, b1), [DROPPED_PROTOCOL, TEST_PROTOCOL]);
  replaceBpfFilter(nl, { index: a1, priority: 5, program: DROP, name: "drop" });
  assertEquals(await carried(sandbox, a0, b1), [TEST_PROTOCOL]);
  deleteFilter(nl, { index: a1, priority: 5, handle: 1 });
  assertEquals(await carried(sandbox, a0, b1), [DROPPED_PROTOCOL, TEST_PROTOCOL]);
  deleteQdisc(nl, a1);
  assertEquals(await carried(sandbox, a0, b1), []);
  assertEquals(await carried(sandbox, a0, a1), [DROPPED_PROTOCOL, TEST_PROTOCOL]);
});

Deno.test("listFilters: a redirect whose target is gone names no link that is there", () => {
  using sandbox = new Sandbox();
  const { nl } = sandbox;
  const { a1, b0 } = pairs(sandbox);
  addIngressQdisc(nl, a1);
  addRedirectFilter(nl, { index: a1, target: b0, priority: 10 });
  deleteLink(nl, b0);
  assertEquals(listFilters(nl, a1)[0]?.redirectTo, 0);
});
