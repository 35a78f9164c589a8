import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { sentence } from "../../lib/finding.ts";
import { parseConfig } from "../../lib/cni/conflist.ts";
import { hostVethName } from "../../lib/cni/plugins/veth.ts";
import { type NetworkAttachment, planNetwork } from "../../lib/cni/plan.ts";
import { type Added, addNetwork, checkNetwork, delNetwork } from "../../lib/cni/runtime.ts";
import { CniError, type NetworkConfigList, type RuntimeConfig } from "../../lib/cni/types.ts";
import type { NetlinkConnection } from "../../lib/netlink/connection.ts";
import { withNetns } from "../../lib/sys/netns.ts";
import { UndoStack } from "../../lib/undo.ts";
import {
  CniGuest,
  CniHost,
  NO_PLUGINS,
  requireReference,
  runReference,
} from "../support/cni-reference.ts";

requireReference();

type Conf = Record<string, unknown>;

const OURS = { containerId: "ours", ifName: "eth0" };

const GATEWAY = { isGateway: true, isDefaultGateway: true };

function network(host: CniHost, conf: Conf, ipam: Conf | undefined): NetworkConfigList {
  const bridge = {
    type: "bridge",
    bridge: "br0",
    ...conf,
    ...(ipam === undefined ? {} : { ipam: { type: "host-local", dataDir: host.dataDir, ...ipam } }),
  };
  return parseConfig(JSON.stringify({ cniVersion: "1.0.0", name: "net", plugins: [bridge] }), "f");
}

/** What the reference plugin is given for the same network. */
function referenceConf({ plugins, name, cniVersion }: NetworkConfigList, extra: Conf = {}): Conf {
  return { ...plugins[0], name, cniVersion, ...extra };
}

interface AddOptions {
  readonly containerId?: string;
  readonly ifName?: string;
  readonly ownNetns?: boolean;
  readonly mtu?: number;
  readonly fresh?: boolean;
  readonly runtimeConfig?: RuntimeConfig;
  readonly undo?: UndoStack;
  readonly hostNl?: NetlinkConnection;
  readonly vmNl?: NetlinkConnection;
  readonly notes?: string[];
}

function environment(host: CniHost, guest: CniGuest, options: AddOptions = {}) {
  const { hostNl = host.nl, vmNl = guest.nl, notes = [] } = options;
  const note = (text: string) => void notes.push(text);
  return { netnsPath: guest.path, hostNl, vmNl, plugins: NO_PLUGINS, note };
}

function add(
  host: CniHost,
  guest: CniGuest,
  list: NetworkConfigList,
  options: AddOptions = {},
): Promise<Added> {
  const { containerId = "ours", ifName = "eth0", runtimeConfig = {} } = options;
  const { ownNetns = true, undo = new UndoStack(), mtu, fresh = false } = options;
  const plan = planNetwork({ list, containerId, ifName, runtimeConfig });
  return host.run(() =>
    addNetwork(plan, {
      ...environment(host, guest, options),
      netns: guest.netns,
      ownNetns,
      undo,
      fresh,
      owner: "web/eth0",
      ...(mtu === undefined ? {} : { mtu }),
    })
  );
}

async function del(
  host: CniHost,
  guest: CniGuest | undefined,
  attachment: NetworkAttachment,
): Promise<void> {
  const env = guest === undefined
    ? { netnsPath: "/gone", hostNl: host.nl, plugins: NO_PLUGINS, note: () => {} }
    : environment(host, guest);
  assertEquals(await host.run(() => delNetwork(attachment, env)), []);
}

async function check(
  host: CniHost,
  guest: CniGuest,
  attachment: NetworkAttachment,
): Promise<string[]> {
  const findings = await host.run(() => checkNetwork(attachment, environment(host, guest)));
  return findings.map(sentence);
}

/** Everything of a namespace that an attachment might leave behind; counters, indexes and carrier apart. */
function snapshot(place: CniHost | CniGuest): unknown {
  const links = place.ip("link").map(({ ifname, flags, mtu }: Conf) => [
    ifname,
    (flags as string[]).filter((flag) => flag !== "LOWER_UP" && flag !== "NO-CARRIER"),
    mtu,
  ]);
  const addresses = place.ip("addr").flatMap(({ addr_info }: { addr_info: Conf[] }) =>
    addr_info.map((info) => [info.local, info.prefixlen, info.label])
  );
  const routes = place.ip("route", "show", "table", "all")
    .map(({ dev, dst, gateway, table, type }: Conf) => [dev, dst, gateway, table, type]);
  return { links, addresses, routes };
}

