/** VMs beside firewalld, on a message bus of its own. */

import { testCoexistence } from "../support/coexist.ts";
import { Host } from "../support/host.ts";

Deno.test("attach-vm: firewalld running", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await host.sh("mkdir -p /run/dbus; dbus-uuidgen --ensure");
  await using _bus = host.spawn("dbus-daemon", ["--system", "--nofork", "--nopidfile"]);
  await host.sh(
    "for i in $(seq 50); do [ -S /run/dbus/system_bus_socket ] && break; sleep 0.1; done",
  );
  await using _firewalld = host.spawn("firewalld", ["--nofork", "--nopid"]);
  await host.sh("for i in $(seq 150); do firewall-cmd --state && break; sleep 0.2; done");
  await testCoexistence(host, peer, {
    list: (host) => host.sh("nft -s list ruleset"),
    denies: "firewalld",
    reload: "firewall-cmd --reload",
    problem: /"inet firewalld filter_FORWARD" lacks the rule "web\/eth0 out 172.18.0.2"/,
  });
});
