/** setup-weave where it cannot work: what it says, and that nothing is left of it. */

import { assertEquals, assertMatch } from "@std/assert";
import { scriptWords } from "../support/bundle.ts";
import { DOCKERS } from "../support/docker.ts";
import { Host } from "../support/host.ts";
import { eventually } from "../support/machine.ts";
import { inspectContainer, weaveHost } from "../support/weave/host.ts";
import { WEAVE_IMAGE } from "../support/weave/stand-in.ts";

const LEFT = [...DOCKERS, /^iptables-legacy-save (\*|:|COMMIT)/, /^directory \/opt\/cni/];

/** What setup-weave says, in one line, and its exit code. */
async function refusal(host: Host, ...args: string[]): Promise<[number, string]> {
  const { code, stderr } = await host.tapkit("setup-weave", ...args);
  const lines = stderr.trim().split("\n").filter((line) =>
    !/: (warning|set|pulling)|it is replaced$/.test(line)
  );
  assertEquals(lines.length, 1, stderr);
  return [code, lines[0]!.replace("setup-weave: ", "")];
}

Deno.test("setup-weave: without Docker, with its engine stopped or closed, with podman", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const restored = () => host.assertRestored(before);
  const withDocker = async (script: string, act: () => Promise<void>) => {
    await host.writeFile("/run/fake/docker", `#!/bin/sh\n${script}\n`, 0o755);
    await host.sh("mount -o bind /run/fake/docker $(command -v docker)");
    await act();
    await host.sh("umount $(command -v docker); rm -r /run/fake");
  };

  await t.step("the engine does not run", async () => {
    for (const args of [[], ["--check"]]) {
      assertEquals(await refusal(host, ...args), [
        1,
        "Docker's engine does not answer at unix:///var/run/docker.sock: " +
        "start it: systemctl start docker",
      ]);
    }
    // Whether a container is there cannot be seen; what else there is stays.
    await host.writeFile("/var/lib/weave/tapkit.json", "{}");
    assertEquals((await refusal(host, "--remove", "--purge"))[0], 1);
    assertEquals(await host.readFile("/var/lib/weave/tapkit.json"), "{}");
    await host.sh("rm -r /var/lib/weave");
    await restored();
  });

  await t.step("its socket is closed", async () => {
    const said =
      'echo "Got permission denied while trying to connect to the Docker daemon socket at ' +
      'unix:///var/run/docker.sock" >&2; exit 1';
    await withDocker(said, async () => {
      assertEquals(await refusal(host), [
        1,
        "Docker's socket unix:///var/run/docker.sock is closed to this user: " +
        "run as root, or as a member of the group docker",
      ]);
    });
    await restored();
  });

  await t.step("docker is podman", async () => {
    await withDocker("echo podman version 4.3.1", async () => {
      assertMatch(
        (await refusal(host))[1],
        /^docker is podman on this host, .*: install Docker's engine/,
      );
    });
    await restored();
  });

  await t.step("there is no docker; removal has nothing to do", async () => {
    const without = (...args: string[]) =>
      host.run("env", [
        "PATH=/nonexistent",
        Deno.execPath(),
        ...scriptWords("setup-weave"),
        ...args,
      ]);
    const { code, stderr } = await without();
    assertEquals([code, stderr], [
      1,
      "setup-weave: docker is not installed: install Docker's engine (package docker.io)\n",
    ]);
    const removed = await without("--remove");
    assertEquals([removed.code, removed.stdout], [0, '{"removed":false}\n'], removed.stderr);
    await restored();
  });

  await t.step("--print needs none", async () => {
    assertMatch((await host.mustTapkit("setup-weave", "--print")).stdout, /^docker run -d /);
    await restored();
  });
});