// deno-lint-ignore no-explicit-any -- iproute2's own shapes.
function addressesOf(place: CniHost | CniGuest, link: string): any[] {
  return place.ip("addr", "show", "dev", link)[0].addr_info
    // deno-lint-ignore no-explicit-any -- iproute2's own shapes.
    .filter(({ scope }: any) => scope === "global");
}

Deno.test("bridge: gives the reference plugin's result, and the kernel the same state", async () => {
  const subnet = "10.7.0.0/24";
  const cases: [conf: Conf, ipam?: Conf, extra?: Conf][] = [
    [{ ...GATEWAY, promiscMode: true }, { subnet }],
    [{ isGateway: true }, { subnet }],
    [{ isGateway: true }, { subnet, routes: [{ dst: "0.0.0.0/0" }, { dst: "192.0.2.0/24" }] }],
    [{ ...GATEWAY }, { subnet, routes: [{ dst: "0.0.0.0/0", gw: "10.7.0.9" }] }],
    [{ ...GATEWAY, mtu: 1400 }, { subnet, gateway: "10.7.0.254" }],
    [{ ...GATEWAY }, { ranges: [[{ subnet }], [{ subnet: "fd00:7::/64" }]] }],
    [{}, { subnet }],
    [{ dns: { nameservers: ["192.0.2.1"] } }, { subnet }],
    [{}],
    [GATEWAY, { subnet }, { args: { cni: { mac: "02:00:00:00:00:07" } } }],
    [GATEWAY, { subnet }, { runtimeConfig: { mac: "02:00:00:00:00:08", ips: ["10.7.0.9"] } }],
  ];
  for (const [conf, ipam, extra = {}] of cases) {
    const label = JSON.stringify([conf, ipam]);
    using theirHost = new CniHost();
    using theirGuest = new CniGuest();
    using ourHost = new CniHost();
    using ourGuest = new CniGuest();
    const call = { command: "ADD", containerId: "ours", netns: theirGuest.path } as const;
    const reference = referenceConf(network(theirHost, conf, ipam), extra);
    const theirs = await runReference("bridge", call, reference, theirHost.netns);
    const list = network(
      ourHost,
      { ...conf, ...extra, capabilities: { mac: true, ips: true } },
      ipam,
    );
    const { runtimeConfig = {} } = extra as { runtimeConfig?: RuntimeConfig };
    const { result, attachment } = await add(ourHost, ourGuest, list, { runtimeConfig });
    assertEquals(comparable(result), comparable(theirs), label);
    // Global addresses and all routes, of the bridge and of the namespace.
    for (
      const [ours, reference, link] of [
        [ourHost, theirHost, "br0"],
        [ourGuest, theirGuest, "eth0"],
      ] as const
    ) {
      assertEquals(kernelState(ours, link), kernelState(reference, link), `${label} ${link}`);
    }
    assertEquals(await check(ourHost, ourGuest, attachment), [], label);
    await del(ourHost, ourGuest, attachment);
    assertEquals(ourHost.ip("link").length, 1, label);
  }
});

/** A result without what differs by chance: the host's link name, MACs that nobody asked for. */
// deno-lint-ignore no-explicit-any -- a result as JSON.
function comparable(result: any): unknown {
  const { interfaces, ips = [], routes = [], dns = {}, cniVersion } = structuredClone(result);
  for (const [index, link] of interfaces.entries()) {
    assert(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/.test(link.mac), JSON.stringify(link));
    if (!link.mac.startsWith("02:00:00:00:00:")) delete link.mac;
    if (index === 1) assert(/^veth[0-9a-f]+$/.test(link.name), link.name);
    if (index === 1) delete link.name;
    delete link.sandbox;
  }
  return { cniVersion, interfaces, ips, routes, dns };
}

