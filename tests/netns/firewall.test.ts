/**
 * The firewall in nftables, with `nft` as oracle; what it shares with iptables is in
 * tests/support/firewall-suite.ts.
 */

import { assertEquals, assertInstanceOf, assertMatch, assertThrows } from "@std/assert";
import { chooseHostPorts, findListener, refuseListeners } from "../../lib/firewall/host-ports.ts";
import { NftablesError } from "../../lib/errors.ts";
import { Nftables } from "../../lib/firewall/libnftables.ts";
import { LIMITS_TABLE } from "../../lib/firewall/limits-table.ts";
import { openFirewall } from "../../lib/firewall/open.ts";
import { MAIN_TABLE } from "../../lib/firewall/ruleset.ts";
import { removeRulesOf } from "../../lib/firewall/remains.ts";
import { Journal } from "../../lib/firewall/journal.ts";
import { sentence } from "../../lib/finding.ts";
import { checkNeeded, neededSysctls, returnSysctls } from "../../lib/firewall/sysctls.ts";
import { parsePorts, PortConflictError, type PortMapping } from "../../lib/inet/ports.ts";
import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import { type Netns, newNetns, withNetns } from "../../lib/sys/netns.ts";
import { readSysctl } from "../../lib/sys/sysctl.ts";
import { checkInside, ensureInside, ensureSysctls } from "../support/settings.ts";
import { add, check, guest, remove, replace, testBackend } from "../support/firewall-suite.ts";
import { compileTable } from "../support/main-table.ts";
import { runInside, Topology } from "../support/topology.ts";

// Libraries stay open: the first test to open one would be told that it leaks it.
{
  using netns = newNetns();
  withNetns(netns, () => Nftables.open())[Symbol.dispose]();
}

/** What `nft` lists, without its greeting. */
function listRuleset(netns: Netns): unknown[] {
  return JSON.parse(runInside(netns, "nft -j list ruleset")).nftables.slice(1);
}

const nftElements = (netns: Netns, set: string): string =>
  runInside(netns, `nft list set inet tapkit ${set} 2>&1 || nft list map inet tapkit ${set}`)
    .match(/elements = \{([^}]*)\}/)?.[1]?.replaceAll(/\s+/g, " ").trim() ?? "";

Deno.test("Firewall.change: add, compare, remove, remove again, and nothing is left", async () => {
  using netns = newNetns();
  const before = listRuleset(netns);
  using firewall = await openFirewall({ netns });
  const rules = guest(1, ["8080:80", "127.0.0.1:53:53/udp", "[2001:db8::1]:9000-9001:90-91/sctp"]);
  assertEquals(check(firewall, rules)[0], 'the nftables table "inet tapkit" is missing');

  assertEquals(add(firewall, rules), true);
  assertEquals(check(firewall, rules), []);
  assertEquals(add(firewall, rules), false, "a second add changes nothing");
  assertEquals(
    nftElements(netns, "ports4"),
    'tcp . 8080 comment "guest1/eth0" : 172.18.0.2 . 80',
  );
  assertEquals(nftElements(netns, "ports6"), 'tcp . 8080 comment "guest1/eth0" : fd00:18::2 . 80');
  assertEquals(
    nftElements(netns, "ports_at4"),
    '127.0.0.1 . udp . 53 comment "guest1/eth0" : 172.18.0.2 . 53',
  );
  assertMatch(nftElements(netns, "ports_at6"), /2001:db8::1 \. sctp \. 900[01] .* : fd00:18::2/);
  assertEquals(nftElements(netns, "guests4"), '172.18.0.2 . "ignite0" comment "guest1/eth0"');
  assertEquals(nftElements(netns, "private6"), 'fd00:18::2 comment "guest1/eth0"');

  assertEquals(firewall.removeIfUnused(), false);
  assertEquals(remove(firewall, rules), true);
  assertEquals(remove(firewall, rules), false, "a second remove finds nothing");
  assertEquals(firewall.removeIfUnused(), true);
  assertEquals(firewall.removeIfUnused(), false);
  assertEquals(remove(firewall, rules), false);
  assertEquals(listRuleset(netns), before);
});

