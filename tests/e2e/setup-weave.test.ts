/** setup-weave with a real Docker engine and an image that stands in for Weave Net's. */

import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { DOCKERS } from "../support/docker.ts";
import { eventually, ROOT } from "../support/machine.ts";
import { inspectContainer as inspect, weaveHost } from "../support/weave/host.ts";
import { importWeave, WEAVE_IMAGE } from "../support/weave/stand-in.ts";

const CONFLIST = "/etc/cni/net.d/10-weave.conflist";
const DEFAULT = "/etc/cni/net.d/10-ignite.conflist";

/** What Docker keeps, directories that Weave's image makes for others too, and tables of iptables. */
const LEFT: readonly RegExp[] = [
  ...DOCKERS,
  /\/run\/xtables\.lock/,
  /^directory \/opt\/cni/,
  /^iptables-legacy-save (\*|:|COMMIT)/,
];

Deno.test("setup-weave: starts the documentation's container, twice the same, and leaves", async (t) => {
  await using host = await weaveHost();
  await host.mustTapkit("install-default-cni");
  const before = await host.snapshot();

  await t.step(
    "waits until addresses are given out, and prints the contract's object",
    async () => {
      const { json: [state], stderr } = await host.mustTapkit("setup-weave");
      const { container, changes: _, ...rest } = state;
      assertMatch(container, /^[0-9a-f]{64}$/);
      assertEquals(rest, {
        image: WEAVE_IMAGE,
        primaryIP: "192.0.2.1",
        peers: ["192.0.2.1"],
        ready: true,
        conflist: CONFLIST,
        connections: [],
      });
      assertMatch(stderr, /warning: no password is set/);
      assertMatch(await host.sh("ip -4 -o address show dev weave"), / 10\.32\.0\.1\/12 /);
      assertMatch(await host.sh("ip link show weave"), / mtu 1376 /);
      assertEquals((await host.run("test", ["-e", DEFAULT])).code, 1);
    },
  );

  await t.step("the container is the documented one", async () => {
    const { Config, HostConfig, Name } = await inspect(host);
    assertEquals(Name, "/weave");
    assertEquals(Config.Image, WEAVE_IMAGE);
    assertEquals(Config.Entrypoint, ["/home/weave/launch.sh"]);
    assertEquals(Config.Cmd, null);
    assertEquals([HostConfig.Privileged, HostConfig.NetworkMode, HostConfig.PidMode], [
      true,
      "host",
      "host",
    ]);
    assertEquals(HostConfig.RestartPolicy.Name, "always");
    assertEquals(HostConfig.Binds.toSorted(), [
      "/etc:/host/etc",
      "/home:/host/home",
      "/lib/modules:/lib/modules",
      "/opt:/host/opt",
      "/run/xtables.lock:/run/xtables.lock",
      "/var/lib/dbus:/host/var/lib/dbus",
      "/var/lib/weave:/weavedb",
    ]);
    const env = Config.Env.filter((line: string) => !line.startsWith("PATH=")).toSorted();
    assertEquals(env, [
      "EXPECT_NPC=0",
      "HOSTNAME=host",
      "KUBE_PEERS=192.0.2.1",
      "WEAVE_METRICS_ADDR=127.0.0.1:6782",
      "WEAVE_MTU=1376",
      "WEAVE_NO_FASTDP=1",
    ]);
  });

  await t.step(
    "a VM is attached to Weave Net, and keeps the router from being removed",
    async () => {
      const { json: [record] } = await host.mustTapkit("attach-vm", "web");
      assertEquals(record.interfaces[0].network, "weave");
      assertMatch(record.interfaces[0].addresses[0].address, /^10\.32\.0\.\d+\/12$/);
      const refused = await host.tapkit("setup-weave", "--remove");
      assertEquals(refused.code, 1);
      assertMatch(
        refused.stderr,
        /^setup-weave: VM "web" is on Weave Net: run attach-vm web --remove first\n$/,
      );
      const check = await host.tapkit("setup-weave", "--check");
      assertEquals([check.code, check.json[0].problems], [0, []]);
      await host.mustTapkit("attach-vm", "web", "--remove");
    },
  );

  await t.step("again: nothing changes", async () => {
    const { Id, State } = await inspect(host);
    const { json: [state] } = await host.mustTapkit("setup-weave");
    assertEquals(state.container, Id);
    const again = await inspect(host);
    assertEquals([again.Id, again.State.StartedAt], [Id, State.StartedAt]);
  });

  await t.step("--remove --purge --restore-default leaves nothing, twice", async () => {
    const removed = await host.mustTapkit(
      "setup-weave",
      "--remove",
      "--purge",
      "--restore-default",
    );
    assertEquals(removed.json, [{ removed: true }]);
    const twice = await host.mustTapkit("setup-weave", "--remove", "--purge");
    assertEquals(twice.json, [{ removed: false }]);
    assertEquals(await host.must("docker", ["ps", "-aq"]), "");
    await host.assertRestored(before, { except: LEFT });
  });
});

