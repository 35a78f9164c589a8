/**
 * Commands that are cut off at one of their effects: by death, by an error, or by a signal. A
 * scenario is run on a host that each round leaves as it found it.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { scriptWords } from "./bundle.ts";
import { REFERENCE_BRIDGE, REFERENCE_PORTMAP, referenceNetwork, SHARED } from "./cni-reference.ts";
import {
  type Effect,
  type Fault,
  mayBeMissed,
  MEETING_RUNS,
  runWithFault,
  traceEffects,
} from "./effects.ts";
import { DockerEngine, DOCKERS } from "./docker.ts";
import { Host } from "./host.ts";
import { ROOT } from "./machine.ts";
import { WeaveRouter } from "./weave/router.ts";
import { END_DHCP, reboot } from "./reboot.ts";

/** Whether every effect is taken, not a sample of them: `TAPKIT_CRASH=all`. */
export const ALL = Deno.env.get("TAPKIT_CRASH") === "all";

/** What a scenario runs on. */
export interface Backend {
  readonly name: string;
  /** What stands for `@` in a command's words. */
  readonly flags: readonly string[];
  /** Starts what the host has before anything else. */
  readonly start?: (host: Host) => Promise<DockerEngine>;
  /** Shell commands that make the host what it is. */
  readonly prepare?: string;
  /** Lines of the snapshot that are not tapkit's. */
  readonly except?: readonly RegExp[];
}

/** A script and its words, or a shell command. */
export type Command = readonly [script: string, ...words: string[]] | string;

/** A command that is cut off. */
export interface Scenario {
  readonly name: string;
  readonly command: readonly [script: string, ...words: string[]];
  /** What is done before; nothing at all is there, unless given. */
  readonly prepare?: readonly Command[];
  /** What leads to the wanted end after the command was cut off; the command itself unless given. */
  readonly again?: readonly (readonly [script: string, ...words: string[]])[];
  /** Whether it is about several VMs, of which a signal leaves some done. */
  readonly several?: true;
  /** Whether nothing is attached in the end. */
  readonly ends?: "gone";
  /** What compares the end with the kernel. */
  readonly check?: readonly [script: string, ...words: string[]];
  /** What takes everything away. */
  readonly remove?: readonly [script: string, ...words: string[]];
  /** Whether address and MAC are those that were there before. */
  readonly keeps?: true;
  /** Whether what was there before is broken: all of it is made anew, or nothing when that fails. */
  readonly broken?: true;
}

const CHECK = ["attach-vm", "web", "--check"] as const;
const REMOVE = ["attach-vm", "web", "--remove"] as const;

/** What leaves nothing that outlives the process: dying there is as dying at the next effect. */
const ENDS_WITH_PROCESS = ["setns", "unshare", "fsync", "fdatasync"];

/** The host as it comes, whatever an earlier round made of it; its DHCP server would still tidy up. */
const RESET = `
${END_DHCP}
while busybox umount /run/netns; do :; done 2>/dev/null
rm -rf /etc/cni /var/lib/cni /var/lib/tapkit /run/netns/*
echo 0 >/proc/sys/net/ipv4/ip_forward
`;

/** How signals end a command, by the shell's exit codes. */
export const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;
/** A signal that asks a command to end. */
export type Signal = keyof typeof SIGNALS;

/** A host on which one scenario is cut off again and again. */
export class CrashBench implements AsyncDisposable {
  readonly #scenario: Scenario;
  readonly #backend: Backend;
  #host!: Host;
  #engine: DockerEngine | undefined;
  #bare!: string;
  /** What has been attached beforehand. */
  // deno-lint-ignore no-explicit-any
  #prepared: any;
  /** What is attached in the end, where nothing is cut off. */
  #end: unknown;
  effects: readonly Effect[] = [];

  private constructor(scenario: Scenario, backend: Backend) {
    this.#scenario = scenario;
    this.#backend = backend;
  }

