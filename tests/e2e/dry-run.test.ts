import { assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";

/** What comes by itself: the resident that attaching starts, and the bridge's IPv6 address. */
const SETTLING = [/serve-dhcp/, /fe80::/];

/** Runs a command, which has to succeed, and asserts that it changed nothing. */
async function rehearsed(host: Host, script: string, ...args: string[]) {
  const before = await host.snapshot();
  const { stdout, stderr } = await host.mustTapkit(script, ...args, "--dry-run");
  await host.assertRestored(before, { strict: true, except: SETTLING });
  return { plan: JSON.parse(stdout), stderr };
}

/** `"rules changed"`, …. */
function changesOf(plan: { changes: { layer: string; change: string }[] }): string[] {
  return plan.changes.map(({ layer, change }) => `${layer} ${change}`);
}

Deno.test("attach-vm --dry-run: on a bare host it says what would be made, and makes nothing", async () => {
  await using host = await Host.create();
  await host.addLan();
  const { plan, stderr } = await rehearsed(host, "attach-vm", "web", "--ports", "8080:80");
  assertEquals(plan, {
    vm: "web",
    changes: [
      { layer: "netns", object: "network namespace /run/netns/tapkit-web", change: "created" },
      { layer: "network", object: 'eth0 on network "ignite-cni-bridge"', change: "created" },
      { layer: "wire", object: 'TAP "vm_eth0"', change: "created" },
      { layer: "guard", object: 'the guards of "web"', change: "created" },
      { layer: "rules", object: "the rules of web/eth0", change: "created" },
      { layer: "sysctls", object: "settings of the kernel for web/eth0", change: "created" },
    ],
    tapReplaced: false,
  });
  assertMatch(stderr, /would install \/etc\/cni\/net\.d\/10-ignite\.conflist: network/);
  assertEquals(stderr.includes(": installed"), false);
  const { done } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  assertEquals(done, [{ changes: plan.changes, tapReplaced: false }]);
});

Deno.test("attach-vm --dry-run: an attached VM's repairs and changes, as the command then does them", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  assertEquals(changesOf((await rehearsed(host, "attach-vm", "web")).plan), []);
  const other = await rehearsed(host, "attach-vm", "web", "--ports", "8081:80");
  assertEquals(changesOf(other.plan), ["rules changed", "sysctls changed"]);
  const changed = await host.mustTapkit("attach-vm", "web", "--ports", "8081:80");
  assertEquals(changed.done, [{ changes: other.plan.changes, tapReplaced: false }]);

  await host.must("ip", ["-n", "tapkit-web", "link", "delete", "vm_eth0"]);
  const lost = await rehearsed(host, "attach-vm", "web");
  assertEquals(changesOf(lost.plan), ["wire recreated", "guard recreated"]);
  assertEquals(lost.plan.tapReplaced, true);
  const mended = await host.mustTapkit("attach-vm", "web");
  assertEquals(mended.done, [{ changes: lost.plan.changes, tapReplaced: true }]);
  await host.must("nft", ["delete", "table", "inet", "tapkit"]);
  const flushed = await rehearsed(host, "attach-vm", "web");
  const kinds = new Set(changesOf(flushed.plan));
  assertEquals([...kinds].every((kind) => kind.endsWith(" repaired")), true, [...kinds].join());
  assertEquals(kinds.has("rules repaired"), true);
});

Deno.test("attach-vm --dry-run: what attaching refuses is refused, in the same words", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  await host.serveHttp(9000, "of the host");
  for (
    const args of [
      ["api", "--ports", "8080:80"],
      ["api", "--ports", "9000:80"],
      ["api", "--network", "nowhere"],
      ["api", "--netns", "/run/netns/none"],
      ["web", "--ip", "172.18.0.9"],
      ["api", "--isolated", "--ports", "bad"],
    ]
  ) {
    const before = await host.snapshot();
    const dry = await host.tapkit("attach-vm", ...args, "--dry-run");
    await host.assertRestored(before, { strict: true, except: SETTLING });
    const real = await host.tapkit("attach-vm", ...args);
    assertEquals([dry.code, dry.stderr], [real.code, real.stderr], args.join(" "));
    assertEquals(real.code === 0, false, args.join(" "));
  }
});

Deno.test("attach-vm --remove --dry-run: what would go, of one VM and of all", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "api");
  const { plan } = await rehearsed(host, "attach-vm", "web", "--remove");
  const gone = ["sysctls", "rules", "guard", "wire", "network", "netns"];
  assertEquals(changesOf(plan), gone.map((layer) => `${layer} removed`));
  const before = await host.snapshot();
  const all = await host.mustTapkit("attach-vm", "--remove", "--all", "--dry-run");
  assertEquals(all.json.map(({ vm }: { vm: string }) => vm).sort(), ["api", "web"]);
  await host.assertRestored(before, { strict: true, except: SETTLING });
  assertEquals(changesOf((await rehearsed(host, "attach-vm", "none", "--remove")).plan), []);
  // Of one whose record is lost, what there are signs of.
  await host.sh("rm /var/lib/tapkit/vms/web.json");
  const lost = await rehearsed(host, "attach-vm", "web", "--remove");
  assertEquals(changesOf(lost.plan), ["netns removed"]);
});

Deno.test("map-port --dry-run: the mappings that there would be", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  const [held] = (await host.mustTapkit("map-port", "web", "--list")).json;
  const more = await rehearsed(host, "map-port", "web", "8081:81");
  assertEquals(changesOf(more.plan), ["rules changed", "sysctls changed"]);
  assertEquals(
    more.plan.ports.map(({ hostPort }: { hostPort: number }) => hostPort),
    [8080, 8081],
  );
  const same = await rehearsed(host, "map-port", "web", "8080:80");
  assertEquals([changesOf(same.plan), same.plan.ports], [[], held.ports]);
  const less = await rehearsed(host, "map-port", "web", "8080:80", "--remove");
  assertEquals([changesOf(less.plan).length, less.plan.ports], [2, []]);
  assertEquals((await host.mustTapkit("map-port", "web", "--list")).json, [held]);
  const address = await rehearsed(host, "map-port", "--to", "192.0.2.2", "8082:80");
  assertEquals(changesOf(address.plan), ["rules created", "sysctls created"]);
  await host.mustTapkit("map-port", "--to", "192.0.2.2", "8082:80");
  const last = await rehearsed(host, "map-port", "--to", "192.0.2.2", "8082:80", "--remove");
  assertEquals([changesOf(last.plan), last.plan.ports], [["sysctls removed", "rules removed"], []]);
});

Deno.test("--dry-run: with flags that do not go with it", async () => {
  await using host = await Host.create();
  for (
    const [script, ...args] of [
      ["attach-vm", "--list"],
      ["attach-vm", "--gc"],
      ["attach-vm", "web", "--check"],
      ["attach-vm", "web", "--output", "env"],
      ["map-port", "web", "--list"],
    ] as const
  ) {
    const { code, stderr } = await host.tapkit(script, ...args, "--dry-run");
    assertEquals(code, 2, stderr);
    assertMatch(stderr, /--dry-run.*(leave it out)/);
  }
});