function kernelState(place: CniHost | CniGuest, link: string): unknown {
  const [details] = place.ip("link", "show", "dev", link);
  return {
    mtu: details.mtu,
    // What a link that just came up shows until the kernel's linkwatch has run.
    flags: details.flags
      .filter((flag: string) => flag !== "NO-CARRIER" && flag !== "LOWER_UP").toSorted(),
    addresses: addressesOf(place, link).map(({ local, prefixlen, broadcast, scope }) => ({
      local,
      prefixlen,
      broadcast,
      scope,
    })),
    routes: ["-4", "-6"].flatMap((family) =>
      place.ip(family, "route", "show", "dev", link)
        .filter(({ dst }: { dst: string }) => !dst.startsWith("fe80") && !dst.startsWith("ff00"))
        .map(({ dst, gateway, prefsrc, scope }: Conf) => ({ dst, gateway, prefsrc, scope }))
    ),
  };
}

Deno.test("bridge: the guest reaches the gateway and another guest, by real packets", async () => {
  using host = new CniHost();
  using one = new CniGuest();
  using two = new CniGuest();
  const list = network(host, { ...GATEWAY, promiscMode: true }, { subnet: "10.7.0.0/24" });
  await add(host, one, list, { containerId: "one" });
  await add(host, two, list, { containerId: "two" });
  const connected = (from: CniGuest, to: string): boolean => {
    // TCP refuses where nobody listens: an answer from the other end all the same.
    const script = `exec 3<>/dev/tcp/${to}/9`;
    const command = new Deno.Command("timeout", { args: ["2", "bash", "-c", script] });
    const { code, stderr } = withNetns(from.netns, () => command.outputSync());
    return code === 1 && new TextDecoder().decode(stderr).includes("refused");
  };
  assert(connected(one, "10.7.0.1"));
  assert(connected(one, "10.7.0.3"));
  assert(connected(two, "10.7.0.2"));
});

Deno.test("bridge: the port is tagged, and hairpin is on whatever the configuration says", async () => {
  using host = new CniHost();
  using guest = new CniGuest();
  const { result } = await add(host, guest, network(host, { portIsolation: true }, undefined));
  const name = hostVethName(OURS);
  assertEquals(result.interfaces[1]!.name, name);
  const [link] = host.ip("link", "show", "dev", name);
  assertEquals([link.ifalias, link.master], ["tapkit:ours:eth0", "br0"]);
  assertEquals([link.linkinfo.info_slave_data.hairpin, link.linkinfo.info_slave_data.isolated], [
    true,
    true,
  ]);
  assertEquals(host.ip("link", "show", "dev", "br0")[0].ifalias, "tapkit");
});

Deno.test("bridge: its MAC stays as ports come and go, and no two guests share one", async () => {
  using host = new CniHost();
  const list = network(host, GATEWAY, { subnet: "10.7.0.0/24" });
  using stack = new DisposableStack();
  const macs = new Set<string>();
  const bridgeMacs = new Set<string>();
  const attachments = await Promise.all(Array.from({ length: 6 }, async (_, index) => {
    const guest = stack.use(new CniGuest());
    const { attachment, result } = await add(host, guest, list, { containerId: `c${index}` });
    macs.add(result.interfaces[2]!.mac!);
    bridgeMacs.add(host.ip("link", "show", "dev", "br0")[0].address);
    return { guest, attachment };
  }));
  for (const { guest, attachment } of attachments.slice(1)) {
    await del(host, guest, attachment);
    bridgeMacs.add(host.ip("link", "show", "dev", "br0")[0].address);
  }
  assertEquals([macs.size, bridgeMacs.size], [6, 1]);
  await del(host, attachments[0]!.guest, attachments[0]!.attachment);
  assertEquals(host.ip("link").map(({ ifname }: Conf) => ifname), ["lo"]);
});

Deno.test("bridge: IPv6 is off without an IPv6 range, in the whole namespace only where it is ours", async () => {
  const setting = (place: CniHost | CniGuest, name: string): string =>
    withNetns(
      place.netns,
      () => Deno.readTextFileSync(`/proc/sys/net/ipv6/conf/${name}/disable_ipv6`).trim(),
    );
  for (const ownNetns of [true, false]) {
    using host = new CniHost();
    using guest = new CniGuest();
    await add(host, guest, network(host, GATEWAY, { subnet: "10.7.0.0/24" }), { ownNetns });
    assertEquals(setting(host, hostVethName(OURS)), "1");
    assertEquals(setting(guest, "eth0"), "1");
    assertEquals(
      [setting(guest, "all"), setting(guest, "default")],
      ownNetns ? ["1", "1"] : ["0", "0"],
    );
  }
  using host = new CniHost();
  using guest = new CniGuest();
  await add(host, guest, network(host, GATEWAY, { subnet: "10.7.0.0/24" }), { ifName: "eth0" });
  await add(host, guest, network(host, { ...GATEWAY, bridge: "br1" }, { subnet: "fd00:7::/64" }), {
    ifName: "eth1",
    containerId: "other",
  });
  assertEquals(addressesOf(guest, "eth1")[0].local, "fd00:7::2");
  assertEquals(addressesOf(guest, "eth1")[0].tentative, undefined);
});

