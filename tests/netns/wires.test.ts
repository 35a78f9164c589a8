import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { addAddress } from "../../lib/netlink/address.ts";
import { NetlinkError } from "../../lib/netlink/errors.ts";
import { createVeth, requireLink, setLink } from "../../lib/netlink/link.ts";
import { UndoStack } from "../../lib/undo.ts";
import { sentence } from "../../lib/finding.ts";
import type { AttachMode } from "../../lib/vm/types.ts";
import {
  addWire,
  checkGuards,
  checkWire,
  type Guarded,
  openWire,
  removeWire,
  type Wireable,
  type WireRequest,
} from "../../lib/vm/wire/wires.ts";
import { Sandbox } from "../support/oracle.ts";

type Interface = Wireable & Guarded;

/** An interface as CNI makes it. */
function makeInterface({ nl }: Sandbox): Interface {
  createVeth(nl, { name: "eth0", mac: "02:00:00:00:00:01", peer: { name: "far" }, up: true });
  setLink(nl, requireLink(nl, "far").index, { up: true });
  addAddress(nl, { index: requireLink(nl, "eth0").index, address: "10.0.0.2/24" });
  return {
    name: "eth0",
    mac: "02:00:00:00:00:01",
    mtu: 1500,
    addresses: [{ address: "10.0.0.2/24" }],
    antispoof: true,
    linkLocal: "eui64",
  };
}

/** Makes a wire with its guards, as attaching does; returns its mode, and whether it is guarded. */
function wireUp(request: WireRequest, made: Interface): { mode: AttachMode; guarded: boolean } {
  const mode = addWire(request, made);
  return { mode, guarded: openWire(request.nl, mode, made) };
}

/** What differs of a wire and its guards, as sentences. */
function problemsOf({ nl }: Sandbox, made: Interface, mode: AttachMode): string[] {
  return [...checkWire(nl, { ...made, mode }), ...checkGuards(nl, made)].map(sentence);
}

/** Makes the kernel refuse filters of a kind, or with an action, as one without it does. */
function takeAway({ nl }: Sandbox, word: string): void {
  const changeAll = nl.changeAll.bind(nl);
  const decoder = new TextDecoder("latin1");
  nl.changeAll = (changes) => {
    const lacking = changes.filter(({ payload }) => decoder.decode(payload).includes(`${word}\0`));
    const done = changeAll(changes.filter((change) => !lacking.includes(change)));
    const [first] = lacking;
    if (first === undefined) return done;
    throw new NetlinkError({ ...first.subject, op: "RTM_NEWTFILTER", object: word, errno: 2 });
  };
}

/** The links, filters and addresses that the modes differ in. */
function inspect(sandbox: Sandbox) {
  const links = sandbox.json("ip -j link").map(({ ifname }) => `${ifname}`).sort();
  const shown = sandbox.json("ip -j -4 addr show eth0") as { addr_info: { local: string }[] }[];
  const filters = sandbox.json("tc -j filter show dev eth0 ingress").map(({ kind }) => kind);
  return {
    links: links.filter((name) => name !== "lo" && name !== "far"),
    addresses: shown.flatMap(({ addr_info }) => addr_info).map(({ local }) => local),
    kinds: [...new Set(filters)],
  };
}

const BARE = { links: ["eth0"], addresses: ["10.0.0.2"], kinds: [] };

Deno.test("addWire: auto takes tc-redirect, and dhcp-bridge where u32 or mirred is missing", async (t) => {
  const cases = [
    [undefined, "tc-redirect"],
    ["u32", "dhcp-bridge"],
    ["mirred", "dhcp-bridge"],
  ] as const;
  for (const [missing, mode] of cases) {
    await t.step(`${missing ?? "nothing"} is missing`, () => {
      using sandbox = new Sandbox();
      const { nl, netns } = sandbox;
      const made = makeInterface(sandbox);
      if (missing !== undefined) takeAway(sandbox, missing);
      const [undo, notes] = [new UndoStack(), [] as string[]];
      const note = (text: string) => notes.push(text);
      const wired = wireUp({ nl, netns, mode: "auto", undo, note }, made);
      assertEquals(wired, { mode, guarded: true });
      assertEquals(problemsOf(sandbox, made, mode), []);
      if (mode === "tc-redirect") {
        assertEquals(notes, []);
        assertEquals(inspect(sandbox), {
          ...BARE,
          links: ["eth0", "vm_eth0"],
          kinds: ["bpf", "u32"],
        });
      } else {
        assertMatch(notes.join(), /^"eth0" gets mode dhcp-bridge: this kernel lacks CONFIG_.*U32/);
        // Nothing is left of the mode that was tried first.
        const links = ["br_eth0", "eth0", "vm_eth0"];
        assertEquals(inspect(sandbox), { links, addresses: [], kinds: ["bpf"] });
      }
      removeWire(nl, "eth0", wired.mode);
      removeWire(nl, "eth0", "auto");
      assertEquals(inspect(sandbox), { ...inspect(sandbox), links: ["eth0"], kinds: [] });
    });
  }
});

