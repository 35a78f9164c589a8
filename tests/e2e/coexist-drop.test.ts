/** VMs where the policy of what is forwarded was set to DROP by hand. */

import { Host } from "../support/host.ts";
import { LIST_IPTABLES, testCoexistence } from "../support/coexist.ts";

const listIptables = (host: Host) => host.sh(LIST_IPTABLES);

const CASES = [
  { variant: "nft", options: [] },
  { variant: "legacy", options: [] },
  { variant: "legacy", options: ["--firewall", "iptables"] },
];

for (const { variant, options } of CASES) {
  const [four, six] = [`iptables-${variant}`, `ip6tables-${variant}`];
  Deno.test(`${["attach-vm", ...options].join(" ")}: a DROP policy in iptables-${variant}`, async () => {
    await using host = await Host.create();
    const peer = await host.addLan();
    // Tables are made beforehand: they stay once they were looked at.
    await host.sh(
      `for program in ${four} ${six}; do
         for table in raw mangle nat; do $program -t $table -S >/dev/null; done
         $program -P FORWARD DROP
         $program -A FORWARD -p icmp -j ACCEPT
       done`,
    );
    await testCoexistence(host, peer, {
      list: listIptables,
      options,
      reload: `for program in ${four} ${six}; do
        $program -F; $program -A FORWARD -p icmp -j ACCEPT
      done`,
      problem: /drops what is forwarded, and lacks a jump to TAPKIT-ACCEPT/,
    });
  });
}

Deno.test("attach-vm: a chain of nftables with a DROP policy", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await host.sh(
    `nft -f - <<'END'
     table inet filter {
       chain forward {
         type filter hook forward priority filter; policy drop;
         meta l4proto icmp accept
       }
     }
END`,
  );
  await testCoexistence(host, peer, {
    list: (host) => host.sh("nft list ruleset"),
    reload: "nft flush chain inet filter forward; nft add rule inet filter forward " +
      "meta l4proto icmp accept",
    problem: /nftables chain "inet filter forward" lacks the rule "web\/eth0 out 172.18.0.2"/,
  });
});
