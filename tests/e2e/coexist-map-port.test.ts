/** Ports mapped to a running VM beside ufw. */

import { assertEquals, assertMatch } from "@std/assert";
import { LIST_IPTABLES } from "../support/coexist.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { fetchName, serveName } from "../support/http.ts";

Deno.test("map-port: under ufw a port stays closed until --open-firewall", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await host.sh("ufw --force enable; iptables -t nat -S >/dev/null");
  const before = await host.sh(LIST_IPTABLES);
  const { json: [record], stderr } = await host.mustTapkit("attach-vm", "web");
  assertEquals(/closed/.test(stderr), false, "without a port nothing is closed");
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await serveName(guest);

  const mapped = await host.mustTapkit("map-port", "web", "8080:80");
  assertMatch(mapped.stderr, /ufw keeps .* open them with attach-vm web --open-firewall/);
  assertEquals(await fetchName(peer, "192.0.2.1", 8080), "closed");
  const opened = await host.mustTapkit("map-port", "web", "8080:80", "--open-firewall");
  assertEquals([opened.stderr, opened.json], ["", mapped.json]);
  assertEquals(await fetchName(peer, "192.0.2.1", 8080), "web");
  // Attaching again keeps it.
  await host.mustTapkit("attach-vm", "web");
  assertEquals(await fetchName(peer, "192.0.2.1", 8080), "web");
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
  await host.mustTapkit("attach-vm", "web", "--remove");

  // A machine that is no guest is let answer, and is opened no way out.
  await host.mustTapkit("map-port", "--to", "192.0.2.2", "9000:8000", "--open-firewall");
  assertMatch(
    await host.sh("iptables -S TAPKIT-ACCEPT"),
    /^-A TAPKIT-ACCEPT -s 192.0.2.2\/32 -i eth-lan -m conntrack --ctstate RELATED,ESTABLISHED/m,
  );
  await host.mustTapkit("map-port", "--to", "192.0.2.2", "9000:8000", "--remove");
  assertEquals(await host.sh(LIST_IPTABLES), before);
});
