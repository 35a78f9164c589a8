/**
 * What a firewall that stays open remembers, and what others change in the meantime.
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { openFirewall } from "../../lib/firewall/open.ts";
import { parsePorts } from "../../lib/inet/ports.ts";
import { openNetfilter } from "../../lib/netlink/nfnetlink.ts";
import { NftMemory } from "../../lib/netlink/nftables/memory.ts";
import {
  commit,
  listTables,
  tableCreation,
  tableDeletion,
} from "../../lib/netlink/nftables/objects.ts";
import { NetlinkError } from "../../lib/netlink/errors.ts";
import { newNetns, withNetns } from "../../lib/sys/netns.ts";
import { Socket } from "../../lib/sys/socket.ts";
import { add, check, guest, remove } from "../support/firewall-suite.ts";
import { runInside } from "../support/topology.ts";

/** How many datagrams this process sends to the kernel meanwhile. */
function countSent(act: () => void): number {
  const { send } = Socket.prototype;
  let sent = 0;
  Socket.prototype.send = function (...args) {
    sent++;
    return send.apply(this, args);
  };
  try {
    act();
  } finally {
    Socket.prototype.send = send;
  }
  return sent;
}

const TABLE = { family: "inet", name: "one" };
const SUBJECT = { op: "nf_tables", action: "change", object: "a test" };

Deno.test("NftMemory: forgets with another's transaction, and not with its own", () => {
  using netns = newNetns();
  using nl = withNetns(netns, openNetfilter);
  const memory = new NftMemory(nl);
  let reads = 0;
  const tables = () => {
    memory.refresh();
    return memory.recall("tables", () => {
      reads++;
      return listTables(nl)!.map(({ name }) => name);
    });
  };
  assertEquals([tables(), tables(), reads], [[], [], 1]);

  memory.change([tableCreation(TABLE)], ["tables"], SUBJECT);
  assertEquals([tables(), tables(), reads], [["one"], ["one"], 2]);
  // It goes by what the caller says is concerned.
  memory.change([tableCreation({ family: "inet", name: "two" })], ["chains"], SUBJECT);
  assertEquals([tables(), reads], [["one"], 2]);

  commit(nl, [tableCreation({ family: "inet", name: "three" })], SUBJECT);
  assertEquals([tables(), reads], [["one", "two", "three"], 3]);
});

Deno.test("NftMemory.change: is refused where another transaction came first", () => {
  using netns = newNetns();
  using nl = withNetns(netns, openNetfilter);
  const memory = new NftMemory(nl);
  memory.refresh();
  memory.recall("tables", () => "as they were");
  commit(nl, [tableCreation(TABLE)], SUBJECT);
  const change = () => memory.change([tableDeletion(TABLE)], [], SUBJECT);
  assertEquals(assertThrows(change, NetlinkError).code, "ERESTART");
  assertEquals(memory.recall("tables", () => "as they are"), "as they are");
  change();
  assertEquals(listTables(nl), []);
});

Deno.test("Firewall.change: another guest costs as many requests, and others' changes are seen", async () => {
  using netns = newNetns();
  using firewall = await openFirewall({ netns });
  const [one, two] = [guest(1, ["8080:80"]), guest(2, ["8081:80"])];
  add(firewall, one);
  remove(firewall, one);
  // The generation, and the transaction.
  assertEquals(countSent(() => add(firewall, one)), 2);
  assertEquals(countSent(() => add(firewall, two)), 2);
  assertEquals([check(firewall, one), check(firewall, two)], [[], []]);

  runInside(
    netns,
    "nft delete rule inet tapkit forward handle $(nft -a list chain inet tapkit forward | sed -n 's/.*handle \\([0-9]*\\)$/\\1/p' | tail -n 1)",
  );
  remove(firewall, two);
  add(firewall, two);
  assertEquals([check(firewall, one), check(firewall, two)], [[], []], "the rule is back");

  runInside(netns, "nft flush ruleset");
  add(firewall, two);
  assertEquals(check(firewall, two), []);

  runInside(
    netns,
    "nft 'table inet f { chain c { type filter hook forward priority 0; policy drop; }; }'",
  );
  assertEquals(firewall.dropsForwarded(), true);
  add(firewall, one);
  assert(runInside(netns, "nft list chain inet f c").includes("guest1/eth0"));
  runInside(netns, "nft delete table inet f");
  assertEquals(firewall.dropsForwarded(), false);
});

Deno.test("Firewall.mappedPorts: ports that others map later are seen by one that is open", async () => {
  using netns = newNetns();
  using firewall = await openFirewall({ netns });
  const wanted = parsePorts(["8080:80"]);
  const owners = async () => (await firewall.mappedPorts()).of(wanted).map(({ by }) => by ?? "us");
  assertEquals(await owners(), []);
  add(firewall, guest(1, ["8080:80"]));
  assertEquals([...new Set(await owners())], ["us"]);
  remove(firewall, guest(1, ["8080:80"]));

  const nat =
    "chain c { type nat hook prerouting priority -100; tcp dport 8080 dnat to 10.0.0.2; }";
  runInside(netns, `nft 'table ip other { ${nat}; }'`);
  assertEquals(await owners(), ['chain c of nftables table "ip other"']);
  runInside(netns, "nft delete table ip other");
  assertEquals(await owners(), []);

  const rule = "PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 10.0.0.3";
  for (const [tool, by] of [["iptables-nft", "nft"], ["iptables-legacy", "legacy"]] as const) {
    runInside(netns, `${tool} -t nat -A ${rule}`);
    assertEquals(await owners(), [`chain PREROUTING of iptables-${by}`], tool);
    runInside(netns, `${tool} -t nat -D ${rule}`);
    assertEquals(await owners(), [], tool);
  }
});
