/** Egress rules of guests, with real packets. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { requireReference } from "../support/cni-reference.ts";
import { GATEWAY, GATEWAY6, PUBLISHING_NETWORK, startDualGuest } from "../support/dual-network.ts";
import type { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { eventually, type Machine } from "../support/machine.ts";

const [LAN, LAN6, METADATA] = ["192.0.2.2", "2001:db8::2", "169.254.169.254"];

/** Whatever other plugins the machine has. */
const BUILTIN = ["--plugins", "builtin"] as const;

// deno-lint-ignore no-explicit-any -- attach-vm's record.
type Json = any;

async function startGuest(host: Host, record: Json): Promise<NetnsGuest> {
  const guest = await startDualGuest(host, record);
  await guest.serveHttp(80, record.vm);
  return guest;
}

async function hostWithNetwork(): Promise<Host> {
  const host = await Host.create();
  await host.writeFile("/etc/cni/net.d/10-dual.conflist", JSON.stringify(PUBLISHING_NETWORK));
  // Which stays, with routes of its own.
  await host.must("sysctl", ["-qw", "net.ipv6.conf.all.forwarding=1"]);
  return host;
}

Deno.test("attach-vm --deny-egress, --allow-egress: drop new connections, and no others", async (t) => {
  await using host = await hostWithNetwork();
  const peer = await host.addLan();
  await peer.sh(`ip addr add ${METADATA}/32 dev lo; ip addr add 198.51.100.7/32 dev lo`);
  for (const address of [METADATA, "198.51.100.7"]) {
    await host.must("ip", ["route", "add", `${address}/32`, "via", LAN]);
  }
  await host.serveHttp(8000, "host");
  await peer.serveHttp(80, "lan");
  const before = await host.snapshot();
  const { json: [record] } = await host.mustTapkit(
    ...["attach-vm", "a", "--ports", "8080:80", "--deny-egress", `${METADATA}/32`] as const,
    ...BUILTIN,
  );
  assertEquals(record.denyEgress, [`${METADATA}/32`]);
  const { json: [other] } = await host.mustTapkit(
    "attach-vm",
    "b",
    "--ports",
    "8081:80",
    ...BUILTIN,
  );
  const [a, b] = [await startGuest(host, record), await startGuest(host, other)];
  const ownIp = record.interfaces[0].addresses[0].address.split("/")[0];
  const bIp = other.interfaces[0].addresses[0].address.split("/")[0];

  const urls = {
    metadata: `http://${METADATA}/`,
    lan: `http://${LAN}/`,
    lan6: `http://[${LAN6}]/`,
    far: "http://198.51.100.7/",
    host: `http://${GATEWAY}:8000/`,
    host6: `http://[${GATEWAY6}]:8000/`,
    hostLan: "http://192.0.2.1:8000/",
    // Translated: to the host as asked for, to a neighbour as it comes out.
    neighbourPort: "http://192.0.2.1:8081/",
    neighbour: `http://${bIp}/`,
  };
  type Name = keyof typeof urls;
  const reached = async (guest: NetnsGuest) => {
    const names = Object.keys(urls) as Name[];
    const replies = await Promise.all(
      names.map((name) => guest.fetch(urls[name], { timeoutSeconds: 1 })),
    );
    return names.filter((_, index) => replies[index]!.status > 0);
  };
  const all = Object.keys(urls) as Name[];
  const but = (...denied: Name[]) => all.filter((name) => !denied.includes(name));
  const apart = (names: readonly Name[]) => names.filter((name) => name !== "neighbour");
  assertEquals(await reached(b), all, "a guest without rules");

  for (const call of [0, 1]) {
    await host.must("sysctl", ["-qw", `net.bridge.bridge-nf-call-iptables=${call}`]);
    for (
      const [deny, allow, expected] of [
        [[`${METADATA}/32`], [], but("metadata")],
        [["0.0.0.0/0"], [], ["lan6", "host6"]],
        [["::/0"], [], but("lan6", "host6")],
        [["0.0.0.0/0", "::/0"], [`${LAN}/32`, `${LAN6}/128`], ["lan", "lan6"]],
        // The longest prefix decides, whichever it is.
        [["0.0.0.0/0", "192.0.2.2/31"], ["192.0.2.0/24"], ["lan6", "host6", "hostLan"]],
        [[`${LAN}/32`], [`${LAN}/32`], all],
        [["192.0.2.1/32"], [], but("hostLan", "neighbourPort")],
        [[`${bIp}/32`], [], but("neighbourPort")],
        [[`${GATEWAY}/32`, "fd00:5::/64"], [], but("host", "host6")],
      ] as const
    ) {
      const flags = [
        ...deny.flatMap((cidr) => ["--deny-egress", cidr]),
        ...allow.length === 0
          ? ["--allow-egress", "none"]
          : allow.flatMap((cidr) => ["--allow-egress", cidr]),
      ];
      const what = `${flags.join(" ")}, bridge-nf-call ${call}`;
      await t.step(what, async () => {
        await host.mustTapkit("attach-vm", "a", ...flags);
        const met = await reached(a);
        assertEquals(apart(met), apart(expected), what);
        // Past the host, unless bridges are filtered.
        const denied = call === 1 && deny.some((cidr) => ["0.0.0.0/0", `${bIp}/32`].includes(cidr));
        assertEquals(met.includes("neighbour"), !denied, what);
        // Published ports are answered, whatever is denied; so is DHCP.
        assertEquals((await peer.fetch("http://192.0.2.1:8080/")).body, "a", flags.join(" "));
        assertEquals((await host.fetch("http://127.0.0.1:8080/")).body, "a", flags.join(" "));
      });
    }
  }
  await t.step("everything denied: nothing is reached, DHCP and others go on", async () => {
    await host.mustTapkit("attach-vm", "a", "--deny-egress", "0.0.0.0/0", "--deny-egress", "::/0");
    assertEquals(await reached(a), []);
    assertEquals((await a.dhcp()).ip, record.interfaces[0].addresses[0].address.split("/")[0]);
    // Not from a link-local address either.
    const shown = await host.must("ip", [
      "-j",
      "-6",
      "addr",
      "show",
      "dev",
      "cni0",
      "scope",
      "link",
    ]);
    const { local: linkLocal } = JSON.parse(shown)[0].addr_info.find(({ local }: Json) => local);
    const local = `http://[${linkLocal}%eth0]:8000/`;
    assertEquals((await a.fetch(local, { timeoutSeconds: 1 })).status, 0);
    assertEquals((await b.fetch(local, { timeoutSeconds: 1 })).status, 200);
    assertEquals(await reached(b), all);
  });

  const check = () => host.tapkit("attach-vm", "a", "--check");
  await t.step("what is flushed is missed, and mended or restored", async () => {
    assertEquals((await check()).code, 0);
    await host.must("nft", ["flush", "set", "inet", "tapkit_policy", "restricted"]);
    const { code, json: [found] } = await check();
    assertEquals(code, 3);
    assertMatch(found.problems.join(), /egress of a\/eth0 \(restricted: .*\) is missing/);
    await host.mustTapkit("attach-vm", "a");
    assertEquals((await check()).code, 0);
    await host.must("nft", ["flush", "ruleset"]);
    assertEquals((await check()).code, 3);
    // The guard at the TAP still knows; neighbours are reached past the host.
    assertEquals(await reached(a), ["neighbour"]);
    assertEquals((await b.fetch(urls.host, { timeoutSeconds: 1 })).status, 200);
    assertEquals((await host.fetch(`http://${ownIp}/`)).body, "a");
    const { json: restored } = await host.mustTapkit("attach-vm", "--restore");
    assertEquals(restored.length, 2);
    assertEquals((await check()).code, 0);
    assertEquals(await reached(a), []);
  });

  await t.step("with nothing denied all is reached, and no table is left", async () => {
    await host.mustTapkit("attach-vm", "a", "--deny-egress", "none", "--allow-egress", "none");
    assertEquals(await reached(a), all);
    assert(!(await host.must("nft", ["list", "tables"])).includes("policy"));
  });
  await host.mustTapkit("attach-vm", "a", "--deny-egress", "10.9.0.0/16");
  await host.mustTapkit("attach-vm", "a", "b", "--remove");
  await a[Symbol.asyncDispose]();
  await b[Symbol.asyncDispose]();
  await host.must("sysctl", ["-qw", "net.bridge.bridge-nf-call-iptables=1"]);
  await host.assertRestored(before);
});