Deno.test("bridge: the MTU is the request's, the configuration's, the default route's, or 1500", async () => {
  const mtuOf = async (conf: Conf, mtu: number | undefined, uplink: boolean) => {
    using host = new CniHost();
    using guest = new CniGuest();
    if (uplink) {
      const script =
        "ip link add up0 mtu 1420 type veth peer up1; ip addr add 192.0.2.2/24 dev up0;" +
        "ip link set up0 up; ip route add default via 192.0.2.1; ip route add default via 192.0.2.9 metric 7";
      const command = new Deno.Command("sh", { args: ["-ec", script] });
      assert(host.run(() => command.outputSync()).success);
    }
    await add(host, guest, network(host, conf, undefined), mtu === undefined ? {} : { mtu });
    return [
      guest.ip("link", "show", "dev", "eth0")[0].mtu,
      host.ip("link", "show", "dev", hostVethName(OURS))[0].mtu,
      host.ip("link", "show", "dev", "br0")[0].mtu,
    ];
  };
  assertEquals(await mtuOf({}, undefined, false), [1500, 1500, 1500]);
  assertEquals(await mtuOf({}, undefined, true), [1420, 1420, 1420]);
  assertEquals(await mtuOf({ mtu: 9000 }, undefined, true), [9000, 9000, 9000]);
  assertEquals(await mtuOf({ mtu: 9000 }, 1300, true), [1300, 1300, 1300]);
});

/** A host of two uplinks, of MTU 1400 and 1480, and what else the script makes. */
function uplinks(script: string): CniHost {
  const host = new CniHost();
  const links = [["a", 1480, 1], ["b", 1400, 2]].map(([name, mtu, net]) =>
    `ip link add ${name}0 mtu ${mtu} type veth peer ${name}1; ip link set ${name}0 up;` +
    `ip link set ${name}1 up; ip addr add 192.0.${net}.2/24 dev ${name}0;` +
    `ip addr add 2001:db8:${net}::2/64 dev ${name}0 nodad;`
  ).join("");
  const command = new Deno.Command("sh", { args: ["-ec", links + script] });
  const { success, stderr } = host.run(() => command.outputSync());
  assert(success, new TextDecoder().decode(stderr));
  return host;
}

Deno.test("bridge: the MTU is the smallest of all links that the way out has", async () => {
  const objects =
    "ip nexthop add id 1 via 192.0.1.1 dev a0; ip nexthop add id 2 via 192.0.2.1 dev b0;";
  const group = `${objects} ip nexthop add id 9 group 1/2; ip route add default nhid 9`;
  const table: [script: string, mtu: number][] = [
    ["ip route add default via 192.0.1.1", 1480],
    ["ip route add default nexthop via 192.0.1.1 nexthop via 192.0.2.1", 1400],
    ["ip route add default nexthop via 192.0.1.1 weight 200 nexthop via 192.0.2.1", 1400],
    [`${objects} ip route add default nhid 1`, 1480],
    [group, 1400],
    [`${group}; echo 0 >/proc/sys/net/ipv4/nexthop_compat_mode`, 1400],
    ["ip -6 route add default nexthop via 2001:db8:1::1 nexthop via 2001:db8:2::1", 1400],
    // A VPN's: halves of everything, a table of its own.
    [
      "ip route add default via 192.0.1.1; ip route add 0.0.0.0/1 via 192.0.2.1;" +
      "ip route add 128.0.0.0/1 via 192.0.2.1",
      1400,
    ],
    [
      "ip route add default via 192.0.1.1; ip route add default via 192.0.2.1 table 7;" +
      "ip rule add not fwmark 7 table 7",
      1400,
    ],
    ["ip route add unreachable default metric 9", 1500],
    ["ip route add blackhole default; ip -6 route add prohibit default", 1500],
    // A bridge that is there carries no more than this.
    ["ip route add default via 192.0.1.1; ip link add br0 mtu 1300 type bridge", 1300],
  ];
  for (const [script, mtu] of table) {
    using host = uplinks(script);
    using guest = new CniGuest();
    await add(host, guest, network(host, {}, undefined));
    assertEquals(guest.ip("link", "show", "dev", "eth0")[0].mtu, mtu, script);
  }
});