Deno.test("setup-weave: input that is wrong is refused before anything is asked", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.writeFile("/empty", "");
  await host.writeFile("/lines", "a\nb\n");
  const before = await host.snapshot();
  for (
    const [args, reason] of [
      [["--peers", "192.0.2.300"], /^--peers: the peer "192.0.2.300" is malformed: /],
      [["--peers", "2001:db8::1"], /is an IPv6 address, by which Weave Net does not connect: /],
      [["--mtu", "100"], /^MTU 100 is out of range: choose one of 576 to 65535$/],
      [["--ipalloc-range", "10.32.0.0"], /^"10.32.0.0" is not an address with a prefix length: /],
      [["--ipalloc-range", "10.32.0.1/12"], /^10.32.0.1\/12 has host bits: write 10.32.0.0\/12$/],
      [["--ipalloc-range", "fd00::/64"], /^fd00::\/64 is not an IPv4 range: /],
      [["--image", "a b"], /^the image "a b" is malformed: /],
      [["--password-file", "/nonexistent"], /^the password file \/nonexistent cannot be read: /],
      [["--password-file", "/empty"], /^the password file \/empty is empty: /],
      [["--password-file", "/lines"], /^the password file \/lines has several lines: /],
    ] as const
  ) {
    const [code, said] = await refusal(host, ...args);
    assertEquals(code, 2, said);
    assertMatch(said, reason);
  }
  for (
    const [name, value, reason] of [
      ["KUBE_PEERS", "a b;c", /^setup-weave: KUBE_PEERS: the peer "b;c" is malformed: /],
      [
        "PRIMARY_IP_ADDRESS",
        "host",
        /^setup-weave: PRIMARY_IP_ADDRESS=host is not an IPv4 address: /,
      ],
    ] as const
  ) {
    const { code, stderr } = await host.tapkit("setup-weave", "--print", {
      env: { [name]: value },
    });
    assertEquals(code, 2, stderr);
    assertMatch(stderr, reason);
  }
  await host.assertRestored(before);
});

Deno.test("setup-weave: the primary address, and hosts that have none", async (t) => {
  await using host = await Host.create();
  const peers = async (env: Record<string, string> = {}, ...args: string[]) => {
    const { stdout, stderr, code } = await host.tapkit("setup-weave", "--print", ...args, { env });
    return /KUBE_PEERS=('[^']*'|\S+) /.exec(stdout)?.[1] ?? `${code}: ${stderr.trim()}`;
  };

  await t.step("no route, no address", async () => {
    assertEquals(
      await peers(),
      "1: setup-weave: this host has no route to 1.1.1.1, by which its primary address is found: " +
        "name the address by which its peers reach it: PRIMARY_IP_ADDRESS=192.0.2.10",
    );
    assertEquals(await peers({ PRIMARY_IP_ADDRESS: "192.0.2.77" }), "192.0.2.77");
  });

  await t.step("IPv6 only", async () => {
    await host.addLan({ addresses: ["2001:db8::1/64"], peer: ["2001:db8::2/64"] });
    assertEquals(
      await peers(),
      "1: setup-weave: this host has IPv6 only, and Weave Net connects hosts by IPv4: " +
        "give the host an IPv4 address that its peers reach",
    );
  });

  await t.step("an address without a route: one of the peers; the source of a route", async () => {
    await host.sh(
      "ip address add 192.0.2.1/24 dev eth-lan; ip address add 192.0.2.9/24 dev eth-lan",
    );
    assertMatch(await peers(), /^1: setup-weave: this host has no route to 1.1.1.1/);
    assertEquals(await peers({}, "--peers", "192.0.2.9,192.0.2.2"), "'192.0.2.9 192.0.2.2'");
    await host.sh("ip route add default via 192.0.2.2 src 192.0.2.9");
    assertEquals(await peers(), "192.0.2.9");
    assertEquals(await peers({ PRIMARY_IP_ADDRESS: "192.0.2.1" }), "192.0.2.1");
    assertEquals(await peers({ KUBE_PEERS: "192.0.2.1 192.0.2.2" }), "'192.0.2.1 192.0.2.2'");
    const env = { KUBE_PEERS: "192.0.2.1" };
    assertEquals(await peers(env, "--peers", "192.0.2.3"), "192.0.2.3");
  });
});