  static async open(scenario: Scenario, backend: Backend): Promise<CrashBench> {
    const bench = new CrashBench(scenario, backend);
    await bench.renew();
    bench.effects = await traceEffects(bench.#host, Deno.execPath(), bench.#argv());
    assert(bench.effects.length > 0, "the command has no effects");
    await bench.#goesOn();
    await bench.#restored();
    return bench;
  }

  /** A new host: what a failed round left does not spoil the next. */
  async renew(): Promise<void> {
    await this.#host?.[Symbol.asyncDispose]();
    this.#host = await Host.create();
    await this.#host.addLan();
    this.#engine = await this.#backend.start?.(this.#host);
    if (this.#engine !== undefined) this.#host.own(this.#engine);
    await this.#host.sh(this.#backend.prepare ?? ":");
    this.#bare = await this.#host.snapshot();
    await this.#prepare();
  }

  /** Death at an effect, then the command again, to the end it would have had. */
  async diesAndGoesOn(effect: Effect): Promise<void> {
    await this.#die(effect);
    await this.#goesOn();
    await this.#restored();
  }

  /** Death at an effect, then removal. */
  async diesAndGoes(effect: Effect): Promise<void> {
    await this.#die(effect);
    await this.#restored();
  }

  /** Failure of an effect: the command succeeds all the same, or undoes what it did. */
  async fails(effect: Effect, fault: Fault): Promise<void> {
    const before = await this.#host.snapshot();
    const { code, stderr } = await this.#cutOff(effect, fault);
    if (stderr.includes("Deno has panicked")) {
      // The runtime itself could not go on: as good as death.
      await this.#goesOn();
      return await this.#restored();
    }
    const { command, broken = false, ends } = this.#scenario;
    const failed = command.includes("--") ? 125 : 1;
    assert(code === 0 || code === failed, `exit ${code}: ${stderr}`);
    // What removes goes on past what fails, as far as it comes.
    const removes = ends === "gone" || command.includes("--remove");
    if (code === failed && !(removes && command[0] === "attach-vm")) {
      await this.#host.assertRestored(before, {
        except: [
          ...this.#backend.except ?? [],
          ...[/serve-dhcp/, /fe80:/, /ff00::/],
          // It names the bridge by its index, which is another one where the bridge was made anew.
          ...broken ? [/\/run\/tapkit\/settings-/] : [],
        ],
        less: broken,
      });
    }
    await this.#goesOn();
    await this.#restored();
  }

  /** A signal at an effect: all is done, or undone, and told in a line. */
  async isInterrupted(effect: Effect, signal: Signal): Promise<void> {
    const before = await this.#attached();
    const { code, stderr } = await this.#cutOff(effect, signal);
    const now = await this.#attached();
    if (code !== 0) await this.#run(this.#scenario.command);
    const done = code === 0 ? now : await this.#attached();
    assert(
      [before, done].some((state) => JSON.stringify(state) === JSON.stringify(now)),
      `left ${JSON.stringify(now)}, which is neither ${JSON.stringify(before)} ` +
        `nor ${JSON.stringify(done)}: ${stderr}`,
    );
    const isDone = JSON.stringify(now) === JSON.stringify(done);
    // One that comes when nothing is left to be done may not be heard any more.
    if (!isDone || code !== 0) {
      assertEquals(code, SIGNALS[signal], stderr);
      const said = stderr.trim().split("\n").filter((line) => line.includes(`by ${signal}`));
      if (!isDone) assertEquals(said.length, 1, `what was undone is told once: ${stderr}`);
      const [script] = this.#scenario.command;
      for (const line of said) assertMatch(line, new RegExp(`^${script}: `));
    }
    await this.#restored();
  }

  /** What is attached, each VM with its addresses, MACs, policies and ports; or what is mapped. */
  async #attached(): Promise<unknown> {
    const script = this.#scenario.command.includes("--to") ? "map-port" : "attach-vm";
    return (await this.#host.mustTapkit(script, "--list")).json;
  }