Deno.test("bridge: an MTU that the bridge or a family cannot carry is refused, one beyond the way out noted", async () => {
  const both = { ranges: [[{ subnet: "10.7.0.0/24" }], [{ subnet: "fd00:7::/64" }]] };
  const table: [script: string, conf: Conf, ipam: Conf, mtu: number | undefined, words: string][] =
    [
      [
        "ip link add br0 type bridge",
        {},
        { subnet: "10.7.0.0/24" },
        9000,
        `"br0" carries 1500 bytes`,
      ],
      ["true", {}, both, 1279, "too small for IPv6"],
      ["true", { mtu: 1279 }, both, undefined, "too small for its IPv6 range"],
      ["true", { mtu: 67 }, { subnet: "10.7.0.0/24" }, undefined, `"mtu" 67`],
    ];
  for (const [script, conf, ipam, mtu, words] of table) {
    using host = uplinks(script);
    using guest = new CniGuest();
    const before = snapshot(host);
    const undo = new UndoStack();
    const options = { undo, fresh: true, ...(mtu === undefined ? {} : { mtu }) };
    const error = await assertRejects(
      async () => await add(host, guest, network(host, conf, ipam), options),
      CniError,
      words,
    );
    assert(error.mend !== undefined, words);
    assertEquals(await host.run(() => undo.unwind()), []);
    assertEquals(snapshot(host), before);
  }
  using host = uplinks("ip route add default nexthop via 192.0.1.1 nexthop via 192.0.2.1");
  using guest = new CniGuest();
  const notes: string[] = [];
  await add(host, guest, network(host, {}, both), { mtu: 9000, notes, fresh: true });
  assertEquals(guest.ip("link", "show", "dev", "eth0")[0].mtu, 9000);
  assertStringIncludes(notes.join(), `"a0", carries 1480 bytes, not 9000`);
});

Deno.test("bridge: another address on the bridge is an error, or replaced by forceAddress", async () => {
  using host = new CniHost();
  const script = "ip link add br0 type bridge; ip link set br0 up; ip addr add 10.1.1.1/24 dev br0";
  const command = new Deno.Command("sh", { args: ["-ec", script] });
  assert(host.run(() => command.outputSync()).success);
  const before = snapshot(host);
  using guest = new CniGuest();
  const undo = new UndoStack();
  const ipam = { subnet: "10.7.0.0/24" };
  const error = await assertRejects(
    () => add(host, guest, network(host, GATEWAY, ipam), { undo }),
    CniError,
  );
  assertStringIncludes(error.message, "10.1.1.1/24");
  assertEquals(await host.run(() => undo.unwind()), []);
  assertEquals(snapshot(host), before);
  assertEquals(host.reserved("net"), []);

  const forced = network(host, { ...GATEWAY, forceAddress: true }, ipam);
  const { attachment } = await add(host, guest, forced, { undo });
  assertEquals(addressesOf(host, "br0").map(({ local }) => local), ["10.7.0.1"]);
  await del(host, guest, attachment);
  assertEquals(host.ip("link").length, 2, "a bridge that tapkit did not make stays");
});

Deno.test("bridge: what is in the way is refused, and stays", async () => {
  using host = new CniHost();
  using guest = new CniGuest();
  const run = (place: CniHost | CniGuest, script: string) => {
    const command = new Deno.Command("sh", { args: ["-ec", script] });
    assert(withNetns(place.netns, () => command.outputSync()).success);
  };
  const list = network(host, GATEWAY, { subnet: "10.7.0.0/24" });
  const refused = async (words: string) => {
    const undo = new UndoStack();
    const before = [snapshot(host), snapshot(guest)];
    await assertRejects(() => add(host, guest, list, { undo }), CniError, words);
    assertEquals(await host.run(() => undo.unwind()), []);
    assertEquals([snapshot(host), snapshot(guest)], before);
    assertEquals(host.reserved("net"), []);
  };
  run(guest, "ip link add eth0 type veth peer other");
  await refused(`"eth0" in`);
  run(guest, "ip link del eth0");
  run(host, `ip link add ${hostVethName(OURS)} type veth peer other`);
  await refused(hostVethName(OURS));
  run(host, `ip link del other; ip link add br0 type veth peer other`);
  await refused(`"br0" is not a bridge`);
});