Deno.test("Firewall.differences: name what was taken away, add brings it back", async () => {
  using netns = newNetns();
  using firewall = await openFirewall({ netns });
  const [one, two] = [guest(1, ["8080:80"]), guest(2, ["8081:80", "53:53/udp"])];
  add(firewall, one);
  add(firewall, two);
  const whole = listRuleset(netns);
  const withoutHandles = (ruleset: unknown[]) =>
    JSON.parse(JSON.stringify(ruleset, (key, value) => key === "handle" ? undefined : value));

  runInside(netns, "nft delete element inet tapkit ports4 '{ tcp . 8080 }'");
  assertEquals(check(firewall, one), [
    "the mapping of 0.0.0.0:8080/tcp is missing from nftables",
  ]);
  assertEquals(check(firewall, two), []);
  add(firewall, one);
  assertEquals(check(firewall, one), []);

  for (const damage of ["flush chain inet tapkit forward", "flush table inet tapkit"]) {
    runInside(netns, `nft ${damage}`);
    assertMatch(check(firewall, two)[0]!, /table "inet tapkit" lacks the rule "/);
    assertEquals(add(firewall, one), true, damage);
    assertEquals(check(firewall, two), [], "the other guest's elements were kept");
    assertEquals(withoutHandles(listRuleset(netns)), withoutHandles(whole), damage);
  }

  runInside(netns, "nft flush ruleset");
  assertEquals(check(firewall, one)[0], 'the nftables table "inet tapkit" is missing');
  add(firewall, one);
  add(firewall, two);
  assertEquals(withoutHandles(listRuleset(netns)), withoutHandles(whole));
});

Deno.test("Firewall: a table of another layout is rebuilt, its guests kept", async () => {
  using netns = newNetns();
  using firewall = await openFirewall({ netns });
  add(firewall, guest(1, ["8080:80"]));
  const old = runInside(netns, "nft list ruleset").replace(/layout [0-9a-f]{8}/, "layout 00000000");
  runInside(netns, `nft flush ruleset; nft -f - <<'END'\n${old}\nEND`);
  assertMatch(check(firewall, guest(1, ["8080:80"]))[0]!, /lacks the rule "published: .*layout/);
  add(firewall, guest(2, ["8081:80"]));
  assertEquals(check(firewall, guest(1, ["8080:80"])), []);
  assertEquals(check(firewall, guest(2, ["8081:80"])), []);
});

Deno.test("Firewall.change: many at once make one table, and a port has one winner", async () => {
  using netns = newNetns();
  const processes = Array.from({ length: 8 }, (_, index) => {
    const changes = { owner: `vm${index}/eth0`, addresses: [`172.18.1.${index}`] };
    const own = guest(1, [`${9000 + index}:80`], changes);
    const contested = guest(1, ["8080:80"], changes);
    const script = `
      import { openFirewall } from "${new URL("../../lib/firewall/open.ts", import.meta.url)}";
      using firewall = await openFirewall({ kind: "nftables" });
      firewall.change("${own.owner}", undefined, ${JSON.stringify(own)});
      try {
        firewall.change("${own.owner}", undefined, ${JSON.stringify(contested)});
        console.log("won");
      } catch (error) {
        console.log(error.name);
      }`;
    const args = ["eval", script];
    const options = { args, stdout: "piped", stderr: "inherit" } as const;
    return withNetns(netns, () => new Deno.Command(Deno.execPath(), options).spawn());
  });
  const outputs = await Promise.all(processes.map((process) => process.output()));
  const results = outputs.map(({ stdout }) => new TextDecoder().decode(stdout).trim()).sort();
  assertEquals(results, [...Array(7).fill("PortConflictError"), "won"]);
  using firewall = await openFirewall({ netns });
  assertEquals(firewall.listGuests().length, 8);
  assertEquals(nftElements(netns, "ports4").split(",").length, 9);
  assertEquals(runInside(netns, "nft list chain inet tapkit prerouting").match(/jump/g)?.length, 1);
});

Deno.test("Firewall: goes on beside somebody who flushes the ruleset all the time", async () => {
  using netns = newNetns();
  using firewall = await openFirewall({ netns });
  const rules = guest(1, ["8080:80"]);
  const flushing = withNetns(netns, () =>
    new Deno.Command("sh", {
      args: ["-c", "while nft flush ruleset; do sleep 0.005; done"],
    }).spawn());
  try {
    for (let round = 0; round < 200; round++) {
      add(firewall, rules);
      remove(firewall, rules);
      firewall.removeIfUnused();
      // Lets the other one have a turn on a busy machine.
      if (round % 10 === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    }
  } finally {
    flushing.kill("SIGKILL");
    await flushing.status;
  }
});

Deno.test("Firewall: ten thousand ports in one call are all there, and go again", async () => {
  using netns = newNetns();
  using firewall = await openFirewall({ netns });
  const rules = guest(1, ["20000-29999:20000-29999"], { addresses: ["172.18.0.2"] });
  add(firewall, rules);
  assertEquals(check(firewall, rules), []);
  assertEquals(nftElements(netns, "ports4").split(",").length, 10_000);
  remove(firewall, rules);
  assertEquals(firewall.removeIfUnused(), true);
});

Deno.test("Firewall.change: a new TCP port leaves connections alone, a new UDP port ends stale flows", async () => {
  using netns = newNetns();
  using firewall = await openFirewall({ netns });
  const flows = () => runInside(netns, "conntrack -L 2>/dev/null").match(/^(tcp|udp)/gm) ?? [];
  for (const [protocol, state] of [["tcp", "--state ESTABLISHED"], ["udp", ""]]) {
    runInside(
      netns,
      `conntrack -I -p ${protocol} -s 127.0.0.9 -d 127.0.0.1 --sport 4000 --dport 8080 -t 60 \
         -u SEEN_REPLY ${state}`,
    );
  }
  assertEquals(flows().sort(), ["tcp", "udp"]);
  add(firewall, guest(1, ["8080:80"]));
  assertEquals(flows().sort(), ["tcp", "udp"]);
  replace(firewall, guest(1, ["8080:80"]), guest(1, ["8080:80", "8080:80/udp"]));
  assertEquals(flows(), ["tcp"]);
  replace(firewall, guest(1, ["8080:80"]), guest(1, []));
  assertEquals(flows(), []);
});

Deno.test("Nftables: its socket is closed on exec", () => {
  using netns = newNetns();
  const sockets = () =>
    withNetns(netns, () => runInside(netns, "ls -l /proc/self/fd | grep -c socket: || true"));
  const before = sockets();
  using nft = withNetns(netns, () => Nftables.open());
  assertEquals(sockets(), before);
  assertEquals(nft.run("list ruleset", "list"), "");
});

Deno.test("Nftables.run: a refusal has its code, its first line and the place", () => {
  using netns = newNetns();
  using nft = withNetns(netns, () => Nftables.open());
  const missing = assertThrows(() => nft.run("list table inet none", "list it"), NftablesError);
  assertEquals(missing.code, "ENOENT");
  assertMatch(missing.message, /^nftables: cannot list it: No such file or directory/);
  assertMatch(missing.report, /\^/);
  const nonsense = assertThrows(() => nft.run("frobnicate", "frobnicate"), NftablesError);
  assertEquals(nonsense.code, undefined);
  assertMatch(nonsense.message, /syntax error/);
});

Deno.test("MESSAGES: are what libnftables makes of the rules", () => {
  for (const table of [MAIN_TABLE, LIMITS_TABLE]) {
    assertEquals(
      compileTable(table, table.layout).toBase64(),
      table.messages?.replaceAll("\n", ""),
      `${table.name}: deno task table`,
    );
  }
});

Deno.test("Firewall: libnftables is needed for policies, and for nothing else", () => {
  using netns = newNetns();
  const module = new URL("../../lib/firewall/open.ts", import.meta.url);
  const plain = guest(1, ["8080:80"]);
  const isolated = {
    ...guest(2, ["8081:80"]),
    mac: "02:00:00:00:00:02",
    isolatedPort: "veth2",
  };
  const script = `
    import { openFirewall } from "${module}";
    using firewall = await openFirewall({ kind: "nftables" });
    const plain = ${JSON.stringify(plain)};
    console.log(
      firewall.change(plain.owner, undefined, plain),
      firewall.differences(plain).length,
      firewall.change(plain.owner, plain, undefined),
    );
    console.log(firewall.removeIfUnused());
    try {
      firewall.change("${isolated.owner}", undefined, ${JSON.stringify(isolated)});
    } catch (error) {
      console.log(error.message, "/", error.mend);
    }`;
  const printed = runInside(
    netns,
    `library=$(ldconfig -p | sed -n 's/.*libnftables.so.1 .*=> //p' | head -n 1)
     exec unshare --mount sh -ec 'mount --bind /dev/null '$library'; exec "$@"' sh \
       ${Deno.execPath()} eval '${script}'`,
  );
  assertEquals(
    printed,
    "true 0 true\ntrue\nthe library libnftables.so.1 cannot be opened / " +
      "install libnftables1 (Debian, Ubuntu) or nftables (Fedora, Arch, Alpine)\n",
  );
  assertEquals(listRuleset(netns), []);
});

Deno.test("Firewall.change: takes policies' tables that a killed process left empty", async () => {
  using netns = newNetns();
  using firewall = await openFirewall({ netns });
  const isolated = { ...guest(1, []), mac: "02:00:00:00:00:01", isolatedPort: "veth1" };
  add(firewall, isolated);
  const sets = ["ports", "pairs", "macs", "senders", "names", "holders"];
  runInside(
    netns,
    sets.map((set) => `nft flush set bridge tapkit_policy isolated_${set}`).join("; "),
  );
  assertMatch(runInside(netns, "nft list tables"), /bridge tapkit_policy/);
  firewall.change(isolated.owner, "any", undefined);
  assertEquals(runInside(netns, "nft list tables").includes("tapkit_policy"), false);
});

Deno.test("ensureSysctls: sets what the rules need, once, and returnSysctls puts it back", () => {
  using netns = newNetns();
  using nl = withNetns(netns, () => NetlinkConnection.open());
  const directory = Deno.makeTempDirSync();
  const journal = new Journal(`${directory}/run`);
  runInside(
    netns,
    `
    ip link add ignite0 type bridge; ip link add uplink type veth peer name far; ip link add lan2 type bridge
    cd /proc/sys/net
    echo 0 >ipv4/ip_forward
    echo 1 >ipv4/conf/lan2/forwarding; echo 0 >ipv4/conf/all/accept_redirects
    echo 8 >ipv4/conf/ignite0/arp_ignore; echo 1 >ipv6/conf/ignite0/disable_ipv6
    echo 1 >ipv6/conf/uplink/accept_ra; echo 0 >ipv6/conf/ignite0/accept_ra
    echo 1 >ipv6/conf/lan2/forwarding`,
  );
  const settings = () =>
    runInside(
      netns,
      "cd /proc/sys/net; grep . ipv4/ip_forward ipv[46]/conf/*/forwarding ipv6/conf/*/accept_ra " +
        "ipv6/conf/*/disable_ipv6 ipv4/conf/*/arp_ignore ipv4/conf/*/route_localnet " +
        "ipv4/conf/*/accept_redirects; tc qdisc show",
    );
  const rules = guest(1, ["8080:80"]);
  const needed = [
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.ignite0.forwarding=1",
    "net.ipv4.conf.ignite0.arp_ignore=0",
    "net.ipv4.conf.ignite0.route_localnet=1",
    "net.ipv6.conf.ignite0.disable_ipv6=0",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.ignite0.forwarding=1",
  ];
  try {
    withNetns(netns, () => {
      const before = settings();
      assertEquals(checkNeeded(nl, neededSysctls(rules)).map(sentence), [
        ...needed.slice(0, 4).map((setting) => `the sysctl ${setting} is not set`),
        'the filter of "ignite0" that keeps 127.0.0.0/8 closed is missing',
        ...needed.slice(4).map((setting) => `the sysctl ${setting} is not set`),
      ]);
      const changes = ensureSysctls(nl, rules, { journal });
      // Forwarding of all sets each link's.
      const ofLink = /ignite0.forwarding|accept_ra/;
      assertEquals(
        changes.filter((change) => !ofLink.test(change)),
        needed.filter((change) => !ofLink.test(change)),
      );
      assertEquals(readSysctl("net/ipv6/conf/uplink/accept_ra"), "2");
      assertEquals(ensureSysctls(nl, rules, { journal }), []);
      assertEquals(checkNeeded(nl, neededSysctls(rules)), []);
      const paths = new Set(Object.keys(journal.read()));
      returnSysctls(nl, paths, { journal });
      assertEquals(settings(), before);
      assertEquals(journal.read(), {});
    });
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("ensureSysctls: a guest that answers by its other link is no spoofer", async () => {
  await using lan = await Topology.start({ bridgeNetfilter: false });
  using firewall = await openFirewall({ netns: lan.host });
  const { machine, guest1 } = lan.peers;
  runInside(
    lan.host,
    `ip link add second type bridge
     ip address add 172.19.0.1/16 dev second
     ip link set second up
     ip link add veth3 type veth peer name eth1 netns /proc/${Deno.pid}/fd/${lan.guest1.fd}
     ip link set veth3 master second up
     for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 >$file; done`,
  );
  runInside(
    lan.guest1,
    `ip link set eth1 up
     ip address add 172.19.0.2/16 dev eth1
     ip route replace default via 172.19.0.1`,
  );
  await guest1.serve("tcp", 80);
  const first = guest(1, ["8080:80"]);
  const second = guest(1, [], { owner: "guest1/eth1", link: "second", addresses: ["172.19.0.2"] });
  withNetns(lan.host, () => {
    for (const rules of [first, second]) {
      ensureInside(lan.host, rules);
      add(firewall, rules);
    }
  });
  assertEquals(await machine.failToAsk("tcp", "192.0.2.1", 8080), "timeout");
  withNetns(lan.host, () => {
    assertEquals(checkInside(lan.host, second, { asymmetric: true }), [
      "the sysctl net.ipv4.conf.second.rp_filter=2 is not set",
    ]);
    assertEquals(ensureInside(lan.host, second, { asymmetric: true }), [
      "net.ipv4.conf.second.rp_filter=2",
    ]);
    assertEquals(ensureInside(lan.host, second, { asymmetric: true }), []);
  });
  assertEquals((await machine.ask("tcp", "192.0.2.1", 8080)).server, "guest1");
});

Deno.test("findListener: names the process that listens on a host port", async () => {
  await using lan = await Topology.start({ bridgeNetfilter: false });
  const { host, machine } = lan.peers;
  await host.serve("tcp", 7001, "127.0.0.1");
  await host.serve("udp", 7002, "192.0.2.1");
  await host.serve("tcp", 7003, "::");
  const find = (text: string) =>
    withNetns(lan.host, () => findListener(parsePorts([text])[0]!))?.process?.pid;
  const cases: [string, boolean][] = [
    ["7001:80", true],
    ["127.0.0.1:7001:80", true],
    ["0.0.0.0:7001:80", true],
    ["192.0.2.1:7001:80", false],
    ["[::]:7001:80", false],
    ["7001:80/udp", false],
    ["7002:80/udp", true],
    ["192.0.2.9:7002:80/udp", false],
    ["7000-7010:7000-7010", true],
    ["192.0.2.9:7003:80", true],
    ["[::]:7003:80", true],
    ["7004:80", false],
    ["203.0.113.1:7005:80", false],
  ];
  for (const [text, taken] of cases) assertEquals(find(text), taken ? host.pid : undefined, text);

  const error = assertThrows(
    () => withNetns(lan.host, () => refuseListeners(parsePorts(["7001:80"]))),
    PortConflictError,
  );
  assertMatch(error.message, /^host port 7001\/tcp is in use by deno \(pid \d+\)$/);
  assertInstanceOf(error, PortConflictError);

  // A connection's own port is no listener, but not free either.
  await machine.serve("tcp", 7100);
  await host.ask("tcp", "192.0.2.50", 7100, "live");
  const local = runInside(lan.host, "ss -Htn state established dport = 7100");
  const port = Number(/:(\d+)\s+192\.0\.2\.50/.exec(local)?.[1]);
  assertEquals(find(`${port}:80`), undefined);
  withNetns(lan.host, () => {
    Deno.writeTextFileSync("/proc/sys/net/ipv4/ip_local_port_range", `${port} ${port + 2}`);
    const isTaken = ({ hostPort }: PortMapping) => hostPort === port + 1;
    const [chosen] = chooseHostPorts(parsePorts(["0:80"]), isTaken);
    assertEquals(chosen!.hostPort, port + 2);
    assertThrows(
      () => chooseHostPorts(parsePorts(["0:80", "0:81"]), isTaken),
      Error,
      "no host port",
    );
  });
});

testBackend({
  name: "nftables",
  open: (netns) => openFirewall({ netns }),
  list: listRuleset,
  dropGuard: "nft flush chain inet tapkit loopback",
  dropPort: (port) => `nft delete element inet tapkit ports4 '{ tcp . ${port} }'`,
  flush: "nft flush ruleset",
  damages: [
    "nft delete element inet tapkit ports4 '{ tcp . 8080 }'",
    "nft flush chain inet tapkit forward",
    "nft flush table inet tapkit",
    "nft flush ruleset",
  ],
});

Deno.test("removeRulesOf: own chains go with their rules, or empty; one that is jumped to stays", () => {
  using netns = newNetns();
  const id = "0123456789abcdef0123456789abcdef";
  const own = ["CNI-a", "CNI-DN-a"];
  const load = (lines: readonly string[]) =>
    runInside(netns, `nft -f - <<'.'\ntable ip nat {\n${lines.join("\n")}\n}\n.`);
  const list = () => runInside(netns, "nft list table ip nat").match(/(chain|jump) [\w-]+/g);
  const remove = () => withNetns(netns, () => removeRulesOf(id, own));

  load([
    "chain CNI-a { accept; }",
    "chain CNI-DN-a { }",
    "chain CNI-b { }",
    `chain top { ip saddr 10.20.0.2 jump CNI-a comment "${id}"; jump CNI-b; }`,
  ]);
  remove();
  assertEquals(list(), ["chain CNI-b", "chain top", "jump CNI-b"]);
  remove();

  load(["chain CNI-a { }", "chain CNI-DN-a { accept; }", "chain top { jump CNI-DN-a; }"]);
  remove();
  assertEquals(list(), [
    "chain CNI-b",
    "chain top",
    "jump CNI-b",
    "jump CNI-DN-a",
    "chain CNI-DN-a",
  ]);
});
