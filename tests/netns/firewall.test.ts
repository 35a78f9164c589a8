/**
 * The firewall against the kernel, with `nft` as oracle and real packets between a host, its
 * guests and a machine of its LAN.
 */

import { assertEquals, assertInstanceOf, assertMatch, assertThrows } from "@std/assert";
import { chooseHostPorts, findListener, refuseListeners } from "../../lib/firewall/host-ports.ts";
import { Nftables, NftablesError } from "../../lib/firewall/libnftables.ts";
import type { GuestRules } from "../../lib/firewall/model.ts";
import { Firewall } from "../../lib/firewall/firewall.ts";
import { checkSysctls, ensureSysctls } from "../../lib/firewall/sysctls.ts";
import { formatPort, parsePorts, PortConflictError } from "../../lib/inet/ports.ts";
import { type Netns, newNetns, withNetns } from "../../lib/sys/netns.ts";
import { runInside, Topology } from "../support/topology.ts";

// Libraries stay open: the first test to open one would be told that it leaks it.
{
  using netns = newNetns();
  withNetns(netns, () => Nftables.open())[Symbol.dispose]();
}

function guest(number: 1 | 2, ports: string[], changes: Partial<GuestRules> = {}): GuestRules {
  return {
    owner: `guest${number}/eth0`,
    link: "ignite0",
    addresses: [`172.18.0.${number + 1}`, `fd00:18::${number + 1}`],
    masquerade: true,
    forward: true,
    ports: parsePorts(ports),
    ...changes,
  };
}

function openFirewall(host: Netns): Firewall {
  return withNetns(host, () => Firewall.open());
}

function addAll(host: Netns, firewall: Firewall, ...guests: GuestRules[]): void {
  for (const rules of guests) {
    withNetns(host, () => ensureSysctls(rules));
    firewall.add(rules);
    assertEquals(firewall.check(rules), []);
  }
}

/** What `nft` lists, without its greeting. */
function listRuleset(netns: Netns): unknown[] {
  return JSON.parse(runInside(netns, "nft -j list ruleset")).nftables.slice(1);
}

const delay = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

const nftElements = (netns: Netns, set: string): string =>
  runInside(netns, `nft list set inet tapkit ${set} 2>&1 || nft list map inet tapkit ${set}`)
    .match(/elements = \{([^}]*)\}/)?.[1]?.replaceAll(/\s+/g, " ").trim() ?? "";

Deno.test("Firewall: add, check, remove, remove again, and nothing is left", () => {
  using netns = newNetns();
  const before = listRuleset(netns);
  using firewall = openFirewall(netns);
  const rules = guest(1, ["8080:80", "127.0.0.1:53:53/udp", "[2001:db8::1]:9000-9001:90-91/sctp"]);
  assertEquals(firewall.check(rules)[0], 'the nftables table "inet tapkit" is missing');

  assertEquals(firewall.add(rules), true);
  assertEquals(firewall.check(rules), []);
  assertEquals(firewall.add(rules), false, "a second add changes nothing");
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
  assertEquals(firewall.remove(rules), true);
  assertEquals(firewall.remove(rules), false, "a second remove finds nothing");
  assertEquals(firewall.removeIfUnused(), true);
  assertEquals(firewall.removeIfUnused(), false);
  assertEquals(firewall.remove(rules), false);
  assertEquals(listRuleset(netns), before);
});

