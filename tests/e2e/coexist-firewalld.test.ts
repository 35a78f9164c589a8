/** VMs beside firewalld, on a message bus of its own. */

import { startFirewalld, testCoexistence } from "../support/coexist.ts";
import { Host } from "../support/host.ts";

Deno.test("attach-vm: firewalld running", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await startFirewalld(host);
  await testCoexistence(host, peer, {
    list: (host) => host.sh("nft -s list ruleset"),
    denies: "firewalld",
    reload: "firewall-cmd --reload",
    problem: /"inet firewalld filter_FORWARD" lacks the rule "web\/eth0 out 172.18.0.2"/,
  });
});
