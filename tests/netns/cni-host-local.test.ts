import { assertEquals, assertRejects } from "@std/assert";
import { allocate, release } from "../../lib/cni/plugins/host-local.ts";
import { parseHostLocal } from "../../lib/cni/plugins/host-local-config.ts";
import type { PluginConfig } from "../../lib/cni/types.ts";
import { UndoStack } from "../../lib/undo.ts";
import { CniHost, requireReference, runReference } from "../support/cni-reference.ts";

requireReference();

function configuration(dataDir: string, ipam: Record<string, unknown>): PluginConfig {
  return {
    cniVersion: "1.0.0",
    name: "net",
    type: "host-local",
    ipam: { type: "host-local", dataDir, ...ipam },
  };
}

const holder = (containerId: string) => ({ containerId, ifName: "eth0" });

Deno.test("host-local: gives what the reference plugin gives, configuration by configuration", async () => {
  const cases: [ipam: Record<string, unknown>, runtimeConfig?: Record<string, unknown>][] = [
    [{ subnet: "10.0.0.0/24" }],
    [{ subnet: "10.0.0.0/24", gateway: "10.0.0.9", rangeStart: "10.0.0.9" }],
    [{ subnet: "10.0.0.0/24", rangeStart: "10.0.0.250", routes: [{ dst: "0.0.0.0/0" }] }],
    [{ subnet: "10.0.0.0/30" }],
    [{ ranges: [[{ subnet: "10.0.0.0/24" }], [{ subnet: "fd00:1::/64" }]] }],
    [{ ranges: [[{ subnet: "10.0.0.0/30" }, { subnet: "10.1.0.0/24", rangeEnd: "10.1.0.3" }]] }],
    [{ subnet: "10.0.0.0/24", ranges: [[{ subnet: "fd00:1::/120" }]] }],
    [{ subnet: "10.0.0.0/24" }, { ips: ["10.0.0.40"] }],
    [{ subnet: "fd00:1::/64" }, { ips: ["fd00:1:0::00ab/64"] }],
  ];
  for (const [ipam, runtimeConfig = {}] of cases) {
    using theirs = new CniHost();
    using ours = new CniHost();
    const reference = { ...configuration(theirs.dataDir, ipam), runtimeConfig };
    const expected = await runReference(
      "host-local",
      { command: "ADD", containerId: "a" },
      reference,
    );
    const config = parseHostLocal({ ...configuration(ours.dataDir, ipam), runtimeConfig }, {});
    const { ips, routes, dns } = allocate(config, holder("a"), new UndoStack(), false);
    assertEquals(
      { cniVersion: "1.0.0", ips, dns, ...(routes.length > 0 ? { routes } : {}) },
      expected,
      JSON.stringify(ipam),
    );
    assertEquals(snapshot(ours.dataDir), snapshot(theirs.dataDir), JSON.stringify(ipam));
    // Each takes the other's reservation away.
    await runReference("host-local", { command: "DEL", containerId: "a" }, {
      ...configuration(ours.dataDir, ipam),
    });
    release(parseHostLocal(configuration(theirs.dataDir, ipam), {}), holder("a"));
    assertEquals(snapshot(ours.dataDir), snapshot(theirs.dataDir));
    assertEquals([ours.reserved("net"), theirs.reserved("net")], [[], []]);
  }
});

function snapshot(dataDir: string): Record<string, string> {
  const directory = `${dataDir}/net`;
  return Object.fromEntries(
    [...Deno.readDirSync(directory)]
      .map(({ name }) => [name, Deno.readTextFileSync(`${directory}/${name}`)])
      .sort(),
  );
}

Deno.test("host-local: takes turns with the reference plugin in one pool, down to the last address", async () => {
  using host = new CniHost();
  const conf = configuration(host.dataDir, { subnet: "10.0.0.0/28" });
  const config = parseHostLocal(conf, {});
  const given: string[] = [];
  for (let index = 0; index < 13; index++) {
    const containerId = `c${index}`;
    const { ips } = index % 2 === 0
      ? allocate(config, holder(containerId), new UndoStack(), false)
      : await runReference("host-local", { command: "ADD", containerId }, conf);
    given.push(ips[0].address);
  }
  assertEquals(given, Array.from({ length: 13 }, (_, index) => `10.0.0.${index + 2}/28`));
  await assertRejects(
    () => runReference("host-local", { command: "ADD", containerId: "x" }, conf),
    Error,
    "no IP addresses available",
  );
});

Deno.test("host-local: gives no address twice with the reference plugin in parallel", async () => {
  using host = new CniHost();
  const conf = configuration(host.dataDir, { subnet: "10.0.0.0/24" });
  const worker = new URL("../support/host-local-worker.ts", import.meta.url).pathname;
  const ours = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", worker, JSON.stringify(conf), "40"],
    stdout: "piped",
  }).spawn();
  const theirs = await Promise.all(
    Array.from(
      { length: 40 },
      (_, index) =>
        runReference("host-local", { command: "ADD", containerId: `theirs${index}` }, conf),
    ),
  );
  const { stdout, success } = await ours.output();
  assertEquals(success, true);
  const mine: string[] = JSON.parse(new TextDecoder().decode(stdout));
  const all = [...mine, ...theirs.map(({ ips }) => ips[0].address)];
  assertEquals(new Set(all).size, 80);
  assertEquals(host.reserved("net").length, 80);
});