Deno.test("setup-weave: pulls an image, and says how far it is; other CNI directories", async (t) => {
  await using host = await weaveHost();
  const image = "127.0.0.1:5000/weave-kube:2.5.2";
  await host.sh(
    `mkdir -p /run/registry; docker save ${WEAVE_IMAGE} | tar -x -C /run/registry
     docker rmi ${WEAVE_IMAGE} >/dev/null`,
  );
  const script = `${ROOT}/tests/support/weave/registry.ts`;
  await using registry = host.spawn(Deno.execPath(), ["run", "-A", script, "/run/registry"]);
  await registry.line((line) => line === "ready");

  const dirs = ["--cni-conf-dir", "/srv/net.d", "--cni-bin-dir", "/srv/bin"];
  await t.step("the image comes from its registry", async () => {
    const { json: [state], stderr } = await host.mustTapkit(
      "setup-weave",
      "--image",
      image,
      ...dirs,
    );
    assertEquals([state.image, state.conflist], [image, "/srv/net.d/10-weave.conflist"]);
    const lines = stderr.split("\n").filter((line) => line.includes("pulling"));
    assertEquals(lines, [
      `setup-weave: pulling ${image}`,
      `setup-weave: pulling ${image}: 1 of 1 layers`,
    ]);
  });

  await t.step("a VM is attached by the configuration and the plugins there", async () => {
    const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...dirs);
    assertEquals(record.interfaces[0].network, "weave");
    await host.mustTapkit("attach-vm", "web", ...dirs, "--remove");
  });

  await t.step("metrics are for this host alone", async () => {
    const listeners = await host.sh("ss -Hltn sport = :6782 or sport = :6784 | awk '{print $4}'");
    assertEquals(listeners.trim().split("\n").toSorted(), ["127.0.0.1:6782", "127.0.0.1:6784"]);
  });

  await t.step("all of it goes", async () => {
    await host.mustTapkit("setup-weave", "--remove", "--purge", ...dirs);
    assertEquals(await host.sh("ls /srv/net.d /srv/bin"), "/srv/bin:\n\n/srv/net.d:\n");
  });
});

Deno.test("setup-weave: two calls at once come after each other", async () => {
  await using host = await weaveHost();
  const both = await Promise.all([1300, 1400].map((mtu) => {
    return host.mustTapkit("setup-weave", "--mtu", String(mtu));
  }));
  const [first, second] = both.map(({ json: [state] }) => state.container);
  assertNotEquals(first, second);
  const { Id, Config } = await inspect(host);
  const last = [first, second].indexOf(Id);
  assert(Config.Env.includes(`WEAVE_MTU=${[1300, 1400][last]}`));
  assertEquals((await host.must("docker", ["ps", "-aq"])).trim().split("\n").length, 1);
  assertEquals((await host.mustTapkit("setup-weave", "--check")).json[0].problems, []);
});

