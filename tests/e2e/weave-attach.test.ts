/** VMs on Weave Net: see tests/support/weave/launch.sh for what its stand-in does, and cannot show. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { fetchName, serveName } from "../support/http.ts";
import { scriptWords } from "../support/bundle.ts";
import { eventually, type Machine } from "../support/machine.ts";
import { reboot } from "../support/reboot.ts";
import { type RouterOptions, WeaveRouter } from "../support/weave/router.ts";

/** Lines of a snapshot that come and go while a VM is attached. */
const PASSING = [/(fe80|ff00):/, /^process (nc|sleep) /, /tapkit_limits /];

interface Scene extends AsyncDisposable {
  readonly host: Host;
  readonly peer: Machine;
  readonly router: WeaveRouter;
}

async function scene(options: RouterOptions & { by?: "setup-weave" } = {}): Promise<Scene> {
  const host = await Host.create();
  try {
    const peer = await host.addLan();
    await serveName(peer, 8000);
    const router = options.by === "setup-weave"
      ? await WeaveRouter.setUp(host)
      : await WeaveRouter.start(host, options);
    return { host, peer, router, [Symbol.asyncDispose]: () => host[Symbol.asyncDispose]() };
  } catch (error) {
    await host[Symbol.asyncDispose]();
    throw error;
  }
}

/** The addresses that the router knows of VMs, by their names. */
async function addresses({ host, router }: Scene): Promise<Record<string, string>> {
  const owners = await router.owners();
  const { json } = await host.mustTapkit("attach-vm", "--list");
  return Object.fromEntries(
    json.flatMap(({ vm, id }) => owners[id] === undefined ? [] : [[vm, owners[id]]]),
  );
}

async function check(host: Host, name: string): Promise<{ code: number; problems: string[] }> {
  const { code, json } = await host.tapkit("attach-vm", name, "--check");
  return { code, problems: json[0].problems };
}

const first = ({ interfaces }: { interfaces: { addresses: { address: string }[] }[] }) =>
  interfaces[0]!.addresses[0]!.address;

const VARIANTS = [
  // Weave Net installs no portmap; some hosts have the reference plugins beside.
  { variant: "nft", plugins: "/opt/cni/bin", portmap: "builtin" },
  { variant: "legacy", plugins: "/opt/cni/bin:/usr/lib/cni", portmap: "exec" },
] as const;

for (const { variant, plugins, portmap } of VARIANTS) {
  Deno.test(`attach-vm: on Weave Net beside Docker's DROP in iptables-${variant}, portmap ${portmap}`, async (t) => {
    await using at = await scene({ variant });
    const { host, peer, router } = at;
    const options = { env: { CNI_PATH: plugins } };
    const attach = ["attach-vm", "web", "--ports", "8080:80"] as const;
    const { json: [record], stderr } = await host.mustTapkit(...attach, options);
    const { at: { facts } } = JSON.parse(await host.readFile("/var/lib/tapkit/vms/web.json"));
    const { plugins: chain } = facts.networks[0].attachment;
    assertEquals(
      chain.map(({ implementation }: { implementation: string }) => implementation),
      ["exec", portmap],
    );
    await t.step("the address is the router's, and the MTU that of its bridge", async () => {
      const { network, mtu } = record.interfaces[0];
      assertEquals([network, mtu, stderr.includes("warning")], ["weave", 1376, false], stderr);
      assertEquals(await addresses(at), { web: first(record) });
      assertEquals(await check(host, "web"), { code: 0, problems: [] });
    });
    await using guest = await NetnsGuest.start(host, record);
    const passes = async () => {
      const reached = await fetchName(guest, "192.0.2.2", 8000);
      assertEquals([reached, await fetchName(peer, "192.0.2.1", 8080)], ["peer", "web"]);
    };
    await t.step("DHCP tells the guest both; it reaches out, and its port is reached", async () => {
      await guest.dhcp();
      await serveName(guest);
      const [link] = JSON.parse(await guest.must("ip", ["-j", "link", "show", "eth0"]));
      assertEquals(link.mtu, 1376);
      await passes();
    });
    await t.step("it goes on while the router is down, and when it is there again", async () => {
      await router.stop();
      await passes();
      assertEquals(await check(host, "web"), { code: 0, problems: [] });
      await router.restart();
      await passes();
      assertEquals(await addresses(at), { web: first(record) });
      const again = await host.mustTapkit("attach-vm", "web");
      assertEquals([again.json, again.done[0]!.changes], [[record], []]);
    });
    await t.step("removing it gives the address back", async () => {
      await host.mustTapkit("attach-vm", "web", "--remove");
      assertEquals(await router.owners(), {});
      assertEquals(await host.sh("ls /sys/class/net | grep vethwepl || true"), "");
    });
  });
}

