/** bridge-legacy: what is asked of Docker, and what it says where Docker cannot do it. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { scriptWords } from "../support/bundle.ts";
import { DockerEngine } from "../support/docker.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { fetchName, serveName } from "../support/http.ts";

const LAN = "2001:db8:1::1";

/** A directory with what docker is started by, and with what a test puts beside it. */
const FEW = "/run/few";

Deno.test("bridge-legacy: networks of one's own, IPv6, images, containers, a VMM", async (t) => {
  await using host = await Host.create();
  const peer = await host.addLan({
    addresses: ["192.0.2.1/24", `${LAN}/64`],
    peer: ["192.0.2.2/24", "2001:db8:1::2/64"],
  });
  await using _docker = await DockerEngine.start(host, "nft", ["--dns", "192.0.2.99"]);
  const before = await host.must("docker", ["ps", "-aq"]);
  await host.sh(
    `docker network create --subnet 10.5.0.0/24 --opt com.docker.network.driver.mtu=1400 backend
     docker network create --ipv6 --subnet 10.6.0.0/24 --subnet fd00:6::/64 dual`,
  );

  await t.step("--network, --ip, --mac; the MTU is the network's", async () => {
    const { json: [record] } = await host.mustTapkit(
      ...["attach-vm", "web", "--network-plugin", "docker-bridge", "--network", "backend"] as const,
      ...["--ip", "10.5.0.7", "--mac", "02:00:00:00:05:07"],
    );
    const [eth0] = record.interfaces;
    assertEquals([eth0.addresses, eth0.mac, eth0.mtu, eth0.network], [
      [{ address: "10.5.0.7/24", gateway: "10.5.0.1" }],
      "02:00:00:00:05:07",
      1400,
      "backend",
    ]);
    await using guest = await NetnsGuest.start(host, record);
    const lease = await guest.dhcp();
    assertEquals([lease.ip, lease.mtu], ["10.5.0.7", "1400"]);
    await serveName(guest);
    assertEquals(await fetchName(host, "10.5.0.7", 80), "web");
    await host.must("docker", ["kill", "tapkit-web"]);
    const { json: [again] } = await host.mustTapkit("attach-vm", "web");
    assertEquals(again.interfaces, record.interfaces);
    await host.mustTapkit("attach-vm", "web", "--remove");
  });
  await t.step("IPv6 where the network has it; ports of both families", async () => {
    const { json: [record] } = await host.mustTapkit(
      ...["bridge-legacy", "six", "--network", "dual", "--ports", "8080:80"] as const,
    );
    const [, six] = record.interfaces[0].addresses;
    assertMatch(six.address, /^fd00:6::\w+\/64$/);
    assertEquals(record.ports.map(({ hostIP }: { hostIP: string }) => hostIP), ["0.0.0.0", "::"]);
    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    await guest.sh(
      `ip -6 addr add ${six.address} dev eth0; ip -6 route add default via ${six.gateway}`,
    );
    await guest.settle();
    await serveName(guest);
    assertEquals(await fetchName(peer, "192.0.2.1", 8080), "six");
    assertEquals(await fetchName(peer, LAN, 8080), "six");
    assertEquals((await host.tapkit("attach-vm", "six", "--check")).code, 0);
    await host.mustTapkit("attach-vm", "six", "--remove");
  });
  await t.step(
    "--container: its interface is the VM's, and its own again after removal",
    async () => {
      await host.must("docker", [
        ...["run", "-d", "--name", "c1", "-p", "9000:80", "busybox", "/bin/busybox", "sh", "-c"],
        "/bin/busybox mkdir /www; echo c1 >/www/index.html; exec /bin/busybox httpd -f -h /www",
      ]);
      assertEquals(await fetchName(peer, "192.0.2.1", 9000), "c1");
      const { json: [record] } = await host.mustTapkit("bridge-legacy", "vm", "--container", "c1");
      await using guest = await NetnsGuest.start(host, record);
      await guest.dhcp();
      await serveName(guest);
      assertEquals(await fetchName(peer, "192.0.2.1", 9000), "vm");
      const second = await host.tapkit("bridge-legacy", "vm2", "--container", "c1");
      assertMatch(
        second.stderr,
        /container "c1" is the sandbox of VM "vm": name another container/,
      );
      await host.mustTapkit("attach-vm", "vm", "--remove");
      assertEquals(await fetchName(peer, "192.0.2.1", 9000), "c1");
      await host.must("docker", ["stop", "-t", "0", "c1"]);
      const stopped = await host.tapkit("bridge-legacy", "vm", "--container", "c1");
      assertMatch(stopped.stderr, /container "c1" is not running: run docker start c1 first/);
      await host.must("docker", ["rm", "c1"]);
    },
  );
  await t.step("-- VMM: the container goes with it", async () => {
    const { code, stdout } = await host.tapkit(
      ...["bridge-legacy", "vmm", "--ports", "8080:80", "--", "sh", "-c"] as const,
      "docker ps --format {{.Names}}; echo {ip}; exit 7",
    );
    assertEquals(code, 7);
    assertMatch(stdout, /^tapkit-vmm\n172\.17\.0\.\d+\n$/);
    assertEquals(await host.must("docker", ["ps", "-aq"]), before);
  });
  await t.step("--image: one that ends at once, one that runs, one that is not there", async () => {
    const ends = await host.tapkit("bridge-legacy", "x", "--image", "busybox");
    assertEquals(ends.code, 1);
    assertMatch(ends.stderr, /name an image|no command|No command/i);
    await host.sh(
      'tar -C /run/image -c . | docker import --change \'CMD ["/bin/busybox","sleep","600"]\' - sleeps',
    );
    await host.sh(
      'tar -C /run/image -c . | docker import --change \'CMD ["/bin/busybox","false"]\' - fails',
    );
    const fails = await host.tapkit("bridge-legacy", "x", "--image", "fails");
    assertMatch(fails.stderr, /image "fails" ended at once, with exit code 1: name an image whose/);
    await host.mustTapkit("bridge-legacy", "x", "--image", "sleeps");
    await host.mustTapkit("attach-vm", "x", "--remove");
    const absent = await host.tapkit("bridge-legacy", "x", "--image", "127.0.0.1:5999/none:1");
    assertEquals(absent.code, 1);
    assertMatch(absent.stderr, /pulling image 127/);
    assertMatch(
      absent.stderr,
      /image "127\.0\.0\.1:5999\/none:1" is not here, and .*: pull or load it/,
    );
    assertEquals(await host.must("docker", ["ps", "-aq"]), before);
  });
  await t.step("what Docker's networks cannot do is refused, and nothing is touched", async () => {
    const refused = [
      [["--ip", "172.17.0.9"], /Docker chooses the addresses of its network "bridge" itself/],
      [["--mtu", "1400"], /--mtu does not go with .* docker network create/],
      [["--bandwidth", "10mbit"], /--bandwidth does not go with/],
      [["--network", "backend", "--network", "dual"], /a VM is on one network of Docker's/],
      [["--image", "busybox", "--container", "c1"], /--image and --container do not go together/],
    ] as const;
    for (const [words, message] of refused) {
      const outcome = await host.tapkit(
        "attach-vm",
        ...["x", "--network-plugin", "docker-bridge", ...words],
      );
      assertEquals(outcome.code, 2, outcome.stderr);
      assertMatch(outcome.stderr, message);
    }
    const failed = [
      [["--network", "nosuch"], /Docker has no network "nosuch": see docker network ls/],
      [["--network", "host"], /network "host" is not a bridge, but host/],
      [["--container", "nosuch"], /Docker has no container "nosuch": see docker ps/],
    ] as const;
    for (const [words, message] of failed) {
      const outcome = await host.tapkit("bridge-legacy", "x", ...words);
      assertEquals(outcome.code, 1, outcome.stderr);
      assertMatch(outcome.stderr, message);
    }
    const cni = await host.tapkit("attach-vm", "x", "--image", "busybox");
    assertEquals(cni.code, 2);
    assertMatch(cni.stderr, /--image is for Docker's network: .* --network-plugin docker-bridge/);
    await host.must("docker", ["create", "--name", "tapkit-x", "busybox", "/bin/busybox", "true"]);
    const foreign = await host.tapkit("bridge-legacy", "x");
    assertMatch(foreign.stderr, /there is a container "tapkit-x" already, and it is not tapkit's/);
    await host.must("docker", ["rm", "tapkit-x"]);
    assertEquals((await host.mustTapkit("attach-vm", "--list")).json, []);
    assertEquals(await host.must("docker", ["ps", "-aq"]), before);
  });
  await t.step("TAPKIT_NETWORK_PLUGIN is for new VMs", async () => {
    const env = { TAPKIT_NETWORK_PLUGIN: "docker-bridge" };
    const { json: [record] } = await host.mustTapkit("attach-vm", "env", { env });
    assertEquals(record.networkPlugin, "docker-bridge");
    assertEquals(record.dns.nameservers, ["192.0.2.99"], "those that the engine was told");
    await host.mustTapkit("attach-vm", "env");
    await host.mustTapkit("attach-vm", "other", "--network-plugin", "cni", { env });
    const { done: [again] } = await host.mustTapkit("attach-vm", "other", { env });
    assertEquals(again!.changes, []);
    await host.mustTapkit("attach-vm", "--remove", "--all");
    const wrong = await host.tapkit("attach-vm", "env", {
      env: { TAPKIT_NETWORK_PLUGIN: "podman" },
    });
    assertEquals(wrong.code, 2);
    assertMatch(
      wrong.stderr,
      /TAPKIT_NETWORK_PLUGIN is "podman".*: set it to cni or docker-bridge/,
    );
  });
});

Deno.test("bridge-legacy: no docker, no engine, a closed socket, podman under docker's name", async (t) => {
  await using host = await Host.create();
  await host.sh(
    `mkdir ${FEW}; for name in bash setpriv env; do ln -s "$(command -v $name)" ${FEW}/; done`,
  );
  const before = await host.snapshot();
  const run = async (env: Record<string, string> = {}, prefix: readonly string[] = []) => {
    const words = [...prefix, Deno.execPath(), ...scriptWords("bridge-legacy"), "web"];
    const outcome = await host.run(words[0]!, words.slice(1), { env });
    assertEquals(outcome.code, 1, outcome.stderr);
    assertEquals(outcome.stdout, "");
    return outcome.stderr;
  };
  await t.step("docker is not installed", async () => {
    assertMatch(
      await run({}, ["env", `PATH=${FEW}`]),
      /docker is not installed: install Docker's engine/,
    );
  });
  await t.step("no engine runs", async () => {
    assertMatch(await run(), /Docker's engine does not answer at unix:\S+: start it: systemctl/);
  });
  await t.step("an engine of another machine", async () => {
    const stderr = await run({ DOCKER_HOST: "tcp://192.0.2.2:2375" });
    assertMatch(stderr, /DOCKER_HOST=tcp:\S+ is an engine of another machine: unset DOCKER_HOST/);
  });
  await t.step("podman under docker's name", async () => {
    // A stand-in: it answers as Debian's podman-docker 4.3.1 does without a service.
    const podman = `#!${FEW}/bash
echo "Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg." >&2
case "$1" in --version) echo "podman version 4.3.1";; version) echo null;; *) exit 125;; esac
`;
    await host.writeFile(`${FEW}/docker`, podman, 0o755);
    assertMatch(
      await run({}, ["env", `PATH=${FEW}`]),
      /docker is podman on this host, .*: install Docker's/,
    );
  });
  await t.step("a socket that is closed to us", async () => {
    await host.sh(`rm ${FEW}/docker`);
    await using _docker = await DockerEngine.start(host, "nft");
    await host.sh("chown 1000:1000 /run/docker.sock; chmod 600 /run/docker.sock");
    const caps = "-dac_override,-dac_read_search";
    const stderr = await run({}, ["setpriv", "--bounding-set", caps, "--inh-caps", caps]);
    assertMatch(stderr, /Docker's socket unix:\S+ is closed to this user: run as root/);
    await host.sh("chown 0:0 /run/docker.sock");
  });
  assert(before !== "");
  assertEquals((await host.mustTapkit("attach-vm", "--list")).json, []);
});