Deno.test("Firewall.check: names what was taken away, add brings it back", () => {
  using netns = newNetns();
  using firewall = openFirewall(netns);
  const [one, two] = [guest(1, ["8080:80"]), guest(2, ["8081:80", "53:53/udp"])];
  firewall.add(one);
  firewall.add(two);
  const whole = listRuleset(netns);
  const withoutHandles = (ruleset: unknown[]) =>
    JSON.parse(JSON.stringify(ruleset, (key, value) => key === "handle" ? undefined : value));

  runInside(netns, "nft delete element inet tapkit ports4 '{ tcp . 8080 }'");
  assertEquals(firewall.check(one), [
    "the mapping of 0.0.0.0:8080/tcp is missing from nftables",
  ]);
  assertEquals(firewall.check(two), []);
  firewall.add(one);
  assertEquals(firewall.check(one), []);

  for (const damage of ["flush chain inet tapkit forward", "flush table inet tapkit"]) {
    runInside(netns, `nft ${damage}`);
    assertMatch(firewall.check(two)[0]!, /table "inet tapkit" lacks the rule "/);
    assertEquals(firewall.add(one), true, damage);
    assertEquals(firewall.check(two), [], "the other guest's elements were kept");
    assertEquals(withoutHandles(listRuleset(netns)), withoutHandles(whole), damage);
  }

  runInside(netns, "nft flush ruleset");
  assertEquals(firewall.check(one)[0], 'the nftables table "inet tapkit" is missing');
  firewall.add(one);
  firewall.add(two);
  assertEquals(withoutHandles(listRuleset(netns)), withoutHandles(whole));
});

Deno.test("Firewall: a table of another layout is rebuilt, its guests kept", () => {
  using netns = newNetns();
  using firewall = openFirewall(netns);
  firewall.add(guest(1, ["8080:80"]));
  const old = runInside(netns, "nft list ruleset").replace(/layout [0-9a-f]{8}/, "layout 00000000");
  runInside(netns, `nft flush ruleset; nft -f - <<'END'\n${old}\nEND`);
  assertMatch(firewall.check(guest(1, ["8080:80"]))[0]!, /lacks the rule "published: .*layout/);
  firewall.add(guest(2, ["8081:80"]));
  assertEquals(firewall.check(guest(1, ["8080:80"])), []);
  assertEquals(firewall.check(guest(2, ["8081:80"])), []);
});

Deno.test("Firewall.add: a port of another owner is refused by name, and nothing is added", () => {
  using netns = newNetns();
  using firewall = openFirewall(netns);
  firewall.add(guest(1, ["8085:80"]));
  const before = listRuleset(netns);
  const error = assertThrows(
    () => firewall.add(guest(2, ["8080-8089:8080-8089"])),
    PortConflictError,
  );
  assertEquals([error.owner, error.hostPort, error.protocol], ["guest1/eth0", 8085, "tcp"]);
  assertEquals(listRuleset(netns), before);
});

Deno.test("Firewall.remove: passes over what has become another's", () => {
  using netns = newNetns();
  using firewall = openFirewall(netns);
  const gone = guest(1, ["8080:80"]);
  const heir = guest(1, ["8080:8000"], { owner: "heir/eth0" });
  firewall.add(heir);
  assertEquals(firewall.remove(gone), false);
  assertEquals(firewall.check(heir), []);
});

Deno.test("Firewall.replace: touches what differs and nothing else", () => {
  using netns = newNetns();
  using firewall = openFirewall(netns);
  const [old, wanted] = [guest(1, ["8080:80", "81:81"]), guest(1, ["8080:8000", "82:82", "81:81"])];
  firewall.add(old);
  assertEquals(firewall.replace(old, wanted), true);
  assertEquals(firewall.check(wanted), []);
  assertEquals(firewall.replace(old, wanted), false);
  firewall.replace(wanted, guest(1, []));
  assertEquals(nftElements(netns, "ports4"), "");
  assertEquals(firewall.check(guest(1, [])), []);
});

Deno.test("Firewall.listGuests: reads the rules back; removeOwner needs no more", () => {
  using netns = newNetns();
  using firewall = openFirewall(netns);
  const one = guest(1, ["0.0.0.0:8080:80", "192.0.2.1:53:53/udp", "[::]:81:81/sctp"]);
  const two = guest(2, [], { masquerade: false, addresses: ["172.18.0.3"] });
  firewall.add(one);
  firewall.add(two);
  const found = firewall.listGuests().sort((a, b) => a.owner < b.owner ? -1 : 1);
  assertEquals(
    found.map(({ ports: _, ...rest }) => rest),
    [one, two].map(({ ports: _, ...rest }) => rest),
  );
  const sorted = (rules: GuestRules) => rules.ports.map(formatPort).sort();
  assertEquals(sorted(found[0]!), sorted(one));
  assertEquals(firewall.removeOwner("guest1/eth0"), true);
  assertEquals(firewall.removeOwner("guest1/eth0"), false);
  assertEquals(firewall.listGuests().map(({ owner }) => owner), ["guest2/eth0"]);
});

Deno.test("Firewall.add: many at once make one table, and a port has one winner", async () => {
  using netns = newNetns();
  const processes = Array.from({ length: 8 }, (_, index) => {
    const changes = { owner: `vm${index}/eth0`, addresses: [`172.18.1.${index}`] };
    const own = guest(1, [`${9000 + index}:80`], changes);
    const contested = guest(1, ["8080:80"], changes);
    const script = `
      import { Firewall } from "${new URL("../../lib/firewall/firewall.ts", import.meta.url)}";
      using firewall = Firewall.open();
      firewall.add(${JSON.stringify(own)});
      try {
        firewall.add(${JSON.stringify(contested)});
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
  using firewall = openFirewall(netns);
  assertEquals(firewall.listGuests().length, 8);
  assertEquals(nftElements(netns, "ports4").split(",").length, 9);
  assertEquals(runInside(netns, "nft list chain inet tapkit prerouting").match(/jump/g)?.length, 1);
});

Deno.test("Firewall: ten thousand ports in one call are all there, and go again", () => {
  using netns = newNetns();
  using firewall = openFirewall(netns);
  const rules = guest(1, ["20000-29999:20000-29999"], { addresses: ["172.18.0.2"] });
  firewall.add(rules);
  assertEquals(firewall.check(rules), []);
  assertEquals(nftElements(netns, "ports4").split(",").length, 10_000);
  firewall.remove(rules);
  assertEquals(firewall.removeIfUnused(), true);
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

Deno.test("Firewall: libnftables is needed to make the table, and for nothing else", () => {
  using netns = newNetns();
  using firewall = openFirewall(netns);
  const module = new URL("../../lib/firewall/firewall.ts", import.meta.url);
  const [one, two] = [guest(1, ["8080:80"]), guest(2, ["8081:80"])].map((rules) =>
    JSON.stringify(rules)
  );
  const script = `
    import { Firewall } from "${module}";
    using firewall = Firewall.open();
    try {
      firewall.add(${two});
      console.log(firewall.check(${two}).length, firewall.remove(${two}), firewall.remove(${one}));
      console.log(firewall.removeIfUnused());
    } catch (error) {
      console.log(error.message, "/", error.mend);
    }`;
  const withoutLibrary = () =>
    runInside(
      netns,
      `library=$(ldconfig -p | sed -n 's/.*libnftables.so.1 .*=> //p' | head -n 1)
       exec unshare --mount sh -ec 'mount --bind /dev/null '$library'; exec "$@"' sh \
         ${Deno.execPath()} eval '${script}'`,
    );
  assertEquals(
    withoutLibrary(),
    "the library libnftables.so.1 cannot be opened / " +
      "install libnftables1 (Debian, Ubuntu) or nftables (Fedora, Arch, Alpine)\n",
  );
  firewall.add(guest(1, ["8080:80"]));
  assertEquals(withoutLibrary(), "0 true true\ntrue\n");
  assertEquals(listRuleset(netns), []);
});

Deno.test("ensureSysctls: sets what the rules need, once", () => {
  using netns = newNetns();
  runInside(netns, "ip link add ignite0 type bridge; ip link add uplink type veth peer name far");
  const rules = guest(1, ["8080:80"]);
  const uplink = "/proc/sys/net/ipv6/conf/uplink/accept_ra";
  withNetns(netns, () => {
    Deno.writeTextFileSync(uplink, "1");
    Deno.writeTextFileSync("/proc/sys/net/ipv6/conf/ignite0/accept_ra", "0");
    Deno.writeTextFileSync("/proc/sys/net/ipv4/ip_forward", "0");
    assertEquals(checkSysctls(rules), [
      "the sysctl net.ipv4.ip_forward=1 is not set",
      "the sysctl net.ipv4.conf.ignite0.route_localnet=1 is not set",
      "the sysctl net.ipv6.conf.all.forwarding=1 is not set",
    ]);
    const changes = ensureSysctls(rules);
    assertEquals(changes.filter((change) => !change.includes("accept_ra")), [
      "net.ipv4.ip_forward=1",
      "net.ipv4.conf.ignite0.route_localnet=1",
      "net.ipv6.conf.all.forwarding=1",
    ]);
    assertEquals(Deno.readTextFileSync(uplink).trim(), "2");
    assertEquals(ensureSysctls(rules), []);
    assertEquals(checkSysctls(rules), []);
  });
});

for (const bridgeNetfilter of [false, true]) {
  const suffix = `(bridge-nf-call-iptables=${bridgeNetfilter ? 1 : 0})`;

  Deno.test(`published ports: reached from everywhere they should be ${suffix}`, async (t) => {
    await using lan = await Topology.start({ bridgeNetfilter });
    using firewall = openFirewall(lan.host);
    const { host, machine, guest1, guest2 } = lan.peers;
    for (const peer of [guest1, guest2]) {
      await peer.serve("udp", 80, "::");
      await peer.serve("tcp", 80, "::");
    }
    addAll(
      lan.host,
      firewall,
      guest(1, ["8080:80", "8080:80/udp", "192.0.2.9:90:80", "127.0.0.1:91:80"]),
      guest(2, ["8081:80", "8081:80/udp", "192.0.2.1:90:80"]),
    );

    for (const protocol of ["tcp", "udp"] as const) {
      await t.step(`${protocol} from the LAN, the client's address kept`, async () => {
        for (
          const [address, client] of [
            ["192.0.2.1", "192.0.2.50"],
            ["192.0.2.9", "192.0.2.50"],
            ["2001:db8::1", "2001:db8::50"],
          ] as const
        ) {
          const one = await machine.ask(protocol, address, 8080);
          assertEquals([one.server, one.client], ["guest1", client]);
          const two = await machine.ask(protocol, address, 8081);
          assertEquals([two.server, two.client], ["guest2", client]);
        }
      });

      await t.step(`${protocol} from the host, by its addresses and 127.0.0.1`, async () => {
        for (
          const address of ["192.0.2.1", "172.18.0.1", "127.0.0.1", "127.0.0.2", "2001:db8::1"]
        ) {
          assertEquals((await host.ask(protocol, address, 8080)).server, "guest1", address);
        }
      });

      await t.step(`${protocol} from the guest itself and from its neighbour`, async () => {
        for (const address of ["192.0.2.1", "172.18.0.1", "2001:db8::1"]) {
          assertEquals((await guest1.ask(protocol, address, 8080)).server, "guest1", address);
          assertEquals((await guest2.ask(protocol, address, 8080)).server, "guest1", address);
          assertEquals((await guest2.ask(protocol, address, 8081)).server, "guest2", address);
        }
      });
    }

    await t.step("the guests reach each other under their own addresses", async () => {
      assertEquals((await guest1.ask("tcp", "172.18.0.3", 80)).client, "172.18.0.2");
      assertEquals((await guest1.ask("tcp", "fd00:18::3", 80)).client, "fd00:18::2");
    });

    await t.step("a guest reaches the LAN under the host's address", async () => {
      await machine.serve("tcp", 7000, "::");
      assertEquals((await guest1.ask("tcp", "192.0.2.50", 7000)).client, "192.0.2.1");
      assertEquals((await guest1.ask("tcp", "2001:db8::50", 7000)).client, "2001:db8::1");
    });

    await t.step("a host address listens there only, and each to its own guest", async () => {
      assertEquals((await machine.ask("tcp", "192.0.2.9", 90)).server, "guest1");
      assertEquals((await machine.ask("tcp", "192.0.2.1", 90)).server, "guest2");
      assertEquals(await machine.failToAsk("tcp", "2001:db8::1", 90), "ECONNREFUSED");
      assertEquals((await host.ask("tcp", "127.0.0.1", 91)).server, "guest1");
      assertEquals(await host.failToAsk("tcp", "192.0.2.1", 91), "ECONNREFUSED");
      assertEquals(await host.failToAsk("tcp", "::1", 8080), "ECONNREFUSED");
    });

    await t.step("one of two on a port goes, the other stays; then nothing is left", async () => {
      firewall.replace(guest(1, ["8080:80", "192.0.2.9:90:80"]), guest(1, ["8080:80"]));
      assertEquals(await machine.failToAsk("tcp", "192.0.2.9", 90), "ECONNREFUSED");
      assertEquals((await machine.ask("tcp", "192.0.2.1", 90)).server, "guest2");
      for (const rules of firewall.listGuests()) firewall.remove(rules);
      assertEquals(await machine.failToAsk("tcp", "192.0.2.1", 8080), "ECONNREFUSED");
      assertEquals(await host.failToAsk("tcp", "127.0.0.1", 8080), "ECONNREFUSED");
      assertEquals(firewall.removeIfUnused(), true);
      assertEquals(listRuleset(lan.host), []);
    });
  });

  Deno.test(`private guests and loopback: closed to LAN and guests ${suffix}`, async (t) => {
    await using lan = await Topology.start({ bridgeNetfilter });
    using firewall = openFirewall(lan.host);
    const { host, machine, guest1, guest2 } = lan.peers;
    await guest1.serve("tcp", 80, "::");
    await host.serve("tcp", 6000, "127.0.0.1");
    await host.serve("udp", 6000, "127.0.0.1");
    addAll(lan.host, firewall, guest(1, ["127.0.0.1:8080:80"]), guest(2, []));
    assertEquals((await host.ask("tcp", "127.0.0.1", 8080)).server, "guest1");

    await t.step("a machine that routes the guests' subnet at the host", async () => {
      runInside(
        lan.machine,
        `ip route add 172.18.0.0/16 via 192.0.2.1
         ip -6 route add fd00:18::/64 via 2001:db8::1`,
      );
      assertEquals(await machine.failToAsk("tcp", "172.18.0.2", 80), "timeout");
      assertEquals(await machine.failToAsk("tcp", "fd00:18::2", 80), "timeout");
    });

    await t.step("a machine or a guest that routes 127.0.0.0/8 at the host", async () => {
      runInside(lan.host, "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet");
      for (
        const [netns, via] of [[lan.machine, "192.0.2.1"], [lan.guest2, "172.18.0.1"]] as const
      ) {
        runInside(
          netns,
          `echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
           ip address del 127.0.0.1/8 dev lo
           ip rule add to 127.0.0.0/8 lookup 100 pref 0
           ip rule del pref 0 lookup local
           ip rule add lookup local pref 1
           ip route add 127.0.0.0/8 via ${via} table 100`,
        );
      }
      for (const peer of [machine, guest2]) {
        assertEquals(await peer.failToAsk("tcp", "127.0.0.1", 6000), "timeout");
        assertEquals(await peer.failToAsk("udp", "127.0.0.1", 6000), "timeout");
        assertEquals(await peer.failToAsk("tcp", "127.0.0.1", 8080), "timeout");
      }
      // The attack is real: without the table's guard it gets through.
      runInside(lan.host, "nft flush chain inet tapkit loopback");
      assertEquals((await machine.ask("tcp", "127.0.0.1", 6000)).server, "host");
      assertEquals((await guest2.ask("tcp", "127.0.0.1", 6000)).server, "host");
    });

    await t.step("a network that is not masqueraded is reached by whoever routes it", async () => {
      firewall.replace(guest(1, []), guest(1, [], { masquerade: false }));
      assertEquals((await machine.ask("tcp", "172.18.0.2", 80)).client, "192.0.2.50");
    });
  });

  Deno.test(`tracked connections: end with their port or guest, others live ${suffix}`, async (t) => {
    await using lan = await Topology.start({ bridgeNetfilter });
    using firewall = openFirewall(lan.host);
    const { host, machine, guest1, guest2 } = lan.peers;
    for (const peer of [guest1, guest2]) {
      await peer.serve("udp", 53);
      await peer.serve("tcp", 80);
    }
    await machine.serve("tcp", 5300);
    await machine.serve("udp", 5300);
    const one = guest(1, ["5300:53/udp", "8080:80", "8888:80"]);
    const two = guest(2, ["5300:53/udp", "5300:80"]);

    await t.step("udp: an old client's datagram reaches a port's new guest", async () => {
      withNetns(lan.host, () => ensureSysctls(one));
      // The client was there before the port.
      assertEquals(await machine.failToAsk("udp", "192.0.2.1", 5300, "early"), "timeout");
      addAll(lan.host, firewall, one, guest(2, []));
      assertEquals((await machine.ask("udp", "192.0.2.1", 5300, "early")).server, "guest1");
      assertEquals((await machine.ask("udp", "192.0.2.1", 5300, "old")).server, "guest1");
      assertEquals((await host.ask("udp", "127.0.0.1", 5300, "old")).server, "guest1");
      assertEquals((await guest2.ask("udp", "192.0.2.50", 5300, "out")).server, "machine");
      firewall.replace(one, guest(1, ["8080:80", "8888:80"]));
      addAll(lan.host, firewall, two);
      assertEquals((await machine.ask("udp", "192.0.2.1", 5300, "old")).server, "guest2");
      assertEquals((await host.ask("udp", "127.0.0.1", 5300, "old")).server, "guest2");
    });

    await t.step("tcp: a dropped port's connections end, the guest's others live", async () => {
      await machine.ask("tcp", "192.0.2.1", 8080, "stays");
      await machine.ask("tcp", "192.0.2.1", 8888, "ends");
      // To a port of the same number, but elsewhere.
      assertEquals((await guest1.ask("tcp", "192.0.2.50", 5300, "out")).server, "machine");
      firewall.replace(guest(1, ["8080:80", "8888:80"]), guest(1, ["8080:80"]));
      firewall.replace(two, guest(2, []));
      assertEquals((await machine.say("stays")).server, "guest1");
      assertEquals((await guest1.say("out")).server, "machine");
      assertMatch(await machine.failToSay("ends"), /timeout|ECONNRESET/);
    });

    await t.step("a repair ends no connection", async () => {
      // An acknowledgement that is still due would meet a host without rules, and a reset.
      await delay(150);
      runInside(lan.host, "nft flush ruleset");
      assertEquals(firewall.add(guest(1, ["8080:80"])), true);
      assertEquals((await machine.say("stays")).server, "guest1");
      assertEquals((await guest1.say("out")).server, "machine");
    });

    await t.step("a removed guest's connections end, in and out", async () => {
      firewall.remove(guest(1, ["8080:80"]));
      assertEquals(
        runInside(lan.host, "conntrack -L 2>/dev/null | grep -c 172.18.0.2 || true"),
        "0\n",
      );
      assertMatch(await machine.failToSay("stays"), /timeout|ECONNRESET/);
      assertMatch(await guest1.failToSay("out"), /timeout|ECONNRESET/);
    });
  });
}

Deno.test("published ports: strict reverse path filters are no obstacle", async () => {
  await using lan = await Topology.start({ bridgeNetfilter: true });
  runInside(lan.host, "for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 >$file; done");
  using firewall = openFirewall(lan.host);
  const { host, machine, guest1 } = lan.peers;
  await guest1.serve("tcp", 80);
  addAll(lan.host, firewall, guest(1, ["8080:80"]));
  for (
    const [peer, address] of [[machine, "192.0.2.1"], [host, "127.0.0.1"], [
      guest1,
      "192.0.2.1",
    ]] as const
  ) {
    assertEquals((await peer.ask("tcp", address, 8080)).server, "guest1");
  }
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
    const taken = [{ owner: "web", mappings: parsePorts([`192.0.2.9:${port + 1}:80`]) }];
    const [chosen] = chooseHostPorts(parsePorts(["0:80"]), taken);
    assertEquals(chosen!.hostPort, port + 2);
    assertThrows(() => chooseHostPorts(parsePorts(["0:80", "0:81"]), taken), Error, "no host port");
  });
});
