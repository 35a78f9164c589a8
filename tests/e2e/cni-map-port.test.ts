/**
 * map-port to a VM on a network whose plugins are executed, where another firewall drops what is
 * forwarded.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { REFERENCE_BRIDGE, referenceNetwork, requireReference } from "../support/cni-reference.ts";
import { LIST_IPTABLES } from "../support/coexist.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";

requireReference();

Deno.test("map-port: is let pass on a network of executed plugins, also after --restore", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const bridge = { ...REFERENCE_BRIDGE, ipMasq: false, hairpinMode: true };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", referenceNetwork([bridge]));
  await host.sh(
    "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -I FORWARD -j DOCKER-USER",
  );
  const before = await host.sh(LIST_IPTABLES);
  const { json: [web] } = await host.mustTapkit("attach-vm", "web");
  await host.mustTapkit("map-port", "web", "9000:80");
  for (let round = 0; round < 2; round++) {
    const { json: [record] } = await host.mustTapkit("attach-vm", "--list");
    assertEquals(record.interfaces, web.interfaces);
    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    await guest.serveHttp(80, "page");
    for (
      const [from, url] of [[peer, "192.0.2.1"], [guest, "192.0.2.1"], [host, "127.0.0.1"]] as const
    ) {
      const { body } = await from.fetch(`http://${url}:9000/`);
      assertEquals(body, "page", `${url} in round ${round}`);
    }
    const check = await host.tapkit("attach-vm", "web", "--check");
    assertEquals(check.json, [{ vm: "web", problems: [] }]);
    await host.must("ip", ["netns", "delete", "tapkit-web"]);
    await host.mustTapkit("attach-vm", "--restore");
  }
  await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals(await host.sh(LIST_IPTABLES), before);
});
