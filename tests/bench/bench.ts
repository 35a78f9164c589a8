/**
 * Compares tapkit with the CNI reference plugins, netavark and a C program: `deno task bench`.
 *
 * Everything happens in throwaway hosts, in one run, and what is compared takes turns, so that
 * the load of the machine meets all alike. What counts is ratios. The table goes to
 * tests/bench/results.md.
 *
 * Flags: `--rounds N` (12), `--many N` (300), `--most N` (1,000, of the default network's 1,023),
 * `--flows N` (300,000), `--mappings N` (10,000), `--full` (the CNI plugins with as many as `--many` too,
 * which takes minutes), `--dry` (print, do not write results.md).
 */

import { parseArgs } from "@std/cli/parse-args";
import { Host } from "../support/host.ts";
import { ROOT } from "../support/machine.ts";
import { ensureRequirements, NotHere } from "../support/requirements.ts";
import { measureCompiled } from "./compiled.ts";
import { BESIDE, Booth, JOB_TIMEOUT_MS, pause, takeTurns } from "./booth.ts";
import { moduleCounts } from "./modules.ts";
import { measureExecuted } from "./executed.ts";
import { measureFlows } from "./flows.ts";
import { measurePortMaps } from "./port-maps.ts";
import { measureResident } from "./resident.ts";
import { type BatchFigures, type Lap, median, type Results, writeReport } from "./report.ts";

const SCRIPT = `${ROOT}/scripts/attach-vm.ts`;
const RESULTS = `${ROOT}/tests/bench/results.md`;
/** How long what a command left in the background is given to settle before the next. */
const SETTLE_MS = { alone: 150, many: 40 } as const;
const DHCP_EXCHANGES = 300;
/** With so many VMs the resident's size is measured. */
const RESIDENT_VMS = 1000;

function batchFigures(
  laps: readonly number[],
  { ms: totalMs, cpuMs }: Lap,
): BatchFigures {
  const each = laps.map((lap, index) => lap - (laps[index - 1] ?? 0));
  // The first lap holds the start of the program.
  const own = each.slice(1);
  return {
    perVm: totalMs / laps.length,
    cpuPerVm: cpuMs / laps.length,
    median: median(own),
    first: median(own.slice(0, 20)),
    last: median(own.slice(-20)),
  };
}

/** The C program in a host of its own. */
async function runBaseline(program: string, count: number): Promise<BatchFigures> {
  await using host = await Host.create({ name: "bench" });
  await host.addLan();
  await host.must("mkdir", ["-p", "/var/lib/bench"]);
  // Seconds: that passed, and that its process computed, for itself and in the kernel.
  const script = `TIMEFORMAT='%R %U %S'; time ${program} ${count} /var/lib/bench`;
  const options = { timeoutMs: JOB_TIMEOUT_MS };
  const { code, stdout, stderr } = await host.run("bash", ["-c", script], options);
  if (code !== 0) throw new Error(`${program}: ${stderr}`);
  const [real = 0, user = 0, system = 0] = stderr.trim().split(" ").map(Number);
  let lap = 0;
  return batchFigures(stdout.trim().split("\n").map((ms) => lap += Number(ms)), {
    ms: 1000 * real,
    cpuMs: 1000 * (user + system),
  });
}

async function measureDhcp(host: Host): Promise<number[]> {
  const { json: [record] } = await host.mustTapkit("attach-vm", "dhcp");
  await pause(500);
  const { mac, tap } = record.interfaces[0];
  const script = `${ROOT}/tests/bench/dhcp-latency.ts`;
  const output = await host.must(
    Deno.execPath(),
    ["run", "-A", script, record.netns, tap, mac, String(DHCP_EXCHANGES)],
  );
  await host.mustTapkit("attach-vm", "dhcp", "--remove");
  return output.trim().split("\n").map(Number);
}

