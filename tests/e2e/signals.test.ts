/**
 * A signal at each effect of a command: nothing is half done, and one line says what became of it.
 * `TAPKIT_CRASH=all` takes every effect; the ordinary run takes a sample, always the same.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Effect, type Fault, runWithFault, traceEffects } from "../support/effects.ts";
import { Host } from "../support/host.ts";
import { ROOT } from "../support/machine.ts";

const ALL = Deno.env.get("TAPKIT_CRASH") === "all";
const DENO = ["run", "-A", "--no-code-cache"];
const CODES = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;
type Signal = keyof typeof CODES;
const SIGNALS = Object.keys(CODES) as Signal[];

interface Scenario {
  readonly name: string;
  readonly script?: string;
  readonly args: readonly string[];
  /** A command before it. */
  readonly prepare?: readonly string[];
  /** What is listed where it has been done. */
  readonly done: readonly string[];
  /** The ordinary run takes every effect whose number this divides. */
  readonly stride: number;
}

const WEB = ["web", "--ports", "8080:80"];
const POLICED = [...WEB, "--isolated", "--deny-egress", "192.0.2.0/24"];
const PORT = "0.0.0.0:8080";

const SCENARIOS: readonly Scenario[] = [
  { name: "attach", args: WEB, done: [`web ${PORT}`], stride: 9 },
  { name: "attach with a policy", args: POLICED, done: [`web ${PORT}`], stride: 31 },
  {
    name: "other ports",
    args: ["web", "--ports", "9090:80"],
    prepare: WEB,
    done: ["web 0.0.0.0:9090"],
    stride: 2,
  },
  {
    name: "map ports",
    script: "map-port",
    args: ["web", "9090:80"],
    prepare: WEB,
    done: [`web ${PORT} 0.0.0.0:9090`],
    stride: 2,
  },
  { name: "remove", args: ["web", "--remove"], prepare: WEB, done: [], stride: 9 },
  { name: "a batch", args: ["a", "b", "c"], done: ["a", "b", "c"], stride: 37 },
  {
    name: "a batch's removal",
    args: ["a", "b", "--remove"],
    prepare: ["a", "b"],
    done: [],
    stride: 23,
  },
];

/** What is attached, each VM with its host ports. */
async function attached(host: Host): Promise<string[]> {
  const { json } = await host.mustTapkit("attach-vm", "--list");
  return json.map(({ vm, ports }) =>
    [
      vm,
      ...ports.map((port: { hostIP: string; hostPort: number }) =>
        `${port.hostIP}:${port.hostPort}`
      ),
    ].join(" ")
  );
}

/** Whether the host is as if some of a batch had been done, and the rest not begun. */
function isWhole(now: readonly string[], before: readonly string[], { done }: Scenario): boolean {
  const steps = Math.max(before.length, done.length);
  return Array.from({ length: steps + 1 }, (_, count) => [
    ...done.slice(0, count),
    ...before.slice(count),
  ]).some((state) => JSON.stringify(state) === JSON.stringify(now));
}

async function interrupt(host: Host, scenario: Scenario, effect: Effect, signal: Signal) {
  const { script = "attach-vm", args, prepare } = scenario;
  if (prepare !== undefined) await host.mustTapkit("attach-vm", ...prepare);
  const before = await attached(host);
  const command = [...DENO, `${ROOT}/scripts/${script}.ts`, ...args];
  const fault: Fault = signal;
  const { code, stderr } = await runWithFault(host, effect, fault, Deno.execPath(), command);
  const now = await attached(host);
  assert(isWhole(now, before, scenario), `left ${JSON.stringify(now)}: ${stderr}`);
  const isDone = JSON.stringify(now) === JSON.stringify(scenario.done);
  // One that comes when nothing is left to be done may not be heard any more.
  if (isDone && code === 0) return;
  assertEquals(code, CODES[signal], stderr);
  const lines = stderr.trim().split("\n").filter((line) => line.includes("interrupted"));
  if (!isDone) assert(lines.length > 0, `nothing says what was undone: ${stderr}`);
  for (const line of lines) assertMatch(line, new RegExp(`^${script}: .*interrupted by ${signal}`));
  for (const { vm } of (await host.mustTapkit("attach-vm", "--list")).json) {
    const check = await host.tapkit("attach-vm", vm, "--check");
    assertEquals([check.code, check.json], [0, [{ vm, problems: [] }]], stderr);
  }
}

for (const scenario of SCENARIOS) {
  Deno.test(`signals: ${scenario.name}: at any effect, all is done or undone`, async () => {
    await using host = await Host.create();
    await host.addLan();
    const { script = "attach-vm", args, prepare } = scenario;
    const names = [
      ...new Set([...args, ...prepare ?? []].filter((arg) => /^(web|[abc])$/.test(arg))),
    ];
    const bare = await host.snapshot();
    const clean = async () => {
      await host.mustTapkit("attach-vm", ...names, "--remove");
      await host.assertRestored(bare);
      await host.sh("rm -rf /etc/cni /var/lib/cni; echo 0 >/proc/sys/net/ipv4/ip_forward");
    };
    if (prepare !== undefined) await host.mustTapkit("attach-vm", ...prepare);
    const command = [...DENO, `${ROOT}/scripts/${script}.ts`, ...args];
    // Once before, so that the runtime's caches are as they will be.
    const effects = await traceEffects(host, Deno.execPath(), command);
    assert(effects.length > 0);
    await clean();
    for (const [number, effect] of effects.entries()) {
      if (!ALL && number % scenario.stride !== 0) continue;
      const signals = ALL ? SIGNALS : [SIGNALS[number / scenario.stride % SIGNALS.length]!];
      for (const signal of signals) {
        try {
          await interrupt(host, scenario, effect, signal);
        } catch (error) {
          const where = `${signal} at ${effect.syscall} ${effect.nth} (${effect.what})`;
          throw new Error(`${where}: ${error instanceof Error ? error.message : error}`);
        }
        await clean();
      }
    }
  });
}

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