Deno.test("bridge: any request that fails is undone with all before it", async () => {
  using host = new CniHost();
  const list = network(host, { ...GATEWAY, promiscMode: true }, {
    ranges: [[{ subnet: "10.7.0.0/24" }], [{ subnet: "fd00:7::/64" }]],
  });
  const before = snapshot(host);
  let failures = 0;
  for (let nth = 1;; nth++) {
    using guest = new CniGuest();
    const counter = { left: nth };
    const undo = new UndoStack();
    const nl = { hostNl: failing(host.nl, counter), vmNl: failing(guest.nl, counter) };
    try {
      const { attachment } = await add(host, guest, list, { undo, ...nl });
      await del(host, guest, attachment);
      break;
    } catch (error) {
      assertStringIncludes(String(error), "injected");
      failures++;
    }
    assertEquals(await host.run(() => undo.unwind()), []);
    assertEquals(snapshot(host), before, `after request ${nth} failed`);
    assertEquals([host.reserved("net"), guest.ip("link").length], [[], 1]);
  }
  assert(failures > 10, `${failures}`);
});

/** A connection whose request fails when the counter reaches nothing. */
function failing(nl: NetlinkConnection, counter: { left: number }): NetlinkConnection {
  return new Proxy(nl, {
    get(_, name) {
      const method = Reflect.get(nl, name, nl);
      if (typeof method !== "function") return method;
      return (...args: unknown[]) => {
        if (--counter.left === 0) throw new Error("injected");
        return method.apply(nl, args);
      };
    },
  });
}

Deno.test("bridge: DEL works twice, without the namespace, without a result, after a rename", async () => {
  using host = new CniHost();
  const list = network(host, GATEWAY, { subnet: "10.7.0.0/24" });
  const before = snapshot(host);
  {
    using guest = new CniGuest();
    const { attachment } = await add(host, guest, list);
    await del(host, guest, attachment);
    assertEquals(guest.ip("link").length, 1);
    await del(host, guest, attachment);
    assertEquals(snapshot(host), before);
  }
  {
    // The namespace is gone for us, and lives on by a descriptor.
    using guest = new CniGuest();
    const { attachment } = await add(host, guest, list);
    await del(host, undefined, attachment);
    assertEquals([snapshot(host), host.reserved("net")], [before, []]);
    assertEquals(guest.ip("link").length, 1);
  }
  {
    using guest = new CniGuest();
    await add(host, guest, list);
    await del(host, guest, planNetwork({ list, containerId: "ours", ifName: "eth0" }));
    assertEquals([snapshot(host), host.reserved("net")], [before, []]);
  }
  {
    using guest = new CniGuest();
    const { attachment } = await add(host, guest, list);
    const name = hostVethName(OURS);
    const rename = `ip link set ${name} down; ip link set ${name} name mine`;
    host.run(() => new Deno.Command("sh", { args: ["-ec", rename] }).outputSync());
    await del(host, guest, attachment);
    assertEquals([snapshot(host), host.reserved("net")], [before, []]);
  }
});

Deno.test("bridge: DEL takes what a process that was killed left without a name", async () => {
  using host = new CniHost();
  using guest = new CniGuest();
  const list = network(host, GATEWAY, { subnet: "10.7.0.0/24" });
  const before = snapshot(host);
  const name = hostVethName(OURS);
  const script = "ip link add br0 address 02:74:6b:00:00:01 type bridge;" +
    `ip link add ${name} type veth peer other`;
  host.run(() => new Deno.Command("sh", { args: ["-ec", script] }).outputSync());
  assertEquals(host.ip("link").length, 4);
  await del(host, guest, planNetwork({ list, containerId: "ours", ifName: "eth0" }));
  assertEquals(snapshot(host), before);
});

