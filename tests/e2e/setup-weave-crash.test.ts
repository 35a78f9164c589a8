/**
 * setup-weave killed at its effects: running it again, or leaving, ends as if nothing had happened.
 * `TAPKIT_CRASH=all` takes every effect; the ordinary run takes a sample, always the same.
 */

import { assert, assertEquals } from "@std/assert";
import { scriptWords } from "../support/bundle.ts";
import { ALL } from "../support/crash.ts";
import { DOCKERS } from "../support/docker.ts";
import { type Effect, runWithFault, traceEffects } from "../support/effects.ts";
import type { Host } from "../support/host.ts";
import { weaveHost } from "../support/weave/host.ts";

const LEFT = [
  ...DOCKERS,
  /^iptables-legacy-save (\*|:|COMMIT)/,
  /^directory \/opt\/cni/,
  /^file \/run\/xtables.lock/,
];

const LEAVE = ["setup-weave", "--remove", "--purge", "--restore-default"] as const;

interface Sweep {
  readonly name: string;
  /** What is killed: setup-weave with these words. */
  readonly words: readonly string[];
  readonly prepare: (host: Host) => Promise<unknown>;
  /** What ends it when it was killed. */
  readonly end: (host: Host, round: number) => Promise<void>;
  readonly stride: number;
}

async function works(host: Host): Promise<void> {
  await host.mustTapkit("setup-weave");
  const { json: [checked] } = await host.mustTapkit("setup-weave", "--check");
  assertEquals(checked.problems, []);
  const containers = await host.must("docker", ["ps", "-a", "--format", "{{.Names}}"]);
  assertEquals(containers, "weave\n");
}

const SWEEPS: readonly Sweep[] = [
  {
    name: "starting the router",
    words: [],
    prepare: (host) => host.mustTapkit("install-default-cni"),
    end: async (host, round) => {
      if (round % 2 === 0) await works(host);
    },
    stride: 8,
  },
  {
    name: "replacing the container",
    words: ["--mtu", "1300"],
    prepare: async (host) => {
      await host.mustTapkit("install-default-cni");
      await host.mustTapkit("setup-weave");
    },
    end: works,
    stride: 11,
  },
  {
    name: "leaving",
    words: LEAVE.slice(1),
    prepare: async (host) => {
      await host.mustTapkit("install-default-cni");
      await host.mustTapkit("setup-weave");
    },
    end: async () => {},
    stride: 10,
  },
];

for (const { name, words, prepare, end, stride } of SWEEPS) {
  Deno.test(`setup-weave: killed while ${name}`, async (t) => {
    await using host = await weaveHost();
    await host.sh("docker run --rm busybox /bin/busybox true; iptables-legacy -S >/dev/null");
    await host.mustTapkit("install-default-cni");
    const before = await host.snapshot();
    const argv = [...scriptWords("setup-weave", ["--no-code-cache"]), ...words];
    const restored = async () => {
      await host.mustTapkit(...LEAVE);
      assertEquals(await host.must("docker", ["ps", "-aq"]), "");
      await host.assertRestored(before, { except: LEFT });
    };
    await prepare(host);
    const effects = await traceEffects(host, Deno.execPath(), argv);
    assert(effects.length > 5, "it has effects");
    await restored();
    let killed = 0;
    const chosen = sample(effects, stride);
    for (const [round, effect] of chosen.entries()) {
      await t.step(`${effect.syscall} ${effect.nth} ${effect.what}`, async () => {
        await prepare(host);
        const { code, stderr } = await runWithFault(host, effect, "SIGKILL", Deno.execPath(), argv);
        // How often it looks whether the router is ready is another time each run.
        assert(code === 137 || code === 0, `${code} ${stderr}`);
        if (code === 137) killed++;
        await end(host, round);
        await restored();
      });
    }
    assert(killed > chosen.length / 2, `only ${killed} of ${chosen.length} were killed`);
  });
}

function sample(effects: readonly Effect[], stride: number): readonly Effect[] {
  return ALL ? effects : effects.filter((_, index) => index % stride === 0);
}
