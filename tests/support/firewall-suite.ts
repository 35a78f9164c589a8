/**
 * What every backend of the firewall has to do, with real packets between a host, its guests and
 * a machine of its LAN.
 */

import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { sentence } from "../../lib/finding.ts";
import type { Firewall } from "../../lib/firewall/firewall.ts";
import type { GuestRules } from "../../lib/firewall/model.ts";
import {
  findPortConflict,
  formatPort,
  parsePorts,
  PortConflictError,
} from "../../lib/inet/ports.ts";
import { type Netns, newNetns } from "../../lib/sys/netns.ts";
import { eventually } from "./machine.ts";
import { ensureInside } from "./settings.ts";
import { runInside, Topology } from "./topology.ts";

/** A backend under test. Commands are for a shell in the host's network namespace. */
export interface Backend {
  readonly name: string;
  readonly open: (netns: Netns) => Promise<Firewall>;
  /** All that it has in a namespace, comparable. */
  readonly list: (netns: Netns) => unknown;
  /** Takes the loopback guard away. */
  readonly dropGuard: string;
  /** Takes the mapping of a TCP port of guest 1 away. */
  readonly dropPort: (port: number) => string;
  /** Takes all rules away, as a person would. */
  readonly flush: string;
  /** Commands that damage what all guests share, or the rules of guest 1. */
  readonly damages: readonly string[];
}