Deno.test("setup-weave: options reach the router, and stay until others are given", async (t) => {
  await using host = await weaveHost();
  await host.writeFile("/root-password", "s3cret word\n", 0o600);
  const state = async (...args: string[]) =>
    (await host.mustTapkit("setup-weave", ...args)).json[0];

  await t.step("range, MTU and password; the password is nowhere to be seen", async () => {
    const options = ["--ipalloc-range", "10.96.0.0/12", "--mtu", "1400"];
    await state(...options, "--password-file", "/root-password");
    assertMatch(await host.sh("ip -o address show dev weave"), / inet 10\.96\.0\.1\/12 /);
    assertMatch(await host.sh("ip link show weave"), / mtu 1400 /);
    const seen = [
      await host.must("docker", ["container", "inspect", "weave"]),
      await host.must("docker", ["logs", "weave"]),
      await host.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
      await host.readFile("/var/lib/weave/tapkit.json"),
    ];
    for (const text of seen) assert(!text.includes("s3cret"), text);
    assertEquals(await host.sh("stat -c '%a %u' /var/lib/weave/tapkit-password"), "600 0\n");
    const report = await host.sh(REPORT);
    assertMatch(report, /"Encryption":true/);
    assertMatch(report, /"Range":"10\.96\.0\.0\/12"/);
  });

  await t.step("without options all stays", async () => {
    const { Id } = await inspect(host);
    assertEquals([(await state()).container, (await state("--mtu", "1400")).container], [Id, Id]);
    assertEquals((await host.mustTapkit("setup-weave", "--check")).json[0].problems, []);
  });

  await t.step("--check tells what another wish would change", async () => {
    await host.writeFile("/other-password", "another", 0o600);
    const { code, json: [checked] } = await host.tapkit(
      ...["setup-weave", "--check", "--mtu", "1300", "--password-file", "/other-password"],
    );
    assertEquals(code, 3);
    assertEquals(checked.problems, [
      "the container weave has WEAVE_MTU=1400, not 1300",
      "the container weave has another password",
      "the container weave has a bridge with an MTU of 1400, not 1300",
    ]);
  });

  await t.step("another MTU makes the bridge anew, another password a container", async () => {
    const { Id } = await inspect(host);
    const options = ["--mtu", "1300", "--password-file", "/other-password"];
    const { done } = await host.mustTapkit("setup-weave", ...options);
    assertEquals<unknown>(done[0]?.changes, [
      "replaced the container, which has WEAVE_MTU=1400, not 1300, has another password, " +
      "has a bridge with an MTU of 1400, not 1300",
    ]);
    assertMatch(await host.sh("ip link show weave"), / mtu 1300 /);
    assertNotEquals((await inspect(host)).Id, Id);
    assertEquals((await host.must("docker", ["ps", "-aq"])).trim().split("\n").length, 1);
  });

  await t.step("neither MTU nor range changes under a VM, and the rest does", async () => {
    const { json: [record] } = await host.mustTapkit("attach-vm", "web");
    assertEquals(record.interfaces[0].mtu, 1300);
    const mtu = await host.tapkit("setup-weave", "--mtu", "1376");
    assertEquals([mtu.code, mtu.stderr], [
      1,
      'setup-weave: the bridge\'s MTU of 1300 cannot become 1376 while VM "web" is on it: ' +
      "run attach-vm web --remove first\n",
    ]);
    const range = await host.tapkit("setup-weave", "--ipalloc-range", "10.32.0.0/12");
    assertEquals([range.code, range.stderr], [
      1,
      'setup-weave: the range 10.96.0.0/12 cannot become 10.32.0.0/12 while it gives VM "web" an ' +
      "address: run attach-vm web --remove first\n",
    ]);
    await state("--password-file", "none");
    assertEquals((await inspect(host)).Config.Entrypoint, ["/home/weave/launch.sh"]);
    assertMatch(await host.sh(REPORT), /"Encryption":false/);
    await host.mustTapkit("attach-vm", "web", "--check");
    await host.mustTapkit("attach-vm", "web", "--remove");
  });

  await t.step("another range makes the bridge anew too", async () => {
    await state("--ipalloc-range", "10.32.0.0/12");
    const addresses = await host.sh("ip -4 -o address show dev weave | awk '{print $4}'");
    assertEquals(addresses, "10.32.0.1/12\n");
  });
});