Deno.test("attach-vm --ip: on Weave Net an address is claimed, or refused by the name of who has it", async (t) => {
  await using at = await scene();
  const { host, router } = at;
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ip", "10.32.0.77");
  assertEquals(first(record), "10.32.0.77/12");
  assertEquals(await addresses(at), { web: "10.32.0.77/12" });
  await router.allocate("0123456789abcdef");
  await host.awaitDhcp();
  const before = await host.snapshot();
  const owners = await router.owners();
  const refusals: [ip: string, says: RegExp][] = [
    ["10.32.0.77", /10\.32\.0\.77: Weave Net gave it to VM "web": ask .* attach-vm web --remove$/m],
    ["10.32.0.1", /10\.32\.0\.1: it is that of Weave Net's bridge: ask for another address$/m],
    ["10.32.0.2", /10\.32\.0\.2: Weave Net gave it to container 0123456789abcdef: ask/],
    ["10.48.0.1", /10\.48\.0\.1 is not of Weave Net's range 10\.32\.0\.0\/12/],
    ["10.32.0.9/24", /prefix length 12: write --ip 10\.32\.0\.9/],
  ];
  for (const [ip, says] of refusals) {
    await t.step(ip, async () => {
      const { code, stderr } = await host.tapkit("attach-vm", "db", "--ip", ip);
      assertEquals(code, 1);
      assertMatch(stderr, says);
      assertEquals(await router.owners(), owners);
    });
  }
  await t.step("what fails after the claim gives the address back", async () => {
    const link = "vethwepl$(printf db | sha256sum | cut -c1-7)";
    await host.sh(`ip link add ${link} type bridge`);
    const { code, stderr } = await host.tapkit("attach-vm", "db", "--ip", "10.32.0.9");
    await host.sh(`ip link delete ${link}`);
    assertMatch(stderr, /could not create veth pair/);
    assertEquals(code, 1);
    assertEquals(await router.owners(), owners);
  });
  await host.assertRestored(before, {
    except: PASSING,
  });
});

Deno.test("attach-vm --restore: on Weave Net the address stays, whatever its router remembers", async (t) => {
  await using at = await scene();
  const { host, router } = at;
  await host.mustTapkit("attach-vm", "first");
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  const { json: [db] } = await host.mustTapkit("attach-vm", "db");
  // A lower address is free from now on.
  await host.mustTapkit("attach-vm", "first", "--remove");
  const known = { db: first(db), web: first(record) };
  const restored = async () => {
    const { json, stderr } = await host.mustTapkit("attach-vm", "--restore");
    // They wait for the router together: either is there first.
    assertEquals(new Set(json), new Set([db, record]));
    assert(!stderr.includes("warning"), stderr);
    assertEquals(await addresses(at), known);
    return stderr;
  };
  await t.step("as the router knows it", async () => {
    await host.sh("for name in web db; do ip netns delete tapkit-$name; done");
    await restored();
  });
  await t.step("after the router lost its db", async () => {
    await router.forget();
    await host.sh("for name in web db; do ip netns delete tapkit-$name; done");
    assertMatch(
      await restored(),
      /router had forgotten the addresses of db, web: it knows them again/,
    );
  });
  await t.step("attaching another VM tells it first which addresses the VMs have", async () => {
    await router.forget();
    assertEquals(await addresses(at), {});
    const { json: [other], stderr } = await host.mustTapkit("attach-vm", "other");
    assertMatch(stderr, /had forgotten the addresses of db, web: it knows them again/);
    assertEquals(await addresses(at), { ...known, other: first(other) });
    assertEquals(new Set([...Object.values(known), first(other)]).size, 3);
    for (const name of ["web", "db", "other"]) {
      assertEquals(await check(host, name), { code: 0, problems: [] });
    }
    await host.mustTapkit("attach-vm", "other", "--remove");
  });
  await t.step(
    "--check names what it has forgotten, and attaching the VM again tells it",
    async () => {
      await router.forget();
      const { code, problems } = await check(host, "web");
      const problem = `the address ${first(record).split("/")[0]} is free for Weave Net's router`;
      assertEquals([code, problems], [3, [problem]]);
      const { json, done } = await host.mustTapkit("attach-vm", "web");
      assertEquals([json, done[0]!.tapReplaced], [[record], false]);
      assertEquals(await check(host, "web"), { code: 0, problems: [] });
      assertEquals(await addresses(at), known);
    },
  );
  await t.step(
    "what the router finds in use, by a process, without knowing whose it is, is the VM's",
    async () => {
      const address = first(record).split("/")[0]!;
      const found = async () => {
        await router.forget();
        await router.claim(address, address);
        assertEquals((await router.owners())[address], first(record));
      };
      await found();
      const problem =
        `the address ${address} is in use by nobody that is known to Weave Net's router`;
      assertEquals((await check(host, "web")).problems, [problem]);
      await host.mustTapkit("attach-vm", "web");
      assertEquals(await check(host, "web"), { code: 0, problems: [] });
      await found();
      await host.sh("ip netns delete tapkit-web");
      await restored();
      assertEquals(Object.keys(await router.owners()).length, 2);
      await found();
      await host.mustTapkit("attach-vm", "web", "--remove");
      assertEquals(Object.keys(await router.owners()).includes(address), false);
      assertEquals((await host.mustTapkit("attach-vm", "web", "--ip", address)).json.map(first), [
        first(record),
      ]);
    },
  );
  await t.step("one that is a container's by now is told, and the VM gets another", async () => {
    await router.forget();
    await router.allocate("0123456789abcdef");
    assertEquals(await router.owners(), { "0123456789abcdef": "10.32.0.2/12" });
    await router.allocate("fedcba9876543210");
    const taken = (await router.owners()).fedcba9876543210;
    assertEquals(taken, known.web);
    assertEquals((await check(host, "web")).problems, [
      "the address 10.32.0.3 is that of fedcba9876543210 for Weave Net's router",
    ]);
    await host.sh("ip netns delete tapkit-web");
    const { code, stderr, json } = await host.tapkit("attach-vm", "--restore");
    assertEquals(code, 0, stderr);
    assertMatch(
      stderr,
      /VM "web" has the address 10\.32\.0\.3, but Weave Net gave it to container fed/,
    );
    assertMatch(stderr, /warning: "eth0" had the address 10\.32\.0\.3, now it has 10\.32\.0\.5/);
    assertEquals(json.map(first).sort(), ["10.32.0.4/12", "10.32.0.5/12"]);
  });
});

Deno.test("attach-vm: while Weave Net's router is down, attaching says so, and removing loses no address", async (t) => {
  await using at = await scene();
  const { host, router } = at;
  for (const name of ["a", "b", "c"]) await host.mustTapkit("attach-vm", name);
  const ids = (await host.mustTapkit("attach-vm", "--list")).json.map(({ id }) => id);
  await router.stop();
  const MEND =
    /connection refused.*docker start weave, or setup-weave, whose --check says what it lacks/i;
  await t.step("attaching", async () => {
    const before = await host.snapshot();
    const { code, stderr } = await host.tapkit("attach-vm", "web");
    assertEquals(code, 1);
    assertMatch(stderr, MEND);
    assertEquals(stderr.trim().split("\n").length, 1, stderr);
    await host.assertRestored(before, { except: PASSING });
  });
  for (const name of ["a", "b", "c"]) {
    await t.step(`removing ${name}`, async () => {
      const { code, stderr } = await host.tapkit("attach-vm", name, "--remove");
      assertEquals(code, 1);
      assertMatch(stderr, /not everything could be taken away/);
      assertMatch(stderr, MEND);
      assertEquals((await host.run("test", ["-e", `/run/netns/tapkit-${name}`])).code, 1);
      assertMatch((await check(host, name)).problems.join(), /was left half removed/);
    });
  }
  await t.step(
    "once it is there again, removing, attaching and collecting give the addresses back",
    async () => {
      await router.restart();
      assertEquals(Object.keys(await router.owners()).sort(), ids.sort());
      await host.mustTapkit("attach-vm", "a", "--remove");
      assertEquals(Object.keys(await router.owners()).length, 2);
      const { json: [again] } = await host.mustTapkit("attach-vm", "b");
      assertEquals(Object.keys(await router.owners()).length, 2);
      assertEquals(await addresses(at).then(({ b }) => b), first(again));
      await host.mustTapkit("attach-vm", "--gc");
      assertEquals(Object.values(await router.owners()), [first(again)]);
      await host.mustTapkit("attach-vm", "b", "--remove");
      assertEquals(await router.owners(), {});
      await host.awaitGone("/var/lib/tapkit");
    },
  );
});

Deno.test("attach-vm --restore: a host that reboots comes back with Weave Net's router and its VMs", async (t) => {
  await using at = await scene({ by: "setup-weave" });
  const { host, peer, router } = at;
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  const goDown = async () => {
    await router.engine.stop();
    await reboot(host);
    // The engine's containers go on without it, in the machine's own process namespace.
    await host.sh(`
      while pids=$(pgrep -f "[/]home/weave/"); do kill -9 $pids 2>/dev/null || sleep 0.02; done
      for table in filter nat; do iptables-legacy -t $table -F; iptables-legacy -t $table -X; done
      for link in weave docker0; do ip link delete $link; done`);
  };
  const restoring = () =>
    host.spawn("bash", [
      ...["-c", 'exec "$@" 2>&1', "restore", Deno.execPath()],
      ...[...scriptWords("attach-vm"), "--restore"],
    ]);
  await t.step("it waits while Docker is starting the router", async () => {
    await goDown();
    await using command = restoring();
    await command.line((line) => line.includes("waiting for Weave Net's router, 60 s at most: "));
    await router.engine.resume();
    const printed = await command.line((line) => line.startsWith("{"), { timeoutMs: 30_000 });
    const { changes: _, tapReplaced: __, ...restored } = JSON.parse(printed);
    assertEquals(restored, record);
    assertEquals((await command.status).code, 0);
    const { code, json } = await host.tapkit("setup-weave", "--check");
    assertEquals([code, json[0].problems], [0, []]);
    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    await serveName(guest);
    const reached = await fetchName(guest, "192.0.2.2", 8000);
    assertEquals([reached, await fetchName(peer, "192.0.2.1", 8080)], ["peer", "web"]);
  });
  await t.step("it does not wait for one that nobody starts", async () => {
    await host.sh("docker update --restart no weave");
    await goDown();
    await router.engine.resume();
    const { code, stderr } = await host.tapkit("attach-vm", "--restore");
    assertEquals(code, 1);
    assertMatch(stderr, /connection refused/i);
    assert(!stderr.includes("waiting"), stderr);
  });
});

Deno.test("attach-vm: says what Weave Net's router waits for when it gives out no addresses", async () => {
  await using at = await scene({ peers: ["192.0.2.1", "192.0.2.2"] });
  const { host } = at;
  await eventually(
    20_000,
    "the configuration is there",
    async () => (await host.run("test", ["-e", "/etc/cni/net.d/10-weave.conflist"])).code === 0,
  );
  const { code, stderr } = await host.tapkit("attach-vm", "web");
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /waiting for Weave Net's router: it waits for 2 of its peers, of which 1 are there/,
  );
  assertMatch(
    stderr,
    /Weave Net is not ready: .*: see setup-weave --check, and start Weave Net on/,
  );
});
