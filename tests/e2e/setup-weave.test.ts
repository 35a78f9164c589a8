/** setup-weave with a real Docker engine and an image that stands in for Weave Net's. */

import { assertEquals, assertMatch } from "@std/assert";
import { DockerEngine } from "../support/docker.ts";
import { Host } from "../support/host.ts";
import { importWeave, WEAVE_IMAGE } from "../support/weave/stand-in.ts";

const CONFLIST = "/etc/cni/net.d/10-weave.conflist";
const DEFAULT = "/etc/cni/net.d/10-ignite.conflist";

/** What Docker keeps, directories that Weave's image makes for others too, and tables of iptables. */
const LEFT: readonly RegExp[] = [
  /\/run\/(docker-|containerd|xtables\.lock)/,
  /^directory \/opt\/cni/,
  /^iptables-legacy-save (\*|:|COMMIT)/,
];

async function weaveHost(): Promise<Host> {
  const host = await Host.create();
  await host.addLan();
  host.own(await DockerEngine.start(host, "nft"));
  await importWeave(host);
  return host;
}

async function inspect(host: Host) {
  return JSON.parse(await host.must("docker", ["container", "inspect", "weave"]))[0];
}

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
