/** VMs beside Docker's engine, whose policy is to drop what is forwarded. */

import { assertEquals, assertMatch } from "@std/assert";
import { LIST_IPTABLES, testCoexistence } from "../support/coexist.ts";
import { DockerEngine } from "../support/docker.ts";
import { Host } from "../support/host.ts";
import { fetchName } from "../support/http.ts";
import { eventually } from "../support/machine.ts";

for (const variant of ["nft", "legacy"] as const) {
  Deno.test(`attach-vm: Docker's engine running on iptables-${variant}`, async () => {
    await using host = await Host.create();
    const peer = await host.addLan();
    await using docker = await DockerEngine.start(host, variant);
    await docker.serve("container", 9090);
    await eventually(10_000, "the container answers", async () => {
      return await fetchName(peer, "192.0.2.1", 9090) === "container";
    });
    await testCoexistence(host, peer, {
      list: (host) => host.sh(LIST_IPTABLES),
      reload: `iptables-${variant} -F DOCKER-USER; iptables-${variant} -A DOCKER-USER -j RETURN`,
      problem: /drops what is forwarded, and lacks a jump to TAPKIT-ACCEPT/,
      meanwhile: async (host, peer) => {
        assertMatch(
          await host.sh(`iptables-${variant} -S DOCKER-USER`),
          /^-A DOCKER-USER .*TAPKIT-ACCEPT$/m,
        );
        assertEquals(await fetchName(peer, "192.0.2.1", 9090), "container");
        const out = await host.must("docker", [
          ...["exec", "container", "/bin/busybox", "nc", "-w", "2", "192.0.2.2", "8000", "-e"],
          ...["/bin/busybox", "true"],
        ]);
        assertEquals(out, "");
      },
    });
    assertEquals(await fetchName(peer, "192.0.2.1", 9090), "container");
  });
}