async function outputOf(command: string, ...args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(command, { args, cwd: ROOT }).output();
  if (success) return new TextDecoder().decode(stdout).trim();
  throw new Error(`${command} ${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
}

/** Whether the machine has a C compiler, and the program it made. */
async function compileBaseline(directory: string): Promise<string | undefined> {
  const program = `${directory}/baseline`;
  const source = `${ROOT}/tests/bench/baseline.c`;
  try {
    await outputOf("cc", "-O2", "-o", program, source, "-ldl");
    return program;
  } catch (error) {
    console.error(`the C program is left out: ${error instanceof Error ? error.message : error}`);
    return undefined;
  }
}

async function main(args: readonly string[]): Promise<void> {
  const flags = parseArgs([...args], {
    string: ["rounds", "many", "most", "flows", "mappings"],
    boolean: ["full", "dry"],
  });
  const rounds = Number(flags.rounds ?? 12);
  const many = Number(flags.many ?? 300);
  const most = Number(flags.most ?? 1000);
  const flows = Number(flags.flows ?? 300_000);
  const mappings = Number(flags.mappings ?? 10_000);
  await ensureRequirements("bench");
  const directory = await Deno.makeTempDir({ prefix: "tapkit-bench-" });
  try {
    const results = await measure(directory, {
      ...{ rounds, many, most, flows, mappings },
      full: flags.full === true,
    });
    const text = writeReport(results);
    console.log(text);
    if (flags.dry !== true) await Deno.writeTextFile(RESULTS, text);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function measure(
  directory: string,
  { rounds, many, most, flows, mappings, full }: {
    rounds: number;
    many: number;
    most: number;
    flows: number;
    mappings: number;
    full: boolean;
  },
): Promise<Results> {
  const began = performance.now();
  const say = (text: string) =>
    console.error(`${((performance.now() - began) / 1000).toFixed(0)} s: ${text}`);
  const deno = [Deno.execPath(), "run", "-A"] as const;
  await outputOf(...deno, `${ROOT}/install.ts`, "--bundle", "--prefix", directory);
  const baseline = await compileBaseline(directory);

  await using stack = new AsyncDisposableStack();
  const open = async (...how: Parameters<typeof Booth.open>) => stack.use(await Booth.open(...how));
  const source = await open("tapkit, from source", { kind: "tapkit", command: [...deno, SCRIPT] });
  const bundledCommand = { kind: "tapkit", command: [`${directory}/bin/attach-vm`] } as const;
  const bundled = await open("tapkit, installed", bundledCommand);
  const netavark = [
    await open("netavark, iptables-nft", { kind: "netavark" }, "nft"),
    await open("netavark, iptables-legacy", { kind: "netavark" }, "legacy"),
  ];
  const cni = [
    await open("CNI plugins, iptables-nft", { kind: "cni" }, "nft"),
    await open("CNI plugins, iptables-legacy", { kind: "cni" }, "legacy"),
  ];
  const booths = [source, ...netavark, bundled, ...cni];

  say("warming up");
  for (const booth of booths) await booth.do({ do: "attach", vm: BESIDE });
  await takeTurns(booths, 1, SETTLE_MS.alone);
  say(`one VM, ${rounds} rounds`);
  const alone = await takeTurns(booths, rounds, SETTLE_MS.alone);

  say("the resident");
  const resident = await measureResident(`${directory}/bin`, netavark, {
    rounds,
    settleMs: SETTLE_MS.alone,
    most: RESIDENT_VMS,
  });

  const batch = new Map<string, BatchFigures[]>();
  const record = (name: string, figures: BatchFigures) =>
    batch.set(name, [...batch.get(name) ?? [], figures]);
  const runC = async () => {
    if (baseline !== undefined) record("C", await runBaseline(baseline, many));
  };
  for (const booth of [source, bundled]) {
    say(`${many} VMs in one call: ${booth.name}`);
    await runC();
    const { laps, ...took } = await booth.do({ do: "batch", from: 0, count: many });
    record(booth.name, batchFigures(laps!, took));
  }
  await runC();

  const growth = new Map<string, BatchFigures>();
  if (baseline !== undefined) {
    say(`${most} VMs in one call`);
    growth.set("C", await runBaseline(baseline, most));
    await using grown = await Booth.open(bundled.name, bundledCommand);
    const { laps, ...took } = await grown.do({ do: "batch", from: 0, count: most });
    growth.set(bundled.name, batchFigures(laps!, took));
  }
  say(`one VM beside ${flows} connections of others, ${rounds} rounds`);
  const flowFigures = await measureFlows(
    await open(bundled.name, bundledCommand),
    { flows, rounds },
  );

  const filled = [...netavark, ...full ? cni : []];
  say(`${many} attachments with ${filled.map(({ name }) => name).join(", ")}`);
  await Promise.all(filled.map((booth) => booth.do({ do: "batch", from: 0, count: many })));
  say(`one VM with ${many} there, ${rounds} rounds`);
  const crowded = await takeTurns([source, bundled, ...filled], rounds, SETTLE_MS.many);

  const cleared = new Map<string, number>();
  for (const booth of [source, bundled]) {
    say(`removing ${many} VMs in one call: ${booth.name}`);
    const { ms } = await booth.do({ do: "clear", from: 0, count: many });
    cleared.set(booth.name, ms / many);
  }

  say("DHCP");
  const dhcp = await measureDhcp(source.host);
  say(`${mappings} mappings`);
  const portMaps = await measurePortMaps(mappings, rounds);
  say("the compiled binary");
  const compiled = await measureCompiled(`${directory}/compiled`, {
    rounds,
    settleMs: SETTLE_MS.alone,
  });
  say("executed plugins");
  const executed = await measureExecuted(rounds);
  say("done");
  return {
    many,
    most,
    rounds,
    alone,
    crowded,
    resident,
    batch,
    growth,
    cleared,
    flows: flowFigures,
    dhcp,
    portMaps,
    compiled,
    executed,
    modules: await moduleCounts(),
    bundleBytes: (await Deno.stat(`${directory}/share/tapkit/scripts.js`)).size,
    machine: await describeMachine(),
    command: ["deno task bench", ...Deno.args].join(" "),
    seconds: (performance.now() - began) / 1000,
  };
}

async function describeMachine(): Promise<string[]> {
  const packages = ["containernetworking-plugins", "netavark", "iptables"];
  const versions = await outputOf("dpkg-query", "-W", "-f", "${Package} ${Version}, ", ...packages)
    .catch(() => "");
  const load = Deno.loadavg().map((value) => value.toFixed(1)).join(" ");
  const cpu = /model name\s*: (.*)/.exec(await Deno.readTextFile("/proc/cpuinfo"))?.[1] ?? "?";
  return [
    `${navigator.hardwareConcurrency} × ${cpu}, Linux ${Deno.osRelease()}, load ${load}`,
    `Deno ${Deno.version.deno}; ${versions.replace(/,\s*$/, "")}`,
  ];
}

if (import.meta.main) {
  try {
    await main(Deno.args);
    Deno.exit(0);
  } catch (error) {
    if (!(error instanceof NotHere)) throw error;
    console.error(`bench: ${error.message}`);
    Deno.exit(1);
  }
}
