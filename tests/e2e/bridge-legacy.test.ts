/**
 * bridge-legacy on a real Docker engine: the address is Docker's, the ports are published by Docker, and
 * the VM lives with the engine's and the container's ends.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { scriptWords } from "../support/bundle.ts";
import { DockerEngine, DOCKERS } from "../support/docker.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { fetchName, serveName } from "../support/http.ts";
import { eventually } from "../support/machine.ts";
import { QemuGuest } from "../support/qemu.ts";
import { reboot } from "../support/reboot.ts";

const HOST = "192.0.2.1";
const NOTICE = /docker-bridge is deprecated: .*: use --network-plugin cni/;

Deno.test("bridge-legacy: a guest has Docker's address, and is reached through Docker's port", async (t) => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await serveName(peer, 8000);
  await using _docker = await DockerEngine.start(host, "nft");
  const before = await host.snapshot();

  const { json: [record], stderr } = await host.mustTapkit(
    ...["bridge-legacy", "web", "--ports", "8080:80"] as const,
  );
  const inspected = async (format: string) =>
    (await host.must("docker", ["inspect", "--format", format, "tapkit-web"])).trim();
  await t.step("the record says what Docker says", async () => {
    assertMatch(stderr, NOTICE);
    assertEquals(stderr.match(/deprecated/g)?.length, 1);
    assertEquals(record.networkPlugin, "docker-bridge");
    const [eth0] = record.interfaces;
    const address = await inspected(
      "{{.NetworkSettings.IPAddress}}/{{.NetworkSettings.IPPrefixLen}}",
    );
    const gateway = await inspected("{{.NetworkSettings.Gateway}}");
    assertEquals(eth0.addresses, [{ address, gateway }]);
    assertEquals(eth0.network, "bridge");
    assertEquals(eth0.mac, await inspected("{{.NetworkSettings.MacAddress}}"));
    assertEquals(eth0.routes, [{ dst: "0.0.0.0/0", gw: gateway }]);
    assertEquals(record.ports, [
      { hostIP: "0.0.0.0", hostPort: 8080, vmPort: 80, protocol: "tcp" },
    ]);
    assertEquals(record.dns.nameservers, ["192.0.2.53"]);
    assertEquals(
      await inspected("{{json .HostConfig.PortBindings}}"),
      '{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}]}',
    );
  });

  await using guest = await NetnsGuest.start(host, record);
  const lease = await guest.dhcp();
  await serveName(guest);
  await t.step("the guest has it by DHCP, and reaches out and is reached", async () => {
    assertEquals(`${lease.ip}/16`, record.interfaces[0].addresses[0].address);
    assertEquals(await fetchName(guest, "192.0.2.2", 8000), "peer");
    assertEquals(await fetchName(peer, HOST, 8080), "web");
    assertEquals(await fetchName(host, "127.0.0.1", 8080), "web");
  });
  await t.step("attaching again changes nothing; --check finds nothing", async () => {
    const { done: [again] } = await host.mustTapkit("attach-vm", "web");
    assertEquals(again, { changes: [], tapReplaced: false });
    const { code, json } = await host.tapkit("bridge-legacy", "web", "--check");
    assertEquals([code, json], [0, [{ vm: "web", problems: [] }]]);
  });
  await t.step("map-port adds ports, by tapkit's firewall, and takes them back", async () => {
    const { json: [mapped] } = await host.mustTapkit("map-port", "web", "9090:80");
    assertEquals(mapped.ports.map(({ hostPort }: { hostPort: number }) => hostPort), [8080, 9090]);
    assertEquals(await fetchName(peer, HOST, 9090), "web");
    assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
    await host.mustTapkit("map-port", "web", "9090:80", "--remove");
    assertEquals(await fetchName(peer, HOST, 9090), "closed");
    assertEquals(await fetchName(peer, HOST, 8080), "web");
  });
  await t.step("a port of Docker's cannot be withdrawn; one of attach-vm's is added", async () => {
    const refused = await host.tapkit("map-port", "web", "8080:80", "--remove");
    assertEquals(refused.code, 1);
    assertMatch(refused.stderr, /Docker publishes host port 8080\/tcp as long .* --remove/);
    const { json: [more] } = await host.mustTapkit(
      ...["attach-vm", "web", "--ports", "8080:80", "--ports", "8081:80"] as const,
    );
    assertEquals(more.ports.length, 2);
    assertEquals(await fetchName(peer, HOST, 8081), "web");
    const taken = await host.tapkit("attach-vm", "other", "--ports", "8080:80");
    assertEquals(taken.code, 1);
    assertMatch(taken.stderr, /host port 8080\/tcp is already mapped to VM "web"/);
  });
  await t.step("the VM is on one network plugin", async () => {
    const refused = await host.tapkit("attach-vm", "web", "--network-plugin", "cni");
    assertEquals(refused.code, 1);
    assertMatch(refused.stderr, /network plugin cannot be changed while it is attached/);
  });
  await t.step("after removal all is as it was", async () => {
    const { json } = await host.mustTapkit("bridge-legacy", "web", "--remove");
    assertEquals(json, [{ vm: "web", removed: true }]);
    assertEquals(await host.must("docker", ["ps", "-aq"]), "");
    assertEquals(await fetchName(peer, HOST, 8080), "closed");
    await host.assertRestored(before, { except: DOCKERS });
  });
});

Deno.test("bridge-legacy: a real guest, its lease, its page for another machine, and the LAN for it", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await peer.serveHttp(8000, "from the LAN");
  await using _docker = await DockerEngine.start(host, "legacy");
  const { json: [record] } = await host.mustTapkit("bridge-legacy", "web", "--ports", "8080:80");
  await using guest = await QemuGuest.boot(host, record);
  const { ip, router, mtu, hostname } = guest.lease;
  assertEquals([`${ip}/16`, router, mtu, hostname], [
    record.interfaces[0].addresses[0].address,
    ["172.17.0.1"],
    "1500",
    "web",
  ]);
  assertEquals((await peer.fetch(`http://${HOST}:8080/`)).status, 200);
  assertEquals((await guest.fetch("http://192.0.2.2:8000/")).body, "from the LAN");
  await host.mustTapkit("bridge-legacy", "web", "--remove");
});

Deno.test("bridge-legacy: the container, the engine and the host end, and the VM comes back", async (t) => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await using docker = await DockerEngine.start(host, "nft");
  const before = await host.snapshot();
  await host.mustTapkit("bridge-legacy", "web", "--ports", "8080:80");

  /** The VM works: a guest has its address, and answers at its port. */
  const works = async () => {
    const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--list");
    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    await serveName(guest);
    assertEquals(await fetchName(peer, HOST, 8080), "web");
    const { code, json } = await host.tapkit("attach-vm", "web", "--check");
    assertEquals([code, json], [0, [{ vm: "web", problems: [] }]]);
  };
  const problems = async () => {
    const { code, json: [checked] } = await host.tapkit("attach-vm", "web", "--check");
    assertEquals(code, 3);
    return checked.problems.join("\n");
  };

  await t.step("a container that was killed", async () => {
    await host.must("docker", ["kill", "tapkit-web"]);
    assertMatch(await problems(), /container "tapkit-web" is not running/);
    const { done: [again] } = await host.mustTapkit("bridge-legacy", "web");
    assert(again!.tapReplaced);
    await works();
  });
  await t.step("a container that was removed", async () => {
    await host.must("docker", ["rm", "-f", "tapkit-web"]);
    assertMatch(await problems(), /container "tapkit-web" is missing/);
    await host.mustTapkit("attach-vm", "web");
    await works();
  });
  await t.step("a container that was started again by hand", async () => {
    await host.must("docker", ["restart", "tapkit-web"]);
    assertMatch(await problems(), /"tapkit-web" was started again, with another network namespace/);
    await host.mustTapkit("attach-vm", "web");
    await works();
  });
  await t.step("rules that were flushed: the engine's own have to come back first", async () => {
    await host.sh("nft flush ruleset");
    await host.must("docker", ["rm", "-f", "tapkit-web"]);
    const { code, stderr } = await host.tapkit("attach-vm", "web");
    assertEquals(code, 1);
    assertMatch(stderr, /somebody flushed Docker's rules: .*systemctl restart docker/);
    assertEquals(await host.must("docker", ["ps", "-aq"]), "");
    await docker.stop();
    await docker.resume();
    await host.mustTapkit("attach-vm", "web");
    await works();
  });
  await t.step(
    "an engine that was stopped: who asks is told; what is removed then goes later",
    async () => {
      await host.mustTapkit("bridge-legacy", "gone");
      await docker.stop();
      for (const verb of [[], ["--check"]]) {
        const { code, stderr } = await host.tapkit("attach-vm", "web", ...verb);
        assertEquals(code, 1);
        assertMatch(
          stderr,
          /Docker's engine does not answer at .*: start it: systemctl start docker/,
        );
      }
      const removed = await host.tapkit("attach-vm", "gone", "--remove");
      assertEquals(removed.code, 1);
      assertMatch(removed.stderr, /Docker's engine does not answer .* then run the command again/);
      await docker.resume();
      assertMatch(await host.must("docker", ["ps", "-a", "--format", "{{.Names}}"]), /tapkit-gone/);
      assertEquals((await host.mustTapkit("attach-vm", "--gc")).json, [{
        vm: "gone",
        removed: true,
      }]);
      assertEquals(
        (await host.must("docker", ["ps", "-a", "--format", "{{.Names}}"])).trim(),
        "tapkit-web",
      );
    },
  );
  await t.step("an engine that was started again", async () => {
    assertMatch(await problems(), /container "tapkit-web" is not running/);
    await host.mustTapkit("attach-vm", "--restore");
    await works();
  });
  await t.step("a reboot", async () => {
    await docker.stop();
    await reboot(host);
    await docker.resume();
    await host.mustTapkit("attach-vm", "--restore");
    await works();
  });
  await t.step("a record that was lost", async () => {
    await host.sh("rm /var/lib/tapkit/vms/web.json");
    assertEquals((await host.mustTapkit("attach-vm", "web", "--remove")).json, [
      { vm: "web", removed: true },
    ]);
    assertEquals(await host.must("docker", ["ps", "-aq"]), "");
    await host.assertRestored(before, { except: DOCKERS });
  });
});