Deno.test("bridge: CHECK says what is missing", async () => {
  const cases: [where: "host" | "guest", script: string, problem: string][] = [
    ["guest", "ip addr del 10.7.0.2/24 dev eth0", `link "eth0" lacks the address 10.7.0.2/24`],
    ["guest", "ip route del default", "the route to 0.0.0.0/0 by 10.7.0.1 is gone"],
    ["guest", "ip link set eth0 address 02:00:00:00:00:99", `link "eth0" has the MAC`],
    ["guest", "ip link set eth0 down", `link "eth0" is down`],
    ["guest", "ip link del eth0", `link "eth0" in`],
    ["host", "ip link set VETH nomaster", `link "VETH" is not a port of bridge "br0"`],
    ["host", "bridge link set dev VETH hairpin off", `bridge port "VETH" has its hairpin flag off`],
    ["host", "ip link set VETH down", `link "VETH" is down`],
    ["host", "ip link set br0 promisc off", `bridge "br0" is not promiscuous`],
    ["host", "ip addr del 10.7.0.1/24 dev br0", `lacks the gateway's address 10.7.0.1/24`],
    ["host", "ip link del br0", `bridge "br0" is gone`],
    ["host", "rm DATA/net/10.7.0.2", "address 10.7.0.2 is not reserved"],
  ];
  const veth = hostVethName(OURS);
  for (const [where, script, problem] of cases) {
    using host = new CniHost();
    using guest = new CniGuest();
    const list = network(host, { ...GATEWAY, promiscMode: true }, { subnet: "10.7.0.0/24" });
    const { attachment } = await add(host, guest, list);
    const text = script.replace("VETH", veth).replace("DATA", host.dataDir);
    const command = new Deno.Command("sh", { args: ["-ec", text] });
    const { success } = withNetns(
      (where === "host" ? host : guest).netns,
      () => command.outputSync(),
    );
    assert(success, text);
    const problems = await check(host, guest, attachment);
    const wanted = problem.replace("VETH", veth);
    assert(problems.some((found) => found.includes(wanted)), `${text}: ${problems.join("; ")}`);
  }
});

Deno.test("bridge: shares bridge and pool with the reference plugin's containers, in any order", async () => {
  for (const order of ["ours first", "theirs first"]) {
    for (const last of ["ours", "theirs"]) {
      using host = new CniHost();
      using ourGuest = new CniGuest();
      using theirGuest = new CniGuest();
      const list = network(host, { ...GATEWAY, promiscMode: true }, { subnet: "10.7.0.0/24" });
      const call = { containerId: "theirs", netns: theirGuest.path } as const;
      const conf = referenceConf(list);
      const theirAdd = () => runReference("bridge", { ...call, command: "ADD" }, conf, host.netns);
      const before = order === "theirs first" ? await theirAdd() : undefined;
      const ours = await add(host, ourGuest, list);
      const theirs = before ?? await theirAdd();
      assertEquals(new Set([theirs.ips[0].address, ours.result.ips[0]!.address]).size, 2);
      assertEquals(host.reserved("net"), ["10.7.0.2", "10.7.0.3"]);
      const theirCheck = () =>
        runReference(
          "bridge",
          { ...call, command: "CHECK" },
          { ...conf, prevResult: theirs },
          host.netns,
        );
      await theirCheck();
      assertEquals(await check(host, ourGuest, ours.attachment), []);
      const theirDel = () => runReference("bridge", { ...call, command: "DEL" }, conf, host.netns);
      if (last === "ours") {
        await theirDel();
        assertEquals(await check(host, ourGuest, ours.attachment), []);
        await del(host, ourGuest, ours.attachment);
      } else {
        await del(host, ourGuest, ours.attachment);
        await theirCheck();
        await theirDel();
      }
      assertEquals(host.reserved("net"), []);
      const bridges = host.ip("link").filter(({ ifname }: Conf) => ifname === "br0").length;
      // Ours goes with its last port, when it was we who took that away.
      assertEquals(bridges, order === "ours first" && last === "ours" ? 0 : 1, `${order}, ${last}`);
    }
  }
});

Deno.test("bridge: the reference plugin's CHECK and DEL accept what the built-in made", async () => {
  using host = new CniHost();
  using guest = new CniGuest();
  const list = network(host, { ...GATEWAY, promiscMode: true }, { subnet: "10.7.0.0/24" });
  const { result } = await add(host, guest, list);
  const call = { containerId: "ours", netns: guest.path } as const;
  const conf = { ...referenceConf(list), prevResult: result };
  await runReference("bridge", { ...call, command: "CHECK" }, conf, host.netns);
  await runReference("bridge", { ...call, command: "DEL" }, conf, host.netns);
  assertEquals([host.reserved("net"), guest.ip("link").length], [[], 1]);
});
