/** Two hosts on one LAN, joined by setup-weave, with an image that stands in for Weave Net's. */

import { assertEquals, assertMatch } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { fetchName } from "../support/http.ts";
import { eventually } from "../support/machine.ts";
import { inspectContainer, weaveHost, weaveHosts } from "../support/weave/host.ts";

const BOTH = "192.0.2.10,192.0.2.11";

Deno.test("setup-weave: joins two hosts, and changes their peers while they run", async (t) => {
  const [one, two] = await weaveHosts();
  await using _one = one;
  await using _two = two;
  const state = async (host = one, ...args: string[]) =>
    (await host.mustTapkit("setup-weave", ...args)).json[0];

  await t.step(
    "the first host says for whom it waits, and goes on waiting without us",
    async () => {
      const { code, stderr } = await one.tapkit("setup-weave", "--peers", BOTH, "--wait", "3");
      assertEquals(code, 1);
      const lines = stderr.trim().split("\n").filter((line) => !/: (warning:|set )/.test(line));
      assertMatch(
        lines[0]!,
        /^setup-weave: waiting: no addresses are given out before 2 of the peers are connected, and 1 are: not connected: 192\.0\.2\.11/,
      );
      assertMatch(
        lines.at(-1)!,
        /^setup-weave: Weave Net is not ready after 3 s: no addresses .*192\.0\.2\.11 .*: run setup-weave on the other hosts, then here again; the container goes on$/,
      );
      assertEquals(new Set(lines).size, lines.length);
      assertEquals((await inspectContainer(one)).State.Running, true);
      const { json: [checked], code: differs } = await one.tapkit("setup-weave", "--check");
      assertEquals([differs, checked.ready], [3, false]);
    },
  );

  await t.step("with the second one both are ready, and connected", async () => {
    const [first, second] = await Promise.all([
      state(one, "--peers", BOTH),
      state(two, "--peers", BOTH),
    ]);
    assertEquals([first.ready, second.ready], [true, true]);
    assertEquals(second.primaryIP, "192.0.2.11");
    await eventually(10_000, "both are connected", async () => {
      const checks = await Promise.all(
        [one, two].map((host) => host.tapkit("setup-weave", "--check")),
      );
      return checks.every(({ code }) => code === 0);
    });
    const { connections } = await state(one);
    assertEquals(
      connections.map(({ peer, state }: { peer: string; state: string }) => [peer, state]),
      [
        ["192.0.2.11", "established"],
      ],
    );
  });

  await t.step("a guest on one host fetches a page from a guest on the other", async () => {
    const guests = [];
    for (const [host, name] of [[one, "left"], [two, "right"]] as const) {
      const { json: [record] } = await host.mustTapkit("attach-vm", name);
      assertEquals(record.interfaces[0].network, "weave");
      const guest = host.own(await NetnsGuest.start(host, record));
      await guest.dhcp();
      await guest.serveHttp(80, name);
      guests.push({ guest, ip: record.interfaces[0].addresses[0].address.replace(/\/.*/, "") });
    }
    const [left, right] = guests;
    assertEquals(await fetchName(left!.guest, right!.ip, 80), "right");
    assertEquals(await fetchName(right!.guest, left!.ip, 80), "left");
  });

  await t.step("a router that is replaced leaves its guests connected", async () => {
    await one.writeFile("/password", "secret\n", 0o600);
    await two.writeFile("/password", "secret\n", 0o600);
    const { code, stderr } = await one.tapkit("setup-weave", "--password-file", "/password");
    assertEquals(code, 0, stderr);
    await eventually(10_000, "the other one is refused", async () => {
      const { json: [checked] } = await one.tapkit("setup-weave", "--check");
      return /not connected: 192.0.2.11 \(.*password/.test(checked.problems.join());
    });
    await state(two, "--password-file", "/password");
    await eventually(10_000, "both are connected", async () => {
      const checks = await Promise.all(
        [one, two].map((host) => host.tapkit("setup-weave", "--check")),
      );
      return checks.every(({ code }) => code === 0);
    });
    await one.mustTapkit("attach-vm", "left", "--check");
  });

  await t.step("other peers are connected and forgotten while the router runs", async () => {
    const { Id, State } = await inspectContainer(one);
    const alone = await one.mustTapkit("setup-weave", "--peers", "192.0.2.10");
    assertEquals<unknown>(alone.done[0]?.changes, ["removed the peer 192.0.2.11"]);
    assertEquals((await one.mustTapkit("setup-weave", "--check")).json[0].problems, []);
    const more = await one.mustTapkit("setup-weave", "--peers", `${BOTH},192.0.2.12`);
    assertEquals<unknown>(more.done[0]?.changes, [
      "added the peer 192.0.2.11",
      "added the peer 192.0.2.12",
    ]);
    await eventually(10_000, "the one that is not there is named", async () => {
      const { json: [checked] } = await one.tapkit("setup-weave", "--check");
      return /^not connected: 192.0.2.12/.test(checked.problems.join());
    });
    const again = await inspectContainer(one);
    assertEquals([again.Id, again.State.StartedAt], [Id, State.StartedAt]);
    // A restarted router takes the peers from its own data.
    await one.must("docker", ["restart", "-t", "1", "weave"]);
    assertEquals((await state(one)).peers, ["192.0.2.10", "192.0.2.11", "192.0.2.12"]);
    await state(one, "--peers", BOTH);
  });

  await t.step("one leaves, and tells the other", async () => {
    await two.mustTapkit("attach-vm", "right", "--remove");
    await two.mustTapkit("setup-weave", "--remove", "--purge", "--restore-default");
    await eventually(10_000, "the other one misses it", async () => {
      const { json: [checked] } = await one.tapkit("setup-weave", "--check");
      return /not connected: 192.0.2.11/.test(checked.problems.join());
    });
  });
});

Deno.test("setup-weave: the router lost its data: VMs keep their addresses", async () => {
  await using host = await weaveHost();
  await host.mustTapkit("setup-weave");
  const { json: [record] } = await host.mustTapkit("attach-vm", "web");
  const [{ address }] = record.interfaces[0].addresses;
  await host.sh("docker stop -t 1 weave; rm /var/lib/weave/weave-netdata.db");
  await host.must("docker", ["start", "weave"]);
  const owners = async () =>
    await host.sh("printf 'GET /ip HTTP/1.0\\r\\n\\r\\n' | busybox nc 127.0.0.1 6784");
  await host.mustTapkit("setup-weave");
  assertMatch(await owners(), new RegExp(`"${record.id}","addrs":\\["${address}"\\]`));
  assertEquals((await host.mustTapkit("setup-weave", "--check")).json[0].problems, []);
  await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals((await owners()).includes(record.id), false);
});
