/**
 * The firewall in both variants of iptables, with `iptables-save` as oracle; what it shares with
 * nftables is in tests/support/firewall-suite.ts.
 */

import { assertEquals } from "@std/assert";
import { openFirewall, usualKind } from "../../lib/firewall/open.ts";
import { type Netns, newNetns } from "../../lib/sys/netns.ts";
import { testBackend } from "../support/firewall-suite.ts";
import { runInside } from "../support/topology.ts";

for (const variant of ["nft", "legacy"] as const) {
  /** Rules and chains of both families; empty tables and the kernel's own chains come and stay. */
  const list = (netns: Netns) =>
    runInside(netns, `iptables-${variant}-save; ip6tables-${variant}-save`)
      .split("\n").filter((line) => line.startsWith("-A") || /^:\S+ - /.test(line));
  const flush = ["iptables", "ip6tables"].flatMap((program) =>
    ["filter", "nat", "raw"].map((table) => `${program}-${variant} -t ${table} -F`)
  ).join("\n");

  testBackend({
    name: `iptables-${variant}`,
    open: (netns) => {
      // A variant that was used is the one that is used.
      runInside(netns, `iptables-${variant} -t nat -S`);
      return openFirewall({ kind: "iptables", netns });
    },
    list,
    dropGuard: `iptables-${variant} -t raw -F TAPKIT-LOOPBACK`,
    dropPort: (port) =>
      `iptables-${variant} -t nat -D TAPKIT-PORTS -p tcp --dport ${port} ` +
      "-m comment --comment guest1/eth0 -j DNAT --to-destination 172.18.0.2:80",
    flush,
    damages: [
      `iptables-${variant} -t nat -F TAPKIT-PORTS`,
      `iptables-${variant} -D TAPKIT-FORWARD -d 172.18.0.2 -m comment --comment guest1/eth0 -j DROP`,
      `ip6tables-${variant} -t nat -F`,
      `iptables-${variant} -F FORWARD`,
      flush,
    ],
  });
}

Deno.test("openFirewall: nftables by itself, iptables where the kernel has no nf_tables", async () => {
  using netns = newNetns();
  using firewall = await openFirewall({ netns });
  assertEquals(firewall.kind, "nftables");
  // What listTables gives of such a kernel, which cannot be had here.
  assertEquals(await usualKind({ tables: undefined, legacy: [] }), "iptables");
  assertEquals(await usualKind({ tables: [], legacy: [] }), "nftables");
});
