/** docs/resident.md: its examples run, and its table has the routes that there are. */

import { assertEquals } from "@std/assert";
import { operations } from "../../lib/resident/api.ts";
import { Host } from "../support/host.ts";
import { eventually, ROOT } from "../support/machine.ts";
import { pageBlocks } from "../support/page.ts";
import { ResidentServer } from "../support/resident.ts";

const PAGE = Deno.readTextFileSync(`${ROOT}/docs/resident.md`);

const blocks = (language: string) => pageBlocks("resident.md", language);

async function hostWithResident() {
  const host = await Host.create();
  await host.addLan();
  return { host, server: host.own(await ResidentServer.start(host)) };
}

Deno.test("docs/resident.md: curl", async () => {
  const { host, server } = await hostWithResident();
  await using _host = host;
  const [single = "", many = ""] = blocks("sh");
  const lines = single.trim().split("\n");
  const answers = [];
  for (const line of lines) answers.push(JSON.parse(await host.sh(line)));
  const [attached, record, check, removed] = answers;
  assertEquals(attached.record, record);
  assertEquals([check.problems, removed.removed], [[], true]);
  const done = (await host.sh(many)).trim().split("\n").map((line) => JSON.parse(line));
  assertEquals(done.map(({ name, removed }) => [name, removed]), [
    ...["vm1", "vm2", "vm3"].map((name) => [name, undefined]),
    ...["vm1", "vm2", "vm3"].map((name) => [name, true]),
  ]);
  assertEquals((await server.end()).code, 0);
});

Deno.test("docs/resident.md: Python", async () => {
  const { host, server } = await hostWithResident();
  await using _host = host;
  const [code = ""] = blocks("python");
  assertEquals(await host.must("python3", ["-c", code]), "vm_eth0\n");
  const refused = await host.run("python3", ["-c", code.replace('"web"', '"a b"')]);
  assertEquals([refused.code, refused.stderr.includes("a b")], [1, true]);
  assertEquals((await server.end()).code, 0);
});

Deno.test("docs/resident.md: Deno", async () => {
  const { host, server } = await hostWithResident();
  await using _host = host;
  const [code = ""] = blocks("ts");
  await host.writeFile("/tmp/example.ts", code.replace("./mod.ts", `${ROOT}/mod.ts`));
  const flags = /`deno run([^`]*)`/.exec(PAGE)![1]!.trim().split(/\s+/);
  const config = ["--no-prompt", "--config", `${ROOT}/deno.json`];
  const example = host.spawn(Deno.execPath(), ["run", ...config, ...flags, "/tmp/example.ts"]);
  await example.line((line) => line === "vm_eth0");
  await eventually(10_000, "it hears of an event", async () => {
    await server.client.attachVm({ name: "api" });
    await server.client.removeVm("api");
    return example.lines.includes("removed api");
  });
  assertEquals((await server.end()).code, 0);
});

Deno.test("docs/resident.md: Go", async () => {
  const { host, server } = await hostWithResident();
  await using _host = host;
  await host.writeFile("/tmp/example/main.go", blocks("go")[0]!);
  const env = { GOCACHE: "/tmp/go", HOME: "/tmp" };
  const go = { env, timeoutMs: 300_000 };
  assertEquals(
    await host.must("go", ["run", "/tmp/example/main.go"], go),
    "/run/netns/tapkit-web\n",
  );
  assertEquals((await server.end()).code, 0);
});

Deno.test("docs/resident.md: names each route", () => {
  const named = PAGE.replaceAll(/NAME|ADDRESS|\bID\b/g, "{}");
  const lacking = operations().map(({ path }) => path.replace(/\{\w+\}/, "{}"))
    .filter((path) => !named.includes(path));
  assertEquals([...new Set(lacking)], []);
});