Deno.test("attach-vm --deny-egress: what comes by a published port is answered, whenever it was mapped", async (t) => {
  await using host = await hostWithNetwork();
  const peer = await host.addLan();
  const deny = ["--deny-egress", "0.0.0.0/0", "--deny-egress", "::/0"] as const;
  const { json: [record] } = await host.mustTapkit(
    ...["attach-vm", "a", "--ports", "5300:53/udp", ...deny, ...BUILTIN] as const,
  );
  const guest = await startGuest(host, record);
  await guest.serveUdp(53, "dns");
  await guest.serveUdp(54, "other");
  await peer.serveUdp(9, "peer");
  const ask = async (machine: Machine, address: string, port: number) => {
    await using client = await machine.udpClient(address, port);
    return (await client.ask("hello", 500))?.split(" ")[0];
  };
  // New links' IPv6 addresses take a moment.
  const answered = async (machine: Machine, address: string, port: number, text: string) =>
    await eventually(8000, `${address} ${port} is answered by "${text}"`, async () => {
      return await ask(machine, address, port) === text;
    });
  const [ip, ip6] = record.interfaces[0].addresses
    .map(({ address }: Json) => address.split("/")[0]);
  const check = async () => {
    const { json: [{ problems }] } = await host.tapkit("attach-vm", "a", "--check");
    assertEquals(problems, []);
  };
  await t.step("mapped beforehand, or asked by the host", async () => {
    for (const address of ["192.0.2.1", "2001:db8::1"]) await answered(peer, address, 5300, "dns");
    // The host asks without a published port.
    for (const address of [ip, ip6]) await answered(host, address, 54, "other");
    assertEquals(await ask(guest, LAN, 9), undefined);
    await check();
  });

  await t.step("mapped by map-port while it runs", async () => {
    await host.mustTapkit("map-port", "a", "5400:54/udp");
    await answered(peer, "192.0.2.1", 5400, "other");
    await answered(peer, "2001:db8::1", 5400, "other");
    await check();
    await host.mustTapkit("map-port", "a", "5300:53/udp", "--remove");
    await answered(peer, "192.0.2.1", 5400, "other");
    await check();
  });
  await t.step("mapped by attach-vm while it runs, and where the guard was put back", async () => {
    await host.mustTapkit("attach-vm", "a", "--ports", "5301-5309:50-58/udp");
    await answered(peer, "192.0.2.1", 5304, "dns");
    await check();
    await host.must("tc", ["filter", "del", "dev", "vm_eth0", "ingress", "pref", "1"], {
      netns: "tapkit-a",
    });
    await host.mustTapkit("attach-vm", "a");
    await answered(peer, "192.0.2.1", 5304, "dns");
    assertEquals(await ask(guest, LAN, 9), undefined);
    await check();
    await host.mustTapkit("map-port", "a", "5400:54/udp", "--remove");
  });
  await t.step("whom the guest is to be reachable from may ask it anything", async () => {
    const from = ["--reachable-from", "192.0.2.0/24", "--reachable-from", "2001:db8::/64"] as const;
    await host.mustTapkit("attach-vm", "a", ...from);
    for (const address of [ip, ip6]) await answered(peer, address, 54, "other");
    await check();
    await host.mustTapkit("attach-vm", "a", "--reachable-from", "none");
    assertEquals(await ask(peer, ip, 54), undefined);
  });
  await t.step("what is made anew keeps what it kept", async () => {
    await host.must("ip", ["netns", "exec", "tapkit-a", "ip", "link", "del", "vm_eth0"]);
    await host.mustTapkit("attach-vm", "a");
    await check();
  });
  await host.mustTapkit("attach-vm", "a", "--deny-egress", "none", "--allow-egress", "none");
  await check();
});

