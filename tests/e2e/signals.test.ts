/**
 * A signal at each effect of a command: nothing is half done, and one line says what became of it.
 * `TAPKIT_CRASH=all` takes every effect; the ordinary run takes a sample, always the same.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { scriptWords } from "../support/bundle.ts";
import { ALL, SIGNALS, signals, sweepAll } from "../support/crash.ts";
import { runWithFault, traceEffects } from "../support/effects.ts";
import { Host } from "../support/host.ts";
import { ROOT } from "../support/machine.ts";
import { SCENARIOS } from "../support/scenarios.ts";

// A VMM gets its signals itself: vmm.test.ts. What becomes of several VMs is below.
const SIGNALLED = SCENARIOS.filter(({ scenario }) =>
  !scenario.command.includes("--") && !scenario.several
);

sweepAll(SIGNALLED, signals, {
  title: (what) => `signals: ${what}: at any effect, all is done or undone`,
  only: "nftables",
  stride: (stride) => 2 * stride - 1,
});

Deno.test("signals: a batch: each VM is whole or not there, and who was not begun is named", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const bare = await host.snapshot();
  const names = ["a", "b", "c"];
  const argv = (...words: string[]) => [...scriptWords("attach-vm"), ...words];
  for (const words of [names, [...names, "--remove"]]) {
    await t.step(words.join(" "), async () => {
      const removing = words.includes("--remove");
      const prepare = async () => {
        if (removing) await host.mustTapkit("attach-vm", ...names);
      };
      await prepare();
      const effects = await traceEffects(host, Deno.execPath(), argv(...words));
      await host.mustTapkit("attach-vm", "--all", "--remove");
      for (const [number, effect] of effects.entries()) {
        if (!ALL && number % 37 !== 0) continue;
        await prepare();
        const { code, stderr } = await runWithFault(
          ...[host, effect, "SIGTERM", Deno.execPath(), argv(...words)] as const,
        );
        const { json } = await host.mustTapkit("attach-vm", "--list");
        const there = json.map(({ vm }) => vm);
        const done = names.filter((name) => there.includes(name) !== removing);
        // In their order, and none of them half.
        assertEquals(done, names.slice(0, done.length), stderr);
        if (there.length > 0) await host.mustTapkit("attach-vm", ...there, "--check");
        if (done.length < names.length || code !== 0) {
          assertEquals(code, SIGNALS.SIGTERM, `${effect.what}: ${stderr}`);
        }
        const rest = names.slice(done.length + Number(!stderr.includes("was done before")));
        const said = rest.map((name) => JSON.stringify(name)).join(", ");
        if (rest.length > 0) assert(stderr.includes(`not begun: ${said}`), stderr);
        await host.mustTapkit("attach-vm", ...names, "--remove");
        await host.assertRestored(bare);
      }
    });
  }
});

Deno.test("attach-vm: a signal ends the waiting for another's lock", async () => {
  await using host = await Host.create();
  const before = await host.snapshot();
  const { stdout, stderr } = await host.run("bash", [
    "-c",
    `set -m
    mkdir -p /var/lib/tapkit
    flock /var/lib/tapkit/lock sh -c 'touch /tmp/held; exec sleep 300' &
    holder=$!
    until [ -e /tmp/held ]; do sleep 0.02; done
    ${Deno.execPath()} run -A ${ROOT}/scripts/attach-vm.ts web &
    # It has the VM's lock when it waits for the host's.
    until [ -e /var/lib/tapkit/locks/web ]; do sleep 0.02; done
    kill -INT $!
    wait $!
    echo $?
    kill -0 $holder && echo held
    kill -KILL -$holder
    wait $holder 2>/dev/null
    rm -r /tmp/held /var/lib/tapkit`,
  ]);
  assertEquals(stdout, "130\nheld\n", stderr);
  assertMatch(stderr, /^attach-vm: cannot attach "web": interrupted by SIGINT$/m);
  await host.assertRestored(before);
});