Deno.test("bridge-legacy: killed while the engine makes the container: the next command waits for it", async () => {
  await using host = await Host.create();
  await host.addLan();
  await using _docker = await DockerEngine.start(host, "nft");
  // The engine's storage here copies an image for each container: this one takes a while.
  await host.sh(
    `head -c 300M /dev/zero >/run/image/ballast
     tar -C /run/image -c . | docker import --change 'CMD ["/bin/busybox","sleep","600"]' - heavy
     rm /run/image/ballast`,
  );
  const argv = [...scriptWords("bridge-legacy"), "web", "--image", "heavy"];
  const nexts = [["--remove"], ["--ports", "8080:80"]];
  for (
    const [next, delay] of nexts.flatMap((next) => [0, 0.1, 0.3].map((s) => [next, s] as const))
  ) {
    const child = host.spawn(Deno.execPath(), argv);
    await eventually(
      10_000,
      "docker was asked for the container",
      async () => (await host.run("pgrep", ["-f", "docker create --name tapkit-web"])).code === 0,
    );
    // Before the engine is asked, while it works, and when it may be done.
    await host.sh(`sleep ${delay}; pkill -KILL -f '[b]ridge-legacy.* --image'`);
    assertEquals((await child.status).signal, "SIGKILL");
    await host.mustTapkit("attach-vm", "web", ...next);
    if (next[0] !== "--remove") {
      await host.mustTapkit("attach-vm", "web", "--remove");
    }
    assertEquals(await host.must("docker", ["ps", "-aq"]), "");
    assertEquals((await host.mustTapkit("attach-vm", "--list")).json, []);
  }
});
