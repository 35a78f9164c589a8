/**
 * The firewall in both variants of iptables, with `iptables-save` as oracle; what it shares with
 * nftables is in tests/support/firewall-suite.ts.
 */

import { openFirewall } from "../../lib/firewall/open.ts";
import type { Netns } from "../../lib/sys/netns.ts";
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
