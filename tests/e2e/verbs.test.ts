import { assert, assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";

Deno.test("attach-vm --list, --check, --remove: of some VMs, or of all", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const { json: records } = await host.mustTapkit("attach-vm", "a", "b", "c", "--ports", "0:80");
  assertEquals((await host.mustTapkit("attach-vm", "--list")).json, records);
  assertEquals((await host.mustTapkit("attach-vm", "c", "a", "--list")).json, [
    records[2],
    records[0],
  ]);
  const qemu = await host.mustTapkit("attach-vm", "a", "--list", "--output", "qemu");
  assertMatch(qemu.stdout, /^-netdev tap,id=eth0,/);
  const partly = await host.tapkit("attach-vm", "a", "typo", "--list", "--output", "qemu");
  assertEquals([partly.code, partly.stdout], [1, qemu.stdout]);
  assertEquals(
    partly.stderr,
    'attach-vm: cannot list "typo": it is not attached: see attach-vm --list\n',
  );

  const healthy = ["a", "b", "c"].map((vm) => ({ vm, problems: [] }));
  assertEquals((await host.mustTapkit("attach-vm", "--check")).json, healthy);
  assertEquals((await host.mustTapkit("attach-vm", "--check", "--all")).json, healthy);
  const missing = await host.tapkit("attach-vm", "a", "typo", "--check");
  assertEquals([missing.code, missing.json], [3, [
    healthy[0],
    { vm: "typo", problems: ['VM "typo" is not attached'] },
  ]]);

  for (const args of [["--remove"], ["list"], ["rm", "a"], ["a", "--remove", "--all"]]) {
    const refused = await host.tapkit("attach-vm", ...args);
    assertEquals([refused.code, refused.stdout], [2, ""], refused.stderr);
  }
  assertEquals((await host.mustTapkit("attach-vm", "--list")).json, records);

  // A record of which nothing can be told is one of all, too.
  await host.sh("echo '{' >/var/lib/tapkit/vms/b.json");
  const torn = await host.tapkit("attach-vm", "--check");
  assertEquals([torn.code, torn.json], [1, [healthy[0], healthy[2]]]);
  assertMatch(torn.stderr, /^attach-vm: cannot check "b": [^\n]+\n$/);
  const removed = await host.mustTapkit("attach-vm", "--remove", "--all");
  assertEquals(removed.json, ["a", "b", "c"].map((vm) => ({ vm, removed: true })));
  await host.assertRestored(before);
  for (const args of [["--remove", "--all"], ["--check"], ["--list"]]) {
    const none = await host.mustTapkit("attach-vm", ...args);
    assertEquals([none.stdout, none.stderr], ["", ""]);
  }
  await host.assertRestored(before);
});

Deno.test("attach-vm: a VM that is called as a verb from before is looked at, and removed", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.sh(
    `${Deno.execPath()} eval 'import { attachVm } from "${Deno.cwd()}/mod.ts"; ` +
      `await attachVm({ name: "list" })'`,
  );
  // Nobody was asked to answer DHCP, but by this.
  assertEquals((await host.mustTapkit("attach-vm", "--restore")).json[0].vm, "list");
  assertEquals((await host.mustTapkit("attach-vm", "list", "--list")).json[0].vm, "list");
  assertEquals((await host.mustTapkit("attach-vm", "list", "--check")).json[0].problems, []);
  assertEquals((await host.tapkit("attach-vm", "list")).code, 2);
  await host.mustTapkit("attach-vm", "list", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm: what a flush took is mended with a line, and TAPKIT_DEBUG names each part", async () => {
  await using host = await Host.create();
  await host.addLan();
  const ports = ["8080:80", "53:53/udp", "9000-9009:9000-9009"].flatMap((
    port,
  ) => ["--ports", port]);
  await host.mustTapkit("attach-vm", "web", ...ports);
  const flush = async (env: Record<string, string>) => {
    await host.must("nft", ["flush", "ruleset"]);
    const { json: [{ problems }] } = await host.tapkit("attach-vm", "web", "--check");
    assert(problems.length > 10);
    const { stderr } = await host.mustTapkit("attach-vm", "web", { env });
    await host.mustTapkit("attach-vm", "web", "--check");
    return { problems, lines: stderr.trimEnd().split("\n") };
  };
  const { problems, lines } = await flush({});
  assertEquals(lines, [
    `attach-vm: repairing "web": its rules and settings (${problems.length}); ` +
    "TAPKIT_DEBUG=1 names each difference",
  ]);
  const detailed = await flush({ TAPKIT_DEBUG: "1" });
  assertEquals(
    detailed.lines.slice(1),
    problems.map((problem: string) => `attach-vm: repairing: ${problem}`),
  );
});

Deno.test("attach-vm --gc --exclusive: executes what attaching executes, and nothing for built-in plugins", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const ipam = { type: "host-local", subnet: "10.6.0.0/24" };
  const plugins = [{ type: "bridge", bridge: "br-x", ipam }, { type: "firewall" }];
  await host.writeFile(
    "/etc/cni/net.d/10-x.conflist",
    JSON.stringify({ cniVersion: "1.1.0", name: "x", plugins }),
  );
  const calls = async () => (await host.sh("cat /run/calls; : >/run/calls")).trim();
  const bin = { env: { CNI_PATH: "/opt/plugins" } };
  const gc = async () => {
    const { stdout, stderr } = await host.mustTapkit("attach-vm", "--gc", "--exclusive", bin);
    assertEquals([stdout, stderr], ["", ""]);
    return await calls();
  };
  await host.sh(": >/run/calls");
  // None of them is there: nothing is missed.
  await host.mustTapkit("attach-vm", "web", bin);
  assertEquals(await gc(), "");
  for (const type of ["bridge", "host-local", "firewall"]) {
    await host.writeFile(
      `/opt/plugins/${type}`,
      `#!/bin/sh\necho "${type} $CNI_COMMAND" >>/run/calls\n`,
      0o755,
    );
  }
  assertEquals(await gc(), "");
  await host.mustTapkit("attach-vm", "web", "--check");
  await host.mustTapkit("attach-vm", "web", "--remove");
  // Now attaching would execute them.
  assertEquals(await gc(), "bridge GC\nfirewall GC");
  await host.sh("rm -r /opt/plugins /etc/cni/net.d /run/calls");
  await host.assertRestored(before);
});