Deno.test("addWire: tc-redirect by name does not fall back, and leaves nothing", async () => {
  using sandbox = new Sandbox();
  const { nl, netns } = sandbox;
  const made = makeInterface(sandbox);
  takeAway(sandbox, "mirred");
  const undo = new UndoStack();
  const error = assertThrows(
    () => addWire({ nl, netns, mode: "tc-redirect", undo, note() {} }, made),
    NetlinkError,
  );
  assertMatch(error.mend ?? "", /use a kernel with .*CONFIG_NET_ACT_MIRRED/);
  assertEquals(await undo.unwind(), []);
  assertEquals(inspect(sandbox), BARE);
});

Deno.test("addWire: auto does not fall back where addresses are leased, whose guard is another", async () => {
  using sandbox = new Sandbox();
  const { nl, netns } = sandbox;
  const made: Interface = { ...makeInterface(sandbox), leased: true };
  const request = { nl, netns, mode: "auto", undo: new UndoStack(), note() {} } as const;
  const wired = wireUp(request, made);
  assertEquals(wired, { mode: "tc-redirect", guarded: true });
  assertEquals(problemsOf(sandbox, made, wired.mode), []);
  const { leased: _, ...unleased } = made;
  assertEquals(checkGuards(nl, unleased).map(sentence), [
    `the guard of "eth0" is not that of the record`,
  ]);
  removeWire(nl, "eth0", wired.mode);
  takeAway(sandbox, "u32");
  const error = assertThrows(() => addWire(request, made), NetlinkError);
  assertMatch(error.mend ?? "", /use a kernel with .*CONFIG_NET_CLS_U32/);
  assertEquals(await request.undo.unwind(), []);
  assertEquals(inspect(sandbox), BARE);
});

Deno.test("openWire: without cls_bpf there is no guard, and the wire is made all the same", () => {
  for (const mode of ["tc-redirect", "dhcp-bridge"] as const) {
    using sandbox = new Sandbox();
    const { nl, netns } = sandbox;
    const made = makeInterface(sandbox);
    takeAway(sandbox, "bpf");
    const wired = wireUp({ nl, netns, mode, undo: new UndoStack(), note() {} }, made);
    assertEquals(wired, { mode, guarded: false });
    assertEquals(checkWire(nl, { ...made, mode }), []);
  }
});

Deno.test("addWire: a TAP of several queues is one, and checkWire tells it from one of one", () => {
  using sandbox = new Sandbox();
  const { nl, netns } = sandbox;
  const made = makeInterface(sandbox);
  const mode = "tc-redirect";
  const problems = (queues?: number) =>
    checkWire(nl, { ...made, mode, queues }).map(sentence).filter((text) => /queue/.test(text));
  for (
    const [queues, other, wrong] of [[4, 1, "several queues"], [1, 4, "one queue only"]] as const
  ) {
    wireUp({ nl, netns, mode, undo: new UndoStack(), note() {} }, { ...made, queues });
    const [link] = sandbox.json("ip -d -j link show vm_eth0");
    const { multi_queue } = (link as { linkinfo: { info_data: { multi_queue: boolean } } })
      .linkinfo.info_data;
    assertEquals([multi_queue, problems(queues)], [queues > 1, []]);
    assertEquals(problems(other), [`TAP "vm_eth0" has ${wrong}`]);
    removeWire(nl, "eth0", mode);
  }
});

Deno.test("checkWire: names what differs in mode dhcp-bridge", () => {
  const damages = [
    ["ip link delete br_eth0", /inner bridge "br_eth0" is missing/],
    ["ip link set br_eth0 down", /"br_eth0" is down/],
    ["ip link set vm_eth0 nomaster", /"vm_eth0" is not a port of inner bridge/],
    ["bridge link set dev eth0 learning on", /learns addresses behind "eth0"/],
    ["ip link set br_eth0 type bridge mcast_snooping 1", /snoops multicast/],
    ["ip link set eth0 address 02:00:00:00:00:01", /"eth0" has the guest's MAC/],
    ["ip addr add 10.0.0.2/24 dev eth0", /"eth0" has the address 10\.0\.0\.2\/24/],
    ["tc qdisc delete dev vm_eth0 ingress", /the guard of "vm_eth0" is missing/],
    ["ip link delete vm_eth0", /TAP "vm_eth0" is missing/],
  ] as const;
  for (const [damage, problem] of damages) {
    using sandbox = new Sandbox();
    const { nl, netns } = sandbox;
    const request = { nl, netns, undo: new UndoStack(), note() {} };
    const mode = "dhcp-bridge";
    const made = makeInterface(sandbox);
    wireUp({ ...request, mode }, made);
    const [program, ...args] = damage.split(" ");
    sandbox.run(program!, ...args);
    const problems = problemsOf(sandbox, made, mode);
    assert(problems.some((text) => problem.test(text)), `${damage}: ${problems.join("; ")}`);
    // Made anew on the interface as it is.
    removeWire(nl, "eth0", mode);
    wireUp({ ...request, mode }, made);
    assertEquals(problemsOf(sandbox, made, mode), [], damage);
  }
});
