/** The resident's beginning and end: its socket, signals, clients that go away, and death. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { Host } from "../support/host.ts";
import { eventually } from "../support/machine.ts";
import { postLines, ResidentServer } from "../support/resident.ts";

const SOCKET = "/run/tapkit/tapkit.sock";

/** A network whose plugin takes very long to add anything. */
async function slowHost(): Promise<Host> {
  const host = await Host.create();
  const plugins = [{ type: "slow" }];
  const network = { cniVersion: "1.0.0", name: "slow", plugins };
  await host.writeFile("/etc/cni/net.d/20-slow.conflist", JSON.stringify(network));
  await host.writeFile(
    "/opt/cni/bin/slow",
    `#!/bin/sh
    [ $CNI_COMMAND = ADD ] || exit 0
    sleep 777 & wait`,
    0o755,
  );
  return host;
}

/** Whether the plugin is at work. */
async function isAtWork(host: Host): Promise<boolean> {
  return (await host.run("pgrep", ["-fx", "sleep 777"])).code === 0;
}

async function atWork(host: Host): Promise<void> {
  await eventually(10_000, "the plugin is at work", () => isAtWork(host));
}

Deno.test("serve: one process at a socket; what a killed one left is replaced", async () => {
  await using host = await Host.create();
  await using first = await ResidentServer.start(host);
  assertEquals(
    await host.sh(`stat -c '%a %F' ${SOCKET} /run/tapkit`),
    "600 socket\n755 directory\n",
  );
  const env = { TAPKIT_SOCKET: "" };
  const second = await host.tapkit("serve", { env });
  assertEquals(second.code, 1);
  assertMatch(second.stderr, /^serve: another process answers DHCP for/);
  const elsewhere = await host.tapkit("serve", "--state-dir", "/var/lib/other", { env });
  assertEquals(elsewhere.code, 1);
  assertMatch(elsewhere.stderr, /^serve: another process answers at \/run\/tapkit\/tapkit.sock/);
  await first.end("SIGKILL");
  assertEquals((await host.run("test", ["-S", SOCKET])).code, 0);
  await using third = await ResidentServer.start(host);
  assertEquals((await third.ask("GET", "/v1/health")).status, 200);
  const ended = await third.end("SIGINT");
  assertEquals(ended.code, 0);
  assertMatch(ended.stderr, /^serve: takes requests at \S+\n$/);
  assertEquals((await host.run("test", ["-e", "/run/tapkit"])).code, 1);
  await host.writeFile("/run/file", "mine");
  const file = await host.tapkit("serve", "--socket", "/run/file");
  assertEquals([file.code, await host.readFile("/run/file")], [1, "mine"]);
});

Deno.test("serve --exit-when-idle: ends after the last VM, when its request is answered", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.mustTapkit("attach-vm", "web");
  await host.awaitDhcp();
  await host.must("pkill", ["-f", "--", "--exit-when-idle"]);
  await host.sh("while pgrep -f -- [-]-exit-when-idle >/dev/null; do sleep 0.02; done");
  await using server = await ResidentServer.start(host, { args: ["--exit-when-idle"] });
  await server.client.attachVm({ name: "api" });
  assertEquals(await server.client.removeVm("web"), true);
  assertEquals((await server.client.health()).vms, 1);
  assertEquals(await server.client.removeVm("api"), true);
  assertEquals((await server.process.status).code, 0);
  await host.assertRestored(before);
});

Deno.test("serve: SIGTERM undoes what is under way, which is answered; then the socket goes", async () => {
  await using host = await slowHost();
  const before = await host.snapshot();
  await using server = await ResidentServer.start(host);
  const one = server.ask("POST", "/v1/vms", { name: "web" });
  await atWork(host);
  const many = await server.raw(postLines(["a", "b"]));
  // Then it has been taken.
  const head = new Uint8Array(1);
  await many.read(head);
  const ended = server.end();
  const answer = await one;
  assertEquals([answer.status, answer.json.error.message], [503, "the resident ends"]);
  assertEquals(answer.headers.get("retry-after"), "1");
  const text = await new Response(many.readable).text();
  const lines = text.split("\n").filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line));
  assert(lines.every(({ error }) => error.class === "TapkitError"), JSON.stringify(lines));
  assertEquals(lines.map(({ name }) => name).toSorted(), ["a", "b"]);
  assertEquals((await ended).code, 0);
  await host.must("rm", ["-rf", "/var/lib/tapkit"]);
  await host.assertRestored(before);
});

Deno.test("serve: who connects while it ends is answered; connect asks the one that follows", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await using first = await ResidentServer.start(host);
  // So all that is sent waits to be read when it hears of its end.
  first.process.kill("SIGSTOP");
  const attaching = first.client.attachVm({ name: "web" });
  const health = "GET /v1/health HTTP/1.0\r\n\r\n";
  const others = await Promise.all(Array.from({ length: 50 }, () => first.raw(health)));
  const ended = first.end();
  first.process.kill("SIGCONT");
  const answers = await Promise.all(
    others.map(async ({ readable }) => await new Response(readable).text()),
  );
  for (const answer of answers) assertMatch(answer, /^HTTP\/1\.0 (200|503) /);
  assertEquals((await ended).code, 0);
  await using second = await ResidentServer.start(host);
  assertEquals((await attaching).record.vm, "web");
  assertEquals(await second.client.removeVm("web"), true);
  await second.end();
  await host.assertRestored(before);
});

Deno.test("serve: a client that goes away interrupts its request; other clients are served meanwhile", async () => {
  await using host = await slowHost();
  await using server = await ResidentServer.start(host);
  const before = await host.snapshot();
  const gone = new AbortController();
  const attaching = server.client.attachVm({ name: "web" }, { signal: gone.signal });
  attaching.catch(() => {});
  await atWork(host);
  assertEquals((await server.client.listVms()).length, 0);
  assert(await isAtWork(host));
  gone.abort(new Error("enough"));
  await assertRejects(() => attaching, Error, "enough");
  await host.assertRestored(before);
  // Of many, those that have not begun do not begin.
  const many = await server.raw(postLines(["vm0", "vm1", "vm2"]));
  await atWork(host);
  many.close();
  await host.assertRestored(before);
  assertEquals((await server.end()).code, 0);
});