  async #die(effect: Effect): Promise<void> {
    for (let run = 1;; run++) {
      const { code, stderr } = await this.#cutOff(effect, "SIGKILL");
      if (code === 137) return;
      assert(mayBeMissed(effect) && run < MEETING_RUNS, `it was to be killed: ${stderr}`);
      await this.#restored();
    }
  }

  async #cutOff(effect: Effect, fault: Fault) {
    return await runWithFault(this.#host, effect, fault, Deno.execPath(), this.#argv());
  }

  #argv(): string[] {
    const [script, ...words] = this.#scenario.command;
    return [...scriptWords(script, ["--no-code-cache"]), ...this.#words(words)];
  }

  #words(words: readonly string[]): string[] {
    return words.flatMap((word) => word === "@" ? this.#backend.flags : word);
  }

  async #run([script, ...words]: readonly [string, ...string[]]) {
    return await this.#host.mustTapkit(script, ...this.#words(words));
  }

  /** Runs what leads to the end, and compares it with the one that has always been. */
  async #goesOn(): Promise<void> {
    const { command, again = [command], check = CHECK, ends, keeps } = this.#scenario;
    // deno-lint-ignore no-explicit-any
    let record: any;
    for (const step of again) ({ json: [record] } = await this.#run(step));
    if (ends === "gone") {
      assertEquals((await this.#host.mustTapkit("attach-vm", "--list")).json, []);
      return;
    }
    const checked = await this.#host.tapkit(...check);
    assertEquals([checked.code, checked.json[0].problems], [0, []], checked.stderr);
    const { interfaces, ...rest } = record;
    // A host port that is chosen is another one each time.
    const ports = rest.ports.map((port: { vmPort: number }) =>
      port.vmPort === 81 ? { ...port, hostPort: 0 } : port
    );
    const end = { ...rest, ports };
    this.#end ??= end;
    assertEquals(end, this.#end);
    if (keeps) {
      const { json: [listed] } = await this.#host.mustTapkit("attach-vm", "web", "--list");
      assertEquals(
        identities(interfaces ?? listed.interfaces),
        identities(this.#prepared.interfaces),
      );
    }
  }

  async #restored(): Promise<void> {
    await this.#run(this.#scenario.remove ?? REMOVE);
    if (this.#scenario.remove !== undefined) await this.#host.mustTapkit(...REMOVE);
    await this.#host.assertRestored(this.#bare, { except: this.#backend.except ?? [] });
    await this.#host.sh(`${RESET}\n${this.#backend.prepare ?? ""}`);
    await this.#prepare();
  }

  async #prepare(): Promise<void> {
    for (const command of this.#scenario.prepare ?? []) {
      if (command === "reboot") await this.#reboot();
      else if (typeof command === "string") await this.#host.sh(command);
      else {
        const { json: [record] } = await this.#run(command);
        if (command[0] !== "attach-vm") continue;
        this.#prepared = record;
        await this.#host.awaitDhcp();
      }
    }
  }

  async #reboot(): Promise<void> {
    await this.#engine?.stop();
    await reboot(this.#host);
    await this.#engine?.resume();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#host[Symbol.asyncDispose]();
  }
}

function identities(interfaces: readonly { mac: string; addresses: unknown }[]): unknown {
  return interfaces.map(({ mac, addresses }) => ({ mac, addresses }));
}

/** What is done at an effect, and what a report calls it. */
export type Round = readonly [what: string, round: (bench: CrashBench) => Promise<void>];

/**
 * Cuts a scenario off at effect after effect, past what fails, and names all of it.
 *
 * @param stride the ordinary run takes every effect whose number this divides
 * @param rounds of an effect; the ordinary run takes one of them, in turn
 */
async function sweep(
  scenario: Scenario,
  backend: Backend,
  stride: number,
  rounds: (effect: Effect) => readonly Round[],
): Promise<void> {
  await using bench = await CrashBench.open(scenario, backend);
  const failures: string[] = [];
  let done = 0;
  for (const [number, effect] of bench.effects.entries()) {
    if (!ALL && number % stride !== 0) continue;
    const all = rounds(effect);
    const taken = ALL || all.length === 0 ? all : [all[number / stride % all.length]!];
    for (const [what, round] of taken) {
      done++;
      try {
        await round(bench);
      } catch (error) {
        const where = `${effect.syscall} ${effect.nth} (${effect.what})`;
        failures.push(`${what} at ${where}: ${error instanceof Error ? error.message : error}`);
        if (ALL) console.error(failures.at(-1));
        await bench.renew();
      }
    }
  }
  if (ALL) {
    const { name } = backend;
    const counts = `${done} rounds, ${bench.effects.length} effects, ${failures.length} failed`;
    console.error(`${scenario.name}, ${name}: ${counts}`);
  }
  assert(done > 0, "no round was run");
  if (failures.length > 0) throw new Error(failures.join("\n\n"));
}

/** Deaths at an effect. */
function deaths(effect: Effect): readonly Round[] {
  if (ENDS_WITH_PROCESS.includes(effect.syscall)) return [];
  return [
    ["killed, then run again", (bench) => bench.diesAndGoesOn(effect)],
    ["killed, then removed", (bench) => bench.diesAndGoes(effect)],
  ];
}

/** Errors of an effect. */
export function errors(effect: Effect): readonly Round[] {
  return (["ENOSPC", "EMFILE", "ENOMEM"] as const).map((
    fault,
  ): Round => [fault, (bench) => bench.fails(effect, fault)]);
}

/** Signals at an effect. */
export function signals(effect: Effect): readonly Round[] {
  return (Object.keys(SIGNALS) as Signal[]).map((
    signal,
  ): Round => [signal, (bench) => bench.isInterrupted(effect, signal)]);
}

/** Rules of iptables beside tapkit's: empty tables and chains of the kernel stay. */
const IPTABLES_KEPT = [/^ip6?tables-\S+ (\*|:|COMMIT)/, /^nft table ip6? (raw|nat|filter|mangle)/];

const REFERENCE_NETWORK = referenceNetwork([REFERENCE_BRIDGE, REFERENCE_PORTMAP]);

const SECOND_NETWORK = JSON.stringify({
  cniVersion: "1.0.0",
  name: "second",
  plugins: [{
    type: "bridge",
    bridge: "br-second",
    isGateway: true,
    ipam: { type: "host-local", subnet: "10.62.0.0/24" },
  }],
});

const conflist = (name: string, text: string) =>
  `mkdir -p /etc/cni/net.d; cat >/etc/cni/net.d/${name} <<'END'\n${text}\nEND`;

/** All that scenarios are run on. */
export const BACKENDS = {
  nftables: { name: "nftables", flags: [] },
  iptablesNft: {
    name: "iptables-nft",
    flags: ["--firewall", "iptables"],
    prepare: "iptables-nft -t nat -S >/dev/null; ip6tables-nft -t nat -S >/dev/null",
    except: IPTABLES_KEPT,
  },
  iptablesLegacy: {
    name: "iptables-legacy",
    flags: ["--firewall", "iptables"],
    prepare: "iptables-legacy -t nat -S >/dev/null; ip6tables-legacy -t nat -S >/dev/null",
    except: IPTABLES_KEPT,
  },
  dropPolicy: {
    name: "a DROP policy of others",
    flags: ["--open-firewall"],
    prepare: "iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP",
    except: IPTABLES_KEPT,
  },
  executed: {
    name: "executed plugins",
    flags: [],
    prepare: conflist("10-net.conflist", REFERENCE_NETWORK),
    except: SHARED,
  },
  docker: {
    name: "Docker's bridge",
    flags: ["--network-plugin", "docker-bridge"],
    start: (host) => DockerEngine.start(host, "nft"),
    // The engine turns forwarding on. Its first sandbox brings the image, and what the engine makes once.
    prepare: `echo 1 >/proc/sys/net/ipv4/ip_forward
      docker image inspect tapkit-sandbox:1 >/dev/null 2>&1 ||
        { cd ${ROOT} && ${Deno.execPath()} run -A scripts/bridge-legacy.ts warm >/dev/null 2>&1 &&
          ${Deno.execPath()} run -A scripts/attach-vm.ts warm --remove >/dev/null; }
      while [ -e /var/lib/tapkit ] || pgrep -f "[s]erve-dhcp" >/dev/null; do sleep 0.02; done`,
    except: [...DOCKERS, ...IPTABLES_KEPT],
  },
  weave: {
    name: "Weave Net",
    flags: [],
    start: async (host) => (await WeaveRouter.start(host)).engine,
    // Its router goes on, and so do its addresses, which are in its db.
    prepare: `echo 1 >/proc/sys/net/ipv4/ip_forward
      ${
      conflist(
        "10-weave.conflist",
        Deno.readTextFileSync(`${ROOT}/tests/support/weave/conflist.json`),
      )
    }`,
    except: [...DOCKERS, ...IPTABLES_KEPT, ...SHARED, /^process (nc|sleep|sh) /],
  },
  twoNetworks: {
    name: "two networks",
    flags: ["--network", "ignite-cni-bridge", "--network", "second", "--plugins", "builtin"],
    prepare: `${Deno.execPath()} run -A ${ROOT}/scripts/install-default-cni.ts >/dev/null
      ${conflist("20-second.conflist", SECOND_NETWORK)}`,
  },
} as const satisfies Readonly<Record<string, Backend>>;

/** How fine a sample the ordinary run takes: every effect whose number this divides. */
export type Strides = Readonly<Partial<Record<keyof typeof BACKENDS, number>>>;

/** A scenario, and the backends that it is run on. */
export interface Row {
  readonly scenario: Scenario;
  readonly on: Strides;
}

/** Which tests a sweep over a table is. */
export interface SweepOptions {
  readonly title: (what: string) => string;
  /** The one backend of the ordinary run; all unless given. */
  readonly only?: keyof typeof BACKENDS;
  /** The ordinary run's stride, from the table's. */
  readonly stride?: (stride: number) => number;
}

/** A test for each scenario on each of its backends. */
export function sweepAll(
  rows: readonly Row[],
  rounds: (effect: Effect) => readonly Round[],
  { title, only, stride = (number) => number }: SweepOptions,
): void {
  for (const { scenario, on } of rows) {
    for (const [key, number] of Object.entries(on)) {
      if (!ALL && only !== undefined && key !== only) continue;
      const backend = BACKENDS[key as keyof Strides];
      Deno.test(title(`${scenario.name}, ${backend.name}`), async () => {
        await sweep(scenario, backend, stride(number), rounds);
      });
    }
  }
}

/** A test for each scenario on each of its backends: death at its effects. */
export function sweepDeaths(rows: readonly Row[]): void {
  sweepAll(rows, deaths, {
    title: (what) => `crash: ${what}: killed at any effect, nothing is lost or left`,
  });
}
