/**
 * Connections that are looked for once for many guests.
 */

import { assertEquals } from "@std/assert";
import { openFirewall } from "../../lib/firewall/open.ts";
import type { GuestRules } from "../../lib/firewall/model.ts";
import { parsePorts } from "../../lib/inet/ports.ts";
import { add, remove } from "../support/firewall-suite.ts";
import { ensureInside } from "../support/settings.ts";
import { Topology } from "../support/topology.ts";

const guest = (number: number, ports: readonly string[]): GuestRules => ({
  owner: `vm${number}/eth0`,
  link: "ignite0",
  addresses: [`172.18.0.${number + 1}`],
  masquerade: true,
  forward: true,
  ports: parsePorts(ports),
});

Deno.test("StaleFlows.putOff: an old client reaches the new guest after so many, at the end, or after a crash", async (t) => {
  await using lan = await Topology.start({ bridgeNetfilter: true });
  const open = () => openFirewall({ netns: lan.host });
  const { machine, guest1 } = lan.peers;
  await guest1.serve("udp", 53);
  ensureInside(lan.host, guest(1, ["5300:53/udp"]));
  const ask = (client: string) => machine.ask("udp", "192.0.2.1", 5300, client);
  const fail = (client: string) => machine.failToAsk("udp", "192.0.2.1", 5300, client);
  const one = guest(1, ["5300:53/udp"]);
  // The kernel tracks nothing before there are rules.
  using first = await open();
  add(first, guest(3, []));

  await t.step("at the end", async () => {
    {
      using firewall = await open();
      firewall.flows.putOff(8);
      assertEquals(await fail("a"), "timeout");
      add(firewall, one);
      assertEquals(await fail("a"), "timeout");
    }
    assertEquals((await ask("a")).server, "guest1");
    using firewall = await open();
    remove(firewall, one);
  });

  await t.step("after so many, and before anything is removed", async () => {
    using firewall = await open();
    firewall.flows.putOff(2);
    assertEquals(await fail("b"), "timeout");
    add(firewall, one);
    add(firewall, guest(2, ["9000:90"]));
    assertEquals((await ask("b")).server, "guest1");
    remove(firewall, one);
    assertEquals(await fail("b"), "timeout");
    add(firewall, one);
    remove(firewall, guest(2, ["9000:90"]));
    assertEquals((await ask("b")).server, "guest1");
    remove(firewall, one);
  });

  await t.step("after a crash, by attaching again", async () => {
    const killed = await open();
    killed.flows.putOff(8);
    assertEquals(await fail("c"), "timeout");
    add(killed, one);
    using firewall = await open();
    firewall.endStaleFlows(one);
    assertEquals((await ask("c")).server, "guest1");
    remove(firewall, one);
    killed[Symbol.dispose]();
  });
});
