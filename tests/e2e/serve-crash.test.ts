/** The resident, killed in the middle of a request: the next one, or a command, goes on. */

import { assert, assertEquals } from "@std/assert";
import { type Effect, runWithFault, traceEffects } from "../support/effects.ts";
import { Host } from "../support/host.ts";
import { ROOT } from "../support/machine.ts";
import { ResidentServer } from "../support/resident.ts";

/** A resident that takes one request, from itself, and ends. */
const ONCE = `
import { connect, serve } from "${ROOT}/mod.ts";
const stop = new AbortController();
const serving = serve({ signal: stop.signal });
using resident = await connect();
while (!await resident.health().then(() => true, () => false)) await new Promise((r) => setTimeout(r, 5));
await resident.attachVm({ name: "web", ports: ["8080:80"] });
stop.abort();
await serving;
`;

/** How many of the effects are taken. */
const SAMPLES = 8;

const WORDS = ["eval", "--config", `${ROOT}/deno.json`, "--ext=ts", ONCE];

Deno.test("serve: SIGKILL in the middle of a request loses nothing", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const clean = async () => {
    await host.mustTapkit("attach-vm", "web", "--remove");
    await host.must("rm", ["-rf", "/run/tapkit", "/var/lib/tapkit"]);
    await host.assertRestored(before, { except: [/tapkit\.sock/] });
  };
  const effects = (await traceEffects(host, Deno.execPath(), WORDS)).filter(changesHost);
  await clean();
  assert(effects.length > 2 * SAMPLES, `${effects.length} effects`);
  const step = effects.length / SAMPLES;
  for (let n = 0; n < SAMPLES; n++) {
    const effect = effects[Math.floor((n + 0.5) * step)]!;
    await runWithFault(host, effect, "SIGKILL", Deno.execPath(), WORDS);
    if (n % 2 === 0) {
      await using server = await ResidentServer.start(host);
      const { record } = await server.client.attachVm({ name: "web", ports: ["8080:80"] });
      assertEquals(record.ports.length, 1);
      assertEquals(await server.client.checkVm("web"), [], effect.what);
      assertEquals((await server.end()).code, 0);
    } else {
      await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
      const { json: [{ problems }] } = await host.mustTapkit("attach-vm", "web", "--check");
      assertEquals(problems, [], effect.what);
    }
    await clean();
  }
});

/** The runtime's own calls are left out. */
function changesHost({ syscall, what }: Effect): boolean {
  return !syscall.startsWith("clone") && !/MSG_NOSIGNAL/.test(what);
}