Deno.test("setup-weave: what is in its way is named, and what was begun is undone", async (t) => {
  await using host = await weaveHost();
  // What the first container of an engine leaves, and iptables.
  await host.sh("docker run --rm busybox /bin/busybox true; iptables-legacy -S >/dev/null");
  await host.sh("touch /run/xtables.lock");
  const before = await host.snapshot();
  const restored = () => host.assertRestored(before, { except: LEFT });

  await t.step("an image that is not there and cannot be pulled", async () => {
    const [code, said] = await refusal(host, "--image", "127.0.0.1:1/weave-kube:2.5.2");
    assertEquals(code, 1);
    assertMatch(
      said,
      /^the image 127.0.0.1:1\/weave-kube:2.5.2 is not on this host: .*refused: check its /,
    );
    await restored();
  });

  await t.step("images that are not Weave Net's for CNI", async () => {
    const [code, said] = await refusal(host, "--image", "busybox");
    assertEquals(code, 1);
    assertMatch(said, /^the image busybox has no \/home\/weave\/launch.sh: .*: name Weave Net's/);
    await host.sh(
      `mkdir -p /run/other/home/weave /run/other/bin; cp "$(command -v busybox)" /run/other/bin/cat
       echo 'exec sleep 1' >/run/other/home/weave/launch.sh
       tar -C /run/other -c . | docker import - other >/dev/null; rm -r /run/other`,
    );
    assertMatch(
      (await refusal(host, "--image", "other"))[1],
      /^the image other does not take its peers /,
    );
    await restored();
  });

  await t.step("a range that the host has a route to", async () => {
    await host.sh("ip route add 10.40.0.0/16 via 192.0.2.2");
    const [code, said] = await refusal(host);
    assertEquals(code, 1);
    assertMatch(
      said,
      /^Weave Net's range 10.32.0.0\/12 overlaps the route 10.40.0.0\/16 .*--ipalloc-range/,
    );
    await host.sh("ip route delete 10.40.0.0/16");
    await restored();
  });

  await t.step("VMs on the default network are named, and go on", async () => {
    await host.mustTapkit("attach-vm", "web");
    await host.awaitDhcp();
    const begun = await host.snapshot();
    assertEquals(await refusal(host), [
      1,
      'VM "web" is on the default network: run attach-vm web --remove first, and attach again afterwards',
    ]);
    await host.assertRestored(begun, { except: [...LEFT, /fe80:|ff00:/] });
    await host.mustTapkit("attach-vm", "web", "--check");
    await host.mustTapkit("attach-vm", "web", "--remove");
    await host.awaitGone("/var/lib/tapkit");
  });

  await t.step("a default network that was edited, and others that sort first", async () => {
    const conflist = "/etc/cni/net.d/10-ignite.conflist";
    await host.sh(`sed -i 's/"0.4.0"/"1.0.0"/' ${conflist}`);
    assertEquals(await refusal(host), [
      1,
      `${conflist} sorts before 10-weave.conflist, so VMs would not be attached to Weave Net: ` +
      "it was edited: move it away",
    ]);
    await host.sh(`mv ${conflist} /etc/cni/net.d/05-mine.conflist`);
    assertMatch((await refusal(host))[1], /^\/etc\/cni\/net.d\/05-mine.conflist sorts before /);
    await host.sh("rm -r /etc/cni /var/lib/cni");
    await restored();
  });

  await t.step("Ignite's own file, in its own layout, is replaced and put back", async () => {
    await host.writeFile("/etc/cni/net.d/10-ignite.conflist", IGNITES);
    const begun = await host.snapshot();
    await host.mustTapkit("setup-weave");
    assertEquals((await host.sh("ls /etc/cni/net.d")).trim(), "10-weave.conflist");
    await host.mustTapkit("setup-weave", "--remove", "--purge", "--restore-default");
    await host.assertRestored(begun, { except: LEFT });
  });

  const makeBroken = () =>
    host.sh(
      `mkdir -p /run/broken; cd /run/broken
       printf '#!/bin/sh\\necho starting for $KUBE_PEERS\\necho "no luck" >&2\\nexit 3\\n' >launch.sh
       printf 'FROM ${WEAVE_IMAGE}\\nADD launch.sh /home/weave/\\n' >Dockerfile; chmod 755 launch.sh
       DOCKER_BUILDKIT=0 docker build -qt broken . >/dev/null; rm -r /run/broken`,
    );

  await t.step("a router that ends at once: its words; all is as before", async () => {
    await host.mustTapkit("install-default-cni");
    await host.writeFile("/etc/cni/net.d/99-last.conf", '{"name":"last","type":"loopback"}');
    const begun = await host.snapshot();
    await makeBroken();
    assertEquals(await refusal(host, "--image", "broken"), [
      1,
      "Weave Net's container ends at once, with exit code 3: no luck: see docker logs weave",
    ]);
    await host.assertRestored(begun, { except: LEFT });
  });

  await t.step("where it was to take another one's place, that one goes on", async () => {
    const { json: [state] } = await host.mustTapkit("setup-weave", "--mtu", "1300");
    await host.mustTapkit("attach-vm", "web");
    const begun = await host.readFile("/var/lib/weave/tapkit.json");
    const [code, said] = await refusal(host, "--image", "broken");
    assertEquals(code, 1);
    assertMatch(said, /exit code 3: no luck/);
    assertEquals(await host.readFile("/var/lib/weave/tapkit.json"), begun);
    const { Id, HostConfig } = await inspectContainer(host);
    assertEquals([Id, HostConfig.RestartPolicy.Name], [state.container, "always"]);
    await host.mustTapkit("setup-weave");
    assertEquals((await host.mustTapkit("setup-weave", "--check")).json[0].problems, []);

    // Where there is no container any more, VMs are on its bridge all the same.
    await host.must("docker", ["rm", "-f", "weave"]);
    assertMatch((await refusal(host, "--image", "broken"))[1], /exit code 3: no luck/);
    const range = await refusal(host, "--ipalloc-range", "10.96.0.0/12");
    assertMatch(
      range[1],
      /^the range 10.32.0.0\/12 cannot become 10.96.0.0\/12 while it gives VM "web" /,
    );
    await host.mustTapkit("setup-weave");
    assertEquals((await host.mustTapkit("setup-weave", "--check")).json[0].problems, []);
    await host.mustTapkit("attach-vm", "web", "--check");
    await host.mustTapkit("attach-vm", "web", "--remove");
    await host.mustTapkit("setup-weave", "--remove", "--purge", "--restore-default");
    await host.awaitGone("/var/lib/tapkit");
  });

  await t.step("a signal while it waits for a peer: all is as before", async () => {
    const begun = await host.snapshot();
    const argv = [...scriptWords("setup-weave"), "--peers", "192.0.2.1,192.0.2.2"];
    await using running = host.spawn(Deno.execPath(), argv);
    await eventually(20_000, "the router answers", async () => {
      return (await host.run("busybox", ["nc", "127.0.0.1", "6784"], {
        stdin: "GET /status HTTP/1.0\r\n\r\n",
      })).code === 0;
    });
    running.kill("SIGTERM");
    assertEquals((await running.status).code, 143);
    assertMatch(await running.stderr, /interrupted by SIGTERM: what was begun is undone/);
    await host.assertRestored(begun, { except: LEFT });
  });
});

/** As Ignite writes it. */
const IGNITES = `{
	"cniVersion": "0.4.0",
	"name": "ignite-cni-bridge",
	"plugins": [
		{
			"type": "bridge",
			"bridge": "ignite0",
			"isGateway": true,
			"isDefaultGateway": true,
			"promiscMode": true,
			"ipMasq": true,
			"ipam": {
				"type": "host-local",
				"subnet": "172.18.0.0/16"
			}
		},
		{
			"type": "portmap",
			"capabilities": {
				"portMappings": true
			}
		},
		{
			"type": "firewall"
		}
	]
}
`;