/** The rules of a guest of the {@linkcode Topology}. */
export function guest(
  number: 1 | 2,
  ports: string[],
  changes: Partial<GuestRules> = {},
): GuestRules {
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

/** Adds a guest's rules. */
export function add(firewall: Firewall, rules: GuestRules): boolean {
  return firewall.change(rules.owner, undefined, rules);
}

/** Replaces a guest's rules. */
export function replace(firewall: Firewall, old: GuestRules, wanted: GuestRules): boolean {
  return firewall.change(wanted.owner, old, wanted);
}

/** Removes a guest's rules. */
export function remove(firewall: Firewall, rules: GuestRules): boolean {
  return firewall.change(rules.owner, rules, undefined);
}

/** What of a guest's rules is not as it should be, in sentences. */
export function check(firewall: Firewall, rules: GuestRules): string[] {
  return firewall.differences(rules).map(sentence);
}

function addAll(host: Netns, firewall: Firewall, ...guests: GuestRules[]): void {
  for (const rules of guests) {
    ensureInside(host, rules);
    add(firewall, rules);
    assertEquals(check(firewall, rules), []);
  }
}

/** Registers the tests of one backend. */
export function testBackend(backend: Backend): void {
  Deno.test(`Firewall.change: add, compare, remove, remove again, and nothing is left (${backend.name})`, async () => {
    using netns = newNetns();
    using firewall = await backend.open(netns);
    const before = backend.list(netns);
    const rules = guest(1, [
      "8080:80",
      "127.0.0.1:53:53/udp",
      "[2001:db8::1]:9000-9001:90-91/sctp",
    ]);
    assertMatch(check(firewall, rules)[0]!, / missing/);
    assertEquals((await firewall.mappedPorts()).of(rules.ports), []);
    assertEquals(add(firewall, rules), true);
    assertEquals(check(firewall, rules), []);
    assertEquals(add(firewall, rules), false, "a second add changes nothing");
    const wanted = parsePorts(["0.0.0.0:53:1/udp"]);
    assertEquals(
      findPortConflict(wanted, (await firewall.mappedPorts()).of(wanted))?.owner,
      "guest1/eth0",
    );
    assertEquals(firewall.removeIfUnused(), false);
    assertEquals(remove(firewall, rules), true);
    assertEquals(remove(firewall, rules), false, "a second remove finds nothing");
    assertEquals(firewall.removeIfUnused(), true);
    assertEquals(firewall.removeIfUnused(), false);
    assertEquals(remove(firewall, rules), false);
    assertEquals(backend.list(netns), before);
  });

  Deno.test(`Firewall.differences: name what was taken away, add brings it back (${backend.name})`, async () => {
    using netns = newNetns();
    using firewall = await backend.open(netns);
    const [one, two] = [guest(1, ["8080:80"]), guest(2, ["8081:80", "53:53/udp"])];
    add(firewall, one);
    add(firewall, two);
    for (const damage of backend.damages) {
      runInside(netns, damage);
      assertEquals(check(firewall, one).length > 0, true, damage);
      assertEquals(add(firewall, one), true, damage);
      assertEquals(check(firewall, one), [], damage);
      add(firewall, two);
      assertEquals(check(firewall, two), [], damage);
    }
  });

  Deno.test(`Firewall.change: a port of another owner is refused by name, and nothing is added (${backend.name})`, async () => {
    using netns = newNetns();
    using firewall = await backend.open(netns);
    add(firewall, guest(1, ["8085:80"]));
    const before = backend.list(netns);
    const error = assertThrows(
      () => add(firewall, guest(2, ["8080-8089:8080-8089"])),
      PortConflictError,
    );
    assertEquals([error.owner, error.hostPort, error.protocol], ["guest1/eth0", 8085, "tcp"]);
    assertEquals(backend.list(netns), before);
  });

  Deno.test(`Firewall.change: passes over what has become another's (${backend.name})`, async () => {
    using netns = newNetns();
    using firewall = await backend.open(netns);
    const gone = guest(1, ["8080:80"]);
    const heir = guest(1, ["8080:8000"], { owner: "heir/eth0" });
    add(firewall, heir);
    assertEquals(remove(firewall, gone), false);
    assertEquals(check(firewall, heir), []);
  });

  Deno.test(`Firewall.change: touches what differs and nothing else (${backend.name})`, async () => {
    using netns = newNetns();
    using firewall = await backend.open(netns);
    const [old, wanted] = [
      guest(1, ["8080:80", "81:81"]),
      guest(1, ["8080:8000", "82:82", "81:81"]),
    ];
    add(firewall, old);
    assertEquals(replace(firewall, old, wanted), true);
    assertEquals(check(firewall, wanted), []);
    assertEquals(replace(firewall, old, wanted), false);
    replace(firewall, wanted, guest(1, []));
    assertEquals(firewall.listGuests().flatMap(({ ports }) => ports), []);
    assertEquals(check(firewall, guest(1, [])), []);
  });

  Deno.test(`Firewall.listGuests: reads the rules back; change needs no more than an owner (${backend.name})`, async () => {
    using netns = newNetns();
    using firewall = await backend.open(netns);
    const one = guest(1, ["0.0.0.0:8080:80", "192.0.2.1:53:53/udp", "[::]:81:81/sctp"]);
    const two = guest(2, [], { masquerade: false, addresses: ["172.18.0.3"] });
    const relayed: GuestRules = {
      ...guest(2, ["9090:80"], { addresses: ["192.0.2.7"], masquerade: false, link: "" }),
      owner: "to@192.0.2.7",
      relayed: true,
    };
    add(firewall, one);
    add(firewall, two);
    add(firewall, relayed);
    assertEquals(check(firewall, relayed), []);
    const found = firewall.listGuests().sort((a, b) => a.owner < b.owner ? -1 : 1);
    assertEquals(
      found.map(({ ports: _, ...rest }) => rest),
      [one, two, relayed].map(({ ports: _, ...rest }) => rest),
    );
    assertEquals(firewall.change(relayed.owner, relayed, { ...relayed, ports: [] }), true);
    assertEquals(firewall.change(relayed.owner, relayed, { ...relayed, ports: [] }), false);
    assertEquals(
      firewall.change(relayed.owner, "any", undefined),
      true,
      "what is left without ports",
    );
    assertEquals(remove(firewall, relayed), false);
    const sorted = (rules: GuestRules) => rules.ports.map(formatPort).sort();
    assertEquals(sorted(found[0]!), sorted(one));
    assertEquals(firewall.change("guest1/eth0", "any", undefined), true);
    assertEquals(firewall.change("guest1/eth0", "any", undefined), false);
    assertEquals(firewall.listGuests().map(({ owner }) => owner), ["guest2/eth0"]);
  });

  Deno.test(`Firewall.change: from what is not known to what is wanted (${backend.name})`, async () => {
    using netns = newNetns();
    using firewall = await backend.open(netns);
    const [old, wanted] = [guest(1, ["8080:80", "81:81"]), guest(1, ["81:81", "82:82"])];
    add(firewall, old);
    add(firewall, guest(2, ["90:90"]));
    const changed = { ...wanted, addresses: ["172.18.0.9"] };
    assertEquals(firewall.change(old.owner, "any", changed), true);
    assertEquals(check(firewall, changed), []);
    assertEquals(firewall.change(old.owner, "any", changed), false);
    const found = firewall.listGuests().find(({ owner }) => owner === old.owner);
    assertEquals(found?.addresses, ["172.18.0.9"]);
    assertEquals(found?.ports.map(({ hostPort }) => hostPort).sort(), [81, 82]);
    assertEquals(check(firewall, guest(2, ["90:90"])), [], "another's rules are as they were");
  });

  for (const bridgeNetfilter of [false, true]) {
    const suffix = `(${backend.name}, bridge-nf-call-iptables=${bridgeNetfilter ? 1 : 0})`;

    Deno.test(`published ports: reached from everywhere they should be ${suffix}`, async (t) => {
      await using lan = await Topology.start({ bridgeNetfilter });
      using firewall = await backend.open(lan.host);
      const before = backend.list(lan.host);
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
        replace(firewall, guest(1, ["8080:80", "192.0.2.9:90:80"]), guest(1, ["8080:80"]));
        assertEquals(await machine.failToAsk("tcp", "192.0.2.9", 90), "ECONNREFUSED");
        assertEquals((await machine.ask("tcp", "192.0.2.1", 90)).server, "guest2");
        for (const rules of firewall.listGuests()) remove(firewall, rules);
        assertEquals(await machine.failToAsk("tcp", "192.0.2.1", 8080), "ECONNREFUSED");
        assertEquals(await host.failToAsk("tcp", "127.0.0.1", 8080), "ECONNREFUSED");
        assertEquals(firewall.removeIfUnused(), true);
        assertEquals(backend.list(lan.host), before);
      });
    });

    Deno.test(`private guests and loopback: closed to LAN and guests ${suffix}`, async (t) => {
      await using lan = await Topology.start({ bridgeNetfilter });
      using firewall = await backend.open(lan.host);
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
        // The attack is real: without the table's guard it gets through, but for the link that was
        // opened by way of a port, whose filter stays.
        runInside(lan.host, backend.dropGuard);
        assertEquals((await machine.ask("tcp", "127.0.0.1", 6000)).server, "host");
        assertEquals(await guest2.failToAsk("tcp", "127.0.0.1", 6000), "timeout");
        runInside(lan.host, "tc qdisc delete dev ignite0 clsact");
        assertEquals((await guest2.ask("tcp", "127.0.0.1", 6000)).server, "host");
      });

      await t.step(
        "a network that is not masqueraded is reached by whoever routes it",
        async () => {
          replace(firewall, guest(1, []), guest(1, [], { masquerade: false }));
          assertEquals((await machine.ask("tcp", "172.18.0.2", 80)).client, "192.0.2.50");
        },
      );
    });

    Deno.test(`tracked connections: end with their port or guest, others live ${suffix}`, async (t) => {
      await using lan = await Topology.start({ bridgeNetfilter });
      using firewall = await backend.open(lan.host);
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
        ensureInside(lan.host, one);
        // The client was there before the port.
        assertEquals(await machine.failToAsk("udp", "192.0.2.1", 5300, "early"), "timeout");
        addAll(lan.host, firewall, one, guest(2, []));
        assertEquals((await machine.ask("udp", "192.0.2.1", 5300, "early")).server, "guest1");
        assertEquals((await machine.ask("udp", "192.0.2.1", 5300, "old")).server, "guest1");
        assertEquals((await host.ask("udp", "127.0.0.1", 5300, "old")).server, "guest1");
        assertEquals((await guest2.ask("udp", "192.0.2.50", 5300, "out")).server, "machine");
        replace(firewall, one, guest(1, ["8080:80", "8888:80"]));
        addAll(lan.host, firewall, two);
        assertEquals((await machine.ask("udp", "192.0.2.1", 5300, "old")).server, "guest2");
        assertEquals((await host.ask("udp", "127.0.0.1", 5300, "old")).server, "guest2");
      });

      await t.step("tcp: a dropped port's connections end, the guest's others live", async () => {
        await machine.ask("tcp", "192.0.2.1", 8080, "stays");
        await machine.ask("tcp", "192.0.2.1", 8888, "ends");
        // To a port of the same number, but elsewhere.
        assertEquals((await guest1.ask("tcp", "192.0.2.50", 5300, "out")).server, "machine");
        replace(firewall, guest(1, ["8080:80", "8888:80"]), guest(1, ["8080:80"]));
        replace(firewall, two, guest(2, []));
        assertEquals((await machine.say("stays")).server, "guest1");
        assertEquals((await guest1.say("out")).server, "machine");
        assertMatch(await machine.failToSay("ends"), /timeout|ECONNRESET/);
      });

      await t.step("a removal that was cut off ends them when it is made again", async () => {
        replace(firewall, guest(1, ["8080:80"]), guest(1, ["8080:80", "8888:80"]));
        await machine.ask("tcp", "192.0.2.1", 8888, "cut off");
        runInside(lan.host, backend.dropPort(8888));
        assertEquals((await machine.say("cut off")).server, "guest1");
        replace(firewall, guest(1, ["8080:80", "8888:80"]), guest(1, ["8080:80"]));
        // How it fails depends on whether an acknowledgement was still due.
        await machine.failToSay("cut off");
        assertEquals((await machine.say("stays")).server, "guest1");
      });

      await t.step("a repair ends no connection", async () => {
        // An acknowledgement that is still due would meet a host without rules, and a reset.
        await eventually(5000, "all is acknowledged", () => {
          const ends = [lan.machine, lan.guest1].map((netns) => runInside(netns, "ss -tinH"));
          return !ends.join("").includes("unacked:");
        });
        runInside(lan.host, backend.flush);
        assertEquals(add(firewall, guest(1, ["8080:80"])), true);
        assertEquals((await machine.say("stays")).server, "guest1");
        assertEquals((await guest1.say("out")).server, "machine");
      });

      await t.step("a removed guest's connections end, in and out", async () => {
        remove(firewall, guest(1, ["8080:80"]));
        assertEquals(
          runInside(lan.host, "conntrack -L 2>/dev/null | grep -c 172.18.0.2 || true"),
          "0\n",
        );
        assertMatch(await machine.failToSay("stays"), /timeout|ECONNRESET/);
        assertMatch(await guest1.failToSay("out"), /timeout|ECONNRESET/);
      });
    });
  }

  Deno.test(`published ports: strict reverse path filters do not count (${backend.name})`, async () => {
    await using lan = await Topology.start({ bridgeNetfilter: true });
    runInside(lan.host, "for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 >$file; done");
    using firewall = await backend.open(lan.host);
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
}