const REPORT = "printf 'GET /report HTTP/1.0\\r\\nAccept: application/json\\r\\n\\r\\n' | " +
  "busybox nc 127.0.0.1 6784";

/** The documentation's command, word for word. */
const DOCUMENTED = `
export PRIMARY_IP_ADDRESS=$(ip -o route get 1.1.1.1 | cut -d' ' -f7)
export KUBE_PEERS="\${PRIMARY_IP_ADDRESS}"
docker run -d \\
  --privileged \\
  --net host \\
  --pid host \\
  --restart always \\
  -e HOSTNAME="$(hostname)" \\
  -e KUBE_PEERS="\${KUBE_PEERS}" \\
  -v /var/lib/weave:/weavedb \\
  -v /opt:/host/opt \\
  -v /home:/host/home \\
  -v /etc:/host/etc \\
  -v /var/lib/dbus:/host/var/lib/dbus \\
  -v /lib/modules:/lib/modules \\
  -v /run/xtables.lock:/run/xtables.lock \\
  --entrypoint /home/weave/launch.sh \\
  weaveworks/weave-kube:2.5.2
`;

Deno.test("setup-weave: takes over what was typed by hand", async (t) => {
  await using host = await weaveHost();

  await t.step("one that drops everything, as the documentation has it started", async () => {
    const id = (await host.sh(`touch /run/xtables.lock\n${DOCUMENTED}`)).trim();
    await eventually(10_000, "its rules are there", async () => {
      return (await host.sh("iptables-legacy -S FORWARD")).includes("-A FORWARD -o weave -j DROP");
    });
    const { code, json: [checked] } = await host.tapkit("setup-weave", "--check");
    assertEquals(code, 3);
    const problems = checked.problems.join("\n");
    assertMatch(problems, /lacks EXPECT_NPC=0/);
    assertMatch(problems, /-A FORWARD -o weave -j DROP/);

    const { json: [state], stderr } = await host.mustTapkit("setup-weave");
    assertMatch(stderr, /lacks EXPECT_NPC=0, lacks WEAVE_MTU=1376, .*: it is replaced/);
    assertNotEquals(state.container, id);
    assertEquals(state.peers, ["192.0.2.1"]);
    assertEquals((await inspect(host)).Id, state.container);
    assertEquals((await host.sh("iptables-legacy -S FORWARD")).match(/DROP/g), null);
    assertEquals((await host.mustTapkit("setup-weave", "--check")).json[0].problems, []);
  });

  await t.step("one that ends again and again for a directory in the place of a file", async () => {
    await host.mustTapkit("setup-weave", "--remove", "--purge");
    await host.sh(
      `rm /run/xtables.lock\n${(await host.mustTapkit("setup-weave", "--print")).stdout}`,
    );
    await eventually(10_000, "it ends again and again", async () => {
      return (await inspect(host)).RestartCount > 1;
    });
    assertEquals(await host.sh("stat -c %F /run/xtables.lock"), "directory\n");
    const { code, json: [checked] } = await host.tapkit("setup-weave", "--check");
    assertEquals(code, 3);
    assertMatch(checked.problems.join(), /was started without the file \/run\/xtables.lock/);
    await host.mustTapkit("setup-weave");
    assertEquals(await host.sh("stat -c %F /run/xtables.lock"), "regular empty file\n");
    assertEquals((await host.mustTapkit("setup-weave", "--check")).json[0].problems, []);
  });

  await t.step("one that shows its password", async () => {
    await host.mustTapkit("setup-weave", "--remove", "--purge");
    const typed = DOCUMENTED.replace(
      "--net host",
      "--net host -e WEAVE_PASSWORD=typed -e CONN_LIMIT=7",
    );
    await host.sh(typed);
    const { stderr } = await host.mustTapkit("setup-weave");
    assertMatch(stderr, /shows its password to docker inspect/);
    const { Config } = await inspect(host);
    assertEquals(JSON.stringify(Config).includes("typed"), false);
    assert(Config.Env.includes("CONN_LIMIT=7"));
    assertEquals(await host.readFile("/var/lib/weave/tapkit-password"), "typed");
    assertMatch(await host.sh(REPORT), /"Encryption":true/);
    await host.mustTapkit("setup-weave", "--password-file", "none");
  });

  await t.step("one that was stopped is started", async () => {
    const { Id } = await inspect(host);
    await host.must("docker", ["stop", "-t", "1", "weave"]);
    const { code, json: [checked] } = await host.tapkit("setup-weave", "--check");
    assertEquals([code, checked.ready], [3, false]);
    const { json: [state], done } = await host.mustTapkit("setup-weave");
    assertEquals<unknown>([state.container, done[0]?.changes], [Id, [
      "started the container weave",
    ]]);
  });

  await t.step("one that was stopped is told of other peers once it runs", async () => {
    await host.must("docker", ["stop", "-t", "1", "weave"]);
    const { done } = await host.mustTapkit("setup-weave", "--peers", "192.0.2.1,192.0.2.2");
    assertEquals<unknown>(done[0]?.changes, [
      "started the container weave",
      "added the peer 192.0.2.2",
    ]);
    assertMatch(await host.sh(REPORT), /"Targets":\["192.0.2.1","192.0.2.2"\]/);
    assertMatch(
      await host.readFile("/etc/tmpfiles.d/tapkit-weave.conf"),
      /^f \/run\/xtables.lock /m,
    );
  });

  await t.step("a list without this host counts it beside the others", async () => {
    await host.mustTapkit("setup-weave", "--remove", "--purge");
    const { code, stderr } = await host.tapkit(
      "setup-weave",
      "--peers",
      "192.0.2.2",
      "--wait",
      "2",
    );
    assertEquals(code, 1);
    assertMatch(
      stderr,
      /no addresses are given out before 2 of the peers are connected, and 1 are/,
    );
    const { Config } = await inspect(host);
    assert(Config.Env.includes("KUBE_PEERS=192.0.2.2"));
    assert(Config.Env.includes("IPALLOC_INIT=consensus=2"));
  });

  await t.step("what --print prints can be pasted, and is the same", async () => {
    await host.mustTapkit("setup-weave", "--remove", "--purge");
    const { stdout, stderr } = await host.mustTapkit("setup-weave", "--print");
    assertMatch(stdout, /^docker run -d \\\n {2}--name weave/);
    assertMatch(stderr, /before this command: touch \/run\/xtables.lock/);
    assertEquals(await host.must("docker", ["ps", "-aq"]), "");
    const id = (await host.sh(stdout)).trim();
    const { json: [state] } = await host.mustTapkit("setup-weave");
    assertEquals(state.container, id);
  });

  await t.step("a later image is started in its own way", async () => {
    const image = "rajchaudhuri/weave-kube:2.9.0";
    await importWeave(host, { image, asksKubernetes: true });
    const { json: [state] } = await host.mustTapkit("setup-weave", "--image", image);
    assertEquals([state.image, state.ready], [image, true]);
    assertEquals((await inspect(host)).Config.Entrypoint, ["/bin/sh"]);
    await host.must("docker", ["restart", "-t", "1", "weave"]);
    assertEquals((await host.mustTapkit("setup-weave")).json[0].container, state.container);
    const { json: [checked] } = await host.mustTapkit("setup-weave", "--check");
    assertEquals(checked.problems, []);
  });

  await t.step("two containers, or another one of its name, are named", async () => {
    await host.sh(
      `docker run -d --name second --entrypoint sleep ${WEAVE_IMAGE} 9 /home/weave/launch.sh`,
    );
    const two = await host.tapkit("setup-weave");
    assertEquals(two.code, 1);
    assertMatch(
      two.stderr,
      /the containers (second and weave|weave and second) both run Weave Net/,
    );
    await host.sh("docker rm -f second weave");
    await host.sh(`docker run -d --name weave --entrypoint sleep ${WEAVE_IMAGE} 100`);
    const other = await host.tapkit("setup-weave");
    assertEquals(other.code, 1);
    assertMatch(
      other.stderr,
      /the container "weave" is of \S+ and does not run Weave Net for CNI: /,
    );
    await host.sh("docker rm -f weave");
    await host.mustTapkit("setup-weave", "--remove", "--purge");
  });
});
