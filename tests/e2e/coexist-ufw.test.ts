/** VMs beside ufw, which denies what is forwarded unless it is allowed. */

import { assertEquals } from "@std/assert";
import { LIST_IPTABLES, testCoexistence } from "../support/coexist.ts";
import { Host } from "../support/host.ts";
import { fetchName } from "../support/http.ts";

Deno.test("attach-vm: ufw enabled", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await host.sh("ufw allow 22/tcp; ufw --force enable; iptables -t nat -S >/dev/null");
  await testCoexistence(host, peer, {
    list: (host) => host.sh(LIST_IPTABLES),
    denies: "ufw",
    reload:
      "iptables -D FORWARD -m comment --comment tapkit -j TAPKIT-ACCEPT; ufw --force disable; " +
      "ufw --force enable",
    problem: /iptables \(nft\) drops what is forwarded, and lacks a jump to TAPKIT-ACCEPT/,
    meanwhile: async (host, peer) => {
      await host.sh("ufw reload");
      assertEquals(await fetchName(peer, "192.0.2.1", 8080), "web", "survives ufw reload");
    },
  });
});
