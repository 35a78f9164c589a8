/**
 * Connections of removed guests: they are ended where a port or an address is given out again, and the
 * kernel's table is not walked before.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { endGoneFlows, GoneGuests } from "../../lib/firewall/gone-flows.ts";
import type { Firewall } from "../../lib/firewall/firewall.ts";
import { openFirewall } from "../../lib/firewall/open.ts";
import type { GuestRules } from "../../lib/firewall/model.ts";
import { parsePorts } from "../../lib/inet/ports.ts";
import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import { NETLINK } from "../../lib/netlink/message.ts";
import { withNetns } from "../../lib/sys/netns.ts";
import { add } from "../support/firewall-suite.ts";
import { ensureInside } from "../support/settings.ts";
import { runInside, Topology } from "../support/topology.ts";

const guest = (
  number: number,
  ports: readonly string[],
  more: Partial<GuestRules> = {},
): GuestRules => ({
  owner: `vm${number}/eth0`,
  link: "ignite0",
  addresses: [`172.18.0.${number + 1}`],
  masquerade: true,
  forward: true,
  ports: parsePorts(ports),
  ...more,
});

/** What is removed with its VM. */
function leave(firewall: Firewall, rules: GuestRules): void {
  firewall.change(rules.owner, rules, undefined, { leaves: true });
}

Deno.test("a removed guest's connections: left alone until a port or an address of it is given out again", async (t) => {
  await using lan = await Topology.start({ bridgeNetfilter: true });
  const runDirectory = await Deno.makeTempDir({ prefix: "tapkit-run-" });
  using stack = new DisposableStack();
  stack.defer(() => Deno.removeSync(runDirectory, { recursive: true }));
  using firewall = await openFirewall({ netns: lan.host, runDirectory });
  const { machine, guest1, guest2 } = lan.peers;
  for (const peer of [guest1, guest2]) {
    await peer.serve("udp", 53);
    await peer.serve("tcp", 80);
  }
  await machine.serve("tcp", 5300);
  const gone = withNetns(lan.host, () => new GoneGuests(runDirectory));
  const tracked = (pattern: string) =>
    Number(runInside(lan.host, `conntrack -L 2>/dev/null | grep -c '${pattern}' || true`));
  const one = guest(1, ["5300:53/udp", "8080:80"]);
  ensureInside(lan.host, one);
  add(firewall, guest(3, []));

  await t.step(
    "tcp and udp: a port that another guest gets leads its old clients there",
    async () => {
      add(firewall, one);
      assertEquals((await machine.ask("udp", "192.0.2.1", 5300, "old")).server, "guest1");
      assertEquals((await machine.ask("tcp", "192.0.2.1", 8080, "open")).server, "guest1");
      leave(firewall, one);
      assertEquals(gone.read().map(({ addresses }) => addresses), [["172.18.0.2"]]);
      assertEquals(tracked("172.18.0.2") > 0, true, "nothing was looked for");
      add(firewall, guest(2, ["5300:53/udp"]));
      assertEquals((await machine.ask("udp", "192.0.2.1", 5300, "old")).server, "guest2");
      assertEquals(tracked("dport=8080 .*172.18.0.2"), 0, "by one walk, all ports' connections");
      assertMatch(await machine.failToSay("open"), /timeout|ECONNRESET/);
      add(firewall, guest(2, ["5300:53/udp", "8080:80"]));
      assertEquals((await machine.ask("tcp", "192.0.2.1", 8080)).server, "guest2");
    },
  );
  await t.step("an address that another VM gets has none of the old connections", async () => {
    const before = guest(1, []);
    add(firewall, before);
    assertEquals((await guest1.ask("tcp", "192.0.2.50", 5300, "out")).server, "machine");
    leave(firewall, before);
    assertEquals(tracked("src=172.18.0.2") > 0, true);
    add(firewall, { ...guest(4, []), addresses: before.addresses });
    assertEquals(tracked("src=172.18.0.2"), 0);
    leave(firewall, { ...guest(4, []), addresses: before.addresses });
  });
  await t.step("a VM that was removed and attached again begins anew", async () => {
    const again = guest(1, ["9090:80"]);
    add(firewall, again);
    await machine.ask("tcp", "192.0.2.1", 9090, "before");
    leave(firewall, again);
    add(firewall, again);
    assertEquals(tracked("dport=9090"), 0);
    assertEquals((await machine.ask("tcp", "192.0.2.1", 9090)).server, "guest1");
  });
  await t.step("connections of others, and of who has another port, live on", async () => {
    await machine.ask("tcp", "192.0.2.1", 8080, "lives");
    const again = guest(1, ["9090:80"]);
    leave(firewall, again);
    add(firewall, guest(5, ["9090:80"]));
    assertEquals((await machine.say("lives")).server, "guest2");
    leave(firewall, guest(5, ["9090:80"]));
  });
  await t.step("they are ended ahead, where a port is not given out meanwhile", async () => {
    using nl = withNetns(lan.host, () => NetlinkConnection.open(NETLINK.NETFILTER));
    const end = (meanwhile: () => void = () => {}) =>
      endGoneFlows(nl, gone, (act) => Promise.resolve((meanwhile(), act())));
    gone.write([]);
    const again = guest(1, ["9090:80", "9091:80"]);
    add(firewall, again);
    await machine.ask("tcp", "192.0.2.1", 9090, "first");
    leave(firewall, again);
    assertEquals(tracked("dport=9090") > 0, true);
    await end();
    assertEquals(tracked("dport=9090"), 0);
    assertEquals((await machine.say("lives")).server, "guest2");
    assertEquals(gone.read(), [{ ports: [], addresses: again.addresses }]);

    add(firewall, again);
    await machine.ask("tcp", "192.0.2.1", 9090, "second");
    leave(firewall, again);
    const opened: Promise<unknown>[] = [];
    await end(() => {
      add(firewall, again);
      opened.push(machine.ask("tcp", "192.0.2.1", 9090, "third"));
    });
    await Promise.all(opened);
    assertEquals((await machine.say("third")).server, "guest1");
    leave(firewall, again);
  });
  await t.step("a search that began before the port is given out again finds them", async () => {
    gone.write([]);
    const again = guest(1, ["9090:80"]);
    const next = guest(5, ["9090:80"]);
    /** A guest that comes, is connected to, and goes; what it left is searched for. */
    const comeAndGo = async (connection: string, searched: string) => {
      add(firewall, again);
      await machine.ask("tcp", "192.0.2.1", 9090, connection);
      leave(firewall, again);
      firewall.flows.searchAhead(parsePorts([searched]));
      await firewall.flows.searched();
    };
    await comeAndGo("fourth", "9090:80");
    // The same guest came and went meanwhile: what it left is looked for anew.
    await comeAndGo("fifth", "8080:80");
    add(firewall, next);
    assertEquals(tracked("dport=9090"), 0);
    leave(firewall, next);

    await comeAndGo("sixth", "9090:80");
    add(firewall, next);
    assertEquals(tracked("dport=9090"), 0);
    assertEquals((await machine.say("lives")).server, "guest2");
    leave(firewall, next);
  });
});
