/**
 * What went wrong with VMs on Weave Net's router once. See tests/support/weave/launch.sh for what the
 * stand-in does, and cannot show.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { scriptWords } from "../support/bundle.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { fetchName, serveName } from "../support/http.ts";
import { eventually } from "../support/machine.ts";
import { WeaveRouter } from "../support/weave/router.ts";

async function check(host: Host, name: string): Promise<{ code: number; problems: string[] }> {
  const { code, json } = await host.tapkit("attach-vm", name, "--check");
  return { code, problems: json[0].problems };
}

Deno.test("attach-vm: on a Weave Net without an MTU of its own", async (t) => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await serveName(peer, 8000);
  const router = await WeaveRouter.start(host, { env: { WEAVE_MTU: "" } });
  const { json: [record], stderr } = await host.mustTapkit(
    "attach-vm",
    "web",
    "--ports",
    "8080:80",
  );
  await t.step("the guest gets what a TAP can carry, and it is said", async () => {
    assertMatch(stderr, /"eth0" gets an MTU of 65521: .* gave 65535, a TAP takes no more/);
    assertEquals(record.interfaces[0].mtu, 65521);
    assertEquals(await check(host, "web"), { code: 0, problems: [] });
  });
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await serveName(guest);
  const passes = async () => {
    const reached = await fetchName(guest, "192.0.2.2", 8000);
    assertEquals([reached, await fetchName(peer, "192.0.2.1", 8080)], ["peer", "web"]);
  };
  await passes();
  await t.step("a bridge that was made anew is seen, and attaching again mends it", async () => {
    await router.stop();
    await host.sh("ip link delete weave; ip link delete vethwe-bridge");
    await router.restart();
    const { code, problems } = await check(host, "web");
    assertEquals(code, 3);
    assertMatch(problems.join("\n"), /is not a port of "weave"/);
    const again = await host.mustTapkit("attach-vm", "web");
    assertEquals(again.json, [record]);
    assertEquals(await check(host, "web"), { code: 0, problems: [] });
    await passes();
  });
  await t.step("a lost interface is made anew with the same address and MAC", async () => {
    await host.sh("ip -n tapkit-web link delete eth0");
    const again = await host.mustTapkit("attach-vm", "web");
    assertEquals(again.json, [record]);
    assert(!again.stderr.includes('warning: "eth0" had'), again.stderr);
  });
});

Deno.test("attach-vm: Weave Net beside other networks, and waiting routers", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const router = await WeaveRouter.start(host);
  await host.writeFile(
    "/etc/cni/net.d/20-flat.conflist",
    JSON.stringify({
      cniVersion: "1.0.0",
      name: "flat",
      plugins: [{
        type: "bridge",
        bridge: "flat0",
        isDefaultGateway: true,
        ipMasq: true,
        ipam: { type: "host-local", subnet: "10.70.0.0/24" },
      }],
    }),
  );
  const attaching = (name: string) =>
    host.spawn("bash", [
      ...["-c", 'exec "$@" 2>&1', "attach", Deno.execPath()],
      ...[...scriptWords("attach-vm"), name],
    ]);
  await t.step("the bridge's address, which comes last, is waited for", async () => {
    await host.sh("ip address flush dev weave");
    await using early = attaching("early");
    await early.line((line) => line.endsWith('router: the bridge "weave" has no address'));
    await host.sh("ip address add 10.32.0.1/12 dev weave");
    await early.line((line) => line.includes('"gateway":"10.32.0.1"'));
    assertEquals((await early.status).code, 0);
    await host.mustTapkit("attach-vm", "early", "--remove");
  });
  await t.step("twenty at once get an address each, and give it back", async () => {
    const names = Array.from({ length: 20 }, (_, number) => `many-${number}`);
    // Of two processes, neither takes the other's for forgotten.
    const attached = await Promise.all([
      host.mustTapkit("attach-vm", ...names.slice(0, 10)),
      host.mustTapkit("attach-vm", ...names.slice(10)),
    ]);
    for (const { stderr } of attached) assert(!stderr.includes("forgotten"), stderr);
    const given = attached.flatMap(({ json }) => json)
      .map(({ interfaces }) => interfaces[0].addresses[0].address);
    assertEquals(new Set(given).size, 20);
    assertEquals(Object.values(await router.owners()).sort(), given.sort());
    await host.mustTapkit("attach-vm", "--all", "--remove");
    assertEquals(await router.owners(), {});
  });
  await t.step("two networks: the first one's default route stays", async () => {
    const { json: [record] } = await host.mustTapkit(
      ...["attach-vm", "two", "--network", "weave", "--network", "flat"] as const,
    );
    const routed = record.interfaces.map((
      { network, routes }: { network: string; routes: { gw?: string }[] },
    ) => [network, routes.map(({ gw }) => gw)]);
    assertEquals(routed, [["weave", ["10.32.0.1"]], ["flat", []]]);
    assertEquals(await check(host, "two"), { code: 0, problems: [] });
    await host.mustTapkit("attach-vm", "two", "--remove");
    assertEquals(await router.owners(), {});
  });
  await t.step("given twice, it is refused before anything is made", async () => {
    const twice = ["--network", "weave", "--network", "weave"];
    const { code, stderr } = await host.tapkit("attach-vm", "twice", ...twice);
    assertEquals(code, 2);
    assertMatch(
      stderr,
      /network "weave" cannot be given twice: its plugin "weave-net" names links/,
    );
    assertEquals(await router.owners(), {});
  });
  await t.step(
    "restricted egress holds, and nothing untrue is said of the neighbours",
    async () => {
      const deny = ["--deny-egress", "192.0.2.2/32"];
      const { json: [record], stderr } = await host.mustTapkit("attach-vm", "shut", ...deny);
      assert(!/neighbour|past the host/.test(stderr), stderr);
      await using guest = await NetnsGuest.start(host, record);
      await guest.dhcp();
      assertEquals(await fetchName(guest, "192.0.2.2", 8000), "closed");
      await host.mustTapkit("attach-vm", "shut", "--remove");
    },
  );
  await t.step(
    "a router that hangs keeps nobody else waiting, and a signal ends the wait",
    async () => {
      await host.mustTapkit("attach-vm", "web");
      await host.sh("docker pause weave");
      await using late = attaching("late");
      await late.line((line) => /waiting for Weave Net's router/.test(line));
      await host.mustTapkit("attach-vm", "other", "--network", "flat");
      await using interrupted = attaching("interrupted");
      await interrupted.line((line) => /waiting for Weave Net's router/.test(line));
      interrupted.kill("SIGINT");
      await interrupted.line((line) => /what was begun is undone/.test(line));
      assertEquals((await interrupted.status).code, 130);
      await late.line((line) =>
        /router has not answered within 5 s: see setup-weave --check/.test(line)
      );
      assertEquals((await late.status).code, 1);
      await host.sh("docker unpause weave");
      const { json } = await host.mustTapkit("attach-vm", "--list");
      assertEquals(json.map(({ vm }) => vm), ["other", "web"]);
      await eventually(
        5000,
        "only web has an address",
        async () => Object.keys(await router.owners()).length === 1,
      );
    },
  );
  await t.step("one that was left half removed does not come back by --restore", async () => {
    await router.stop();
    assertEquals((await host.tapkit("attach-vm", "web", "--remove")).code, 1);
    await router.restart();
    assertEquals(Object.keys(await router.owners()).length, 1);
    const { json, stderr } = await host.mustTapkit("attach-vm", "--restore");
    assertEquals(json.map(({ vm }) => vm), ["other"], stderr);
    assertEquals(await router.owners(), {});
  });
});
