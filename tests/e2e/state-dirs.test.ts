/**
 * Several state directories on one host: none of them touches what another one has attached.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { reboot } from "../support/reboot.ts";

const POOL = "/var/lib/cni/networks/ignite-cni-bridge";

/** A host with a LAN, and its two state directories: the first has VMs, the second comes to them. */
const PAIRS: readonly (readonly [first: string, second: string])[] = [
  ["/var/lib/tapkit", "/var/lib/other"],
  ["/var/lib/other", "/var/lib/tapkit"],
  ["/var/lib/one", "/var/lib/two"],
];

Deno.test("attach-vm --state-dir: a VM of another directory is refused by name, and left alone", async () => {
  for (const [first, second] of PAIRS) {
    await using host = await Host.create();
    const peer = await host.addLan();
    const before = await host.snapshot();
    const at = (dir: string) => (...args: string[]) =>
      host.tapkit("attach-vm", ...args, "--state-dir", dir);
    const [one, two] = [at(first), at(second)];
    const { json: [record] } = await one("web", "--ports", "8080:80");
    {
      await using guest = await NetnsGuest.start(host, record);
      await guest.dhcp();
      await guest.serveHttp(80, "the first's");
      const removed = await two("web", "--remove");
      assertEquals([removed.code, removed.json], [0, [{ vm: "web", removed: false }]]);
      assertMatch(
        removed.stderr,
        new RegExp(`"web" of ${first} stays: write --state-dir ${first}`),
      );
      const attached = await two("web", "--ports", "9090:80");
      assertEquals(attached.code, 1);
      assertMatch(
        attached.stderr,
        new RegExp(`the state directory ${first} has a VM "web" already: use --state`),
      );
      // Its own come and go beside it.
      assertEquals((await two("api", "--ports", "9090:80")).code, 0);
      assertEquals((await two("api", "--remove")).code, 0);
      assertEquals((await two("--gc")).json, []);
      assertEquals((await one("web", "--check")).json[0].problems, []);
      assertEquals((await peer.fetch("http://192.0.2.1:8080/")).body, "the first's");
    }
    // After a reboot its address is all that is there of it beside its record.
    await reboot(host);
    await two("web", "--remove");
    await host.must("test", ["-e", `${POOL}/172.18.0.2`]);
    assertEquals((await one("--restore")).json, [record]);
    assertEquals((await one("web", "--remove")).code, 0);
    // Nothing is left that says it was its.
    assertEquals((await two("web")).code, 0);
    assertEquals((await two("web", "--remove")).code, 0);
    await host.assertRestored(before);
    // The resident of each takes it away when it ends.
    for (const directory of new Set(PAIRS.flat())) await host.awaitGone(directory);
  }
});

Deno.test("attach-vm --remove: a VM of a directory that is lost goes by its name", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.mustTapkit("attach-vm", "web", "--state-dir", "/var/lib/other");
  await host.sh("rm -r /var/lib/other");
  assertEquals((await host.mustTapkit("attach-vm", "web", "--remove")).json, [
    { vm: "web", removed: true },
  ]);
  await host.assertRestored(before, {
    except: [/^(file|link|symlink) \/var\/lib\/tapkit\/elsewhere/],
  });
});

Deno.test("attach-vm --gc --exclusive, install-default-cni --remove: VMs of other directories count", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--state-dir", "/var/lib/other");
  const refused = await host.tapkit("install-default-cni", "--remove");
  assertEquals(refused.code, 1);
  assertMatch(refused.stderr, /web/);
  await host.mustTapkit("attach-vm", "--gc", "--exclusive");
  const check = await host.tapkit("attach-vm", "web", "--check", "--state-dir", "/var/lib/other");
  assertEquals(check.json[0].problems, []);
});