Deno.test("attach-vm: refuses policies that nothing could keep, and touches nothing", async (t) => {
  await using host = await hostWithNetwork();
  requireReference();
  await host.addLan();
  await host.writeFile(
    "/etc/cni/net.d/20-flat.conflist",
    JSON.stringify({
      cniVersion: "1.0.0",
      name: "flat",
      plugins: [{
        type: "bridge",
        bridge: "flat0",
        ipam: { type: "host-local", ranges: [[{ subnet: "10.6.0.0/24" }]] },
      }],
    }),
  );
  // A network past the host: its frames are the LAN's.
  await host.writeFile(
    "/etc/cni/net.d/30-past.conflist",
    JSON.stringify({
      cniVersion: "1.0.0",
      name: "past",
      plugins: [{
        type: "macvlan",
        master: "eth-lan",
        ipam: {
          type: "host-local",
          ranges: [[{ subnet: "192.0.2.0/24", rangeStart: "192.0.2.100", gateway: "192.0.2.2" }]],
        },
      }],
    }),
  );
  const before = await host.snapshot();
  const cases: readonly (readonly [flags: string, code: number, message: RegExp])[] = [
    ["--deny-egress example.com", 2, /"example\.com" is not an address with a prefix length/],
    ["--deny-egress 10.0.0.0/33", 2, /is not an address with a prefix length/],
    ["--deny-egress none --deny-egress ::/0", 2, /--deny-egress none does not go with other/],
    ["--allow-egress 10.0.0.0/8", 2, /egress is allowed, but none is denied/],
    ["--deny-egress ::/0 --no-antispoof", 2, /cannot be restricted: leave out --no-antispoof/],
    ["--isolated --no-isolated", 2, /--isolated and --no-isolated do not go together/],
    ["--network flat --deny-egress ::/0", 1, /this host is not the router of network "flat"/],
  ];
  for (const [flags, expected, message] of cases) {
    await t.step(flags, async () => {
      const { code, stderr } = await host.tapkit("attach-vm", "a", ...flags.split(" "), ...BUILTIN);
      assertEquals(code, expected, `${flags}: ${stderr}`);
      assertMatch(stderr, message, flags);
    });
  }
  const unenforceable = [
    ["--isolated", /"eth0" cannot be isolated: network "past" is not a bridge of this host/],
    ["--deny-egress=::/0", /this host is not the router of network "past"/],
  ] as const;
  for (const [flag, message] of unenforceable) {
    const { code, stderr } = await host.tapkit("attach-vm", "a", "--network", "past", flag);
    assertEquals(code, 1, stderr);
    assertMatch(stderr, message);
  }
  await host.assertRestored(before);
  await t.step("while the VM is attached, too", async () => {
    const { json: plain } = await host.mustTapkit("attach-vm", "a", "--network", "past");
    for (const [flag, message] of unenforceable) {
      const { code, stderr } = await host.tapkit("attach-vm", "a", flag);
      assertEquals(code, 1, stderr);
      assertMatch(stderr, message);
      assertEquals((await host.mustTapkit("attach-vm", "a", "--list")).json, plain);
      const check = await host.tapkit("attach-vm", "a", "--check");
      assertEquals(check.code, 0, check.stdout);
    }
    await host.mustTapkit("attach-vm", "a", "--remove");
  });
  await host.assertRestored(before);
  const deny = ["attach-vm", "a", "--deny-egress", "10.0.0.0/8", ...BUILTIN] as const;
  await host.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
  const warned = await host.mustTapkit(...deny);
  assertMatch(warned.stderr, /10\.0\.0\.0\/8 contains neighbours of "eth0".*--isolated/);
  await host.mustTapkit("attach-vm", "a", "--remove");
  // What the bridge passes is filtered too: see the test above.
  await host.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=1");
  assert(!(await host.mustTapkit(...deny)).stderr.includes("neighbours"));
  const exact = ["--deny-egress", "192.0.2.9", "--allow-egress", "2001:db8::9"];
  const { json: [record] } = await host.mustTapkit("attach-vm", "a", ...exact);
  assertEquals([record.denyEgress, record.allowEgress], [["192.0.2.9/32"], ["2001:db8::9/128"]]);
  const { json: [cleared] } = await host.mustTapkit("attach-vm", "a", "--deny-egress", "none");
  assertEquals([cleared.denyEgress, cleared.allowEgress], [undefined, undefined]);
  await host.mustTapkit("attach-vm", "a", "--deny-egress", "10.0.0.0/8");
  const late = await host.tapkit("attach-vm", "a", "--no-antispoof");
  assertEquals(late.code, 2);
  assertEquals((await host.tapkit("attach-vm", "a", "--check")).code, 0);
  await host.mustTapkit("attach-vm", "a", "--remove");
  await host.assertRestored(before);
});
