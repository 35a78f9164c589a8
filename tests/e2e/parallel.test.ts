/**
 * Many processes at once: everything comes out as if they had come one after the other.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { Host, type ScriptOutcome } from "../support/host.ts";
import { MadeUpNetwork } from "../support/made-up-network.ts";
import { eventually } from "../support/machine.ts";

/** The objects that attach-vm reads from `--from -`, for VMs of one batch. */
function batch(number: number, size: number, ports: readonly string[] = ["0:80"]): string {
  return Array.from(
    { length: size },
    (_, index) => `${JSON.stringify({ name: `vm${number}-${index}`, ports })}\n`,
  ).join("");
}

async function attachBatch(host: Host, stdin: string): Promise<ScriptOutcome> {
  return await host.mustTapkit("attach-vm", "--from", "-", { stdin, timeoutMs: 240_000 });
}

/** Asserts that no two VMs share an address, a MAC, a host port or a link. */
// deno-lint-ignore no-explicit-any
async function assertDistinct(host: Host, records: any[]): Promise<void> {
  // deno-lint-ignore no-explicit-any
  const values: [string, (record: any) => unknown][] = [
    ["address", ({ interfaces: [link] }) => link.addresses[0].address],
    ["MAC", ({ interfaces: [link] }) => link.mac],
    ["host port", ({ ports: [port] }) => port.hostPort],
  ];
  for (const [what, value] of values) {
    assertEquals(new Set(records.map(value)).size, records.length, `a shared ${what}`);
  }
  const links = JSON.parse(await host.must("ip", ["-j", "link", "show", "master", "ignite0"]));
  assertEquals(links.length, records.length, "bridge ports");
  assertEquals((await host.mustTapkit("attach-vm", "--list")).json.length, records.length);
}

Deno.test("parallel: sixty-four VMs from sixteen processes, each with what is its own", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const batches = Array.from({ length: 16 }, (_, number) => batch(number, 4));
  const outcomes = await Promise.all(batches.map((text) => attachBatch(host, text)));
  const records = outcomes.flatMap(({ json }) => json);
  assertEquals(records.length, 64);
  await assertDistinct(host, records);
  const names = records.map(({ vm }) => vm);
  const check = await host.tapkit("attach-vm", ...names, "--check");
  assertEquals([check.code, check.json.flatMap(({ problems }) => problems)], [0, []], check.stderr);

  const removals = [0, 1, 2, 3].map((part) => names.filter((_, index) => index % 4 === part));
  await Promise.all(
    removals.map((part) =>
      host.mustTapkit("attach-vm", ...part, "--remove", { timeoutMs: 240_000 })
    ),
  );
  await host.assertRestored(before);
});

Deno.test("parallel: two batches on one pool, while another VM's ports change", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  const ports = ["8081:80", "none", "8082:80", "8083:81"];
  const changePorts = async () => {
    for (const port of ports) await host.mustTapkit("attach-vm", "web", "--ports", port);
  };
  const [one, two] = await Promise.all([
    attachBatch(host, batch(1, 12)),
    attachBatch(host, batch(2, 12)),
    changePorts(),
  ]);
  const [web] = (await host.mustTapkit("attach-vm", "web")).json;
  assertEquals(web.ports, [{ hostIP: "0.0.0.0", hostPort: 8083, vmPort: 81, protocol: "tcp" }]);
  const records = [...one.json, ...two.json, web];
  await assertDistinct(host, records);
  const names = records.map(({ vm }) => vm);
  const check = await host.tapkit("attach-vm", ...names, "--check");
  assertEquals([check.code, check.json.flatMap(({ problems }) => problems)], [0, []], check.stderr);
  await host.mustTapkit("attach-vm", ...names, "--remove");
  await host.assertRestored(before);
});

Deno.test("parallel: attach against remove of one name ends in one of the two states", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  for (let round = 0; round < 6; round++) {
    const attach = () => host.tapkit("attach-vm", "web", "--ports", "8080:80");
    const remove = () => host.tapkit("attach-vm", "web", "--remove");
    const together = round % 2 === 0 ? [attach(), remove()] : [remove(), attach(), remove()];
    for (const { code, stderr } of await Promise.all(together)) assertEquals(code, 0, stderr);
    const { code, json: [{ problems }] } = await host.tapkit("attach-vm", "web", "--check");
    if (code !== 0) {
      assertEquals([code, problems], [3, ['VM "web" is not attached']]);
      await host.assertRestored(before);
    }
  }
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("parallel: one name from many processes is attached once", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const outcomes = await Promise.all(
    Array.from({ length: 8 }, () => host.mustTapkit("attach-vm", "web", "--ports", "8080:80")),
  );
  const [first, ...others] = outcomes.map(({ json }) => json[0]);
  assert(first !== undefined);
  for (const other of others) assertEquals(other, first);
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("parallel: VMs wait for their network's plugin together, in one call and in many", async (t) => {
  const VMS = 64;
  for (const calls of [1, 8]) {
    await t.step(`${calls} calls for ${VMS} VMs`, async () => {
      await using host = await Host.create();
      await host.addLan();
      const network = await MadeUpNetwork.install(host);
      const before = await host.snapshot();
      await network.hang();
      const attaching = Promise.all(
        Array.from({ length: calls }, (_, number) => attachBatch(host, batch(number, VMS / calls))),
      );
      await eventually(120_000, "the plugin of every VM runs", async () => {
        return await network.called("ADD") === VMS;
      });
      await network.start();
      const records = (await attaching).flatMap(({ json }) => json);
      assertEquals(new Set(Object.values(await network.given())).size, VMS);
      const ports = records.map(({ ports: [port] }) => port.hostPort);
      assertEquals(new Set(ports).size, VMS, "a shared host port");
      await host.mustTapkit("attach-vm", "--remove", "--all", { timeoutMs: 240_000 });
      // Its own bridge may rely on forwarding by now.
      await host.assertRestored(before, { except: [/^sysctl ipv4/, /mubr0/, /made-up/] });
    });
  }
});
