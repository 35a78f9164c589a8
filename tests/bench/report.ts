/**
 * The benchmark's figures as text.
 *
 * @module
 */

import { BINARY, BUNDLE, type CompiledFigures } from "./compiled.ts";
import type { ExecutedFigures } from "./executed.ts";
import type { FlowFigures } from "./flows.ts";
import type { ModuleCount } from "./modules.ts";
import type { PortMapFigures } from "./port-maps.ts";
import type { ResidentFigures } from "./resident.ts";

/** One command: from process start to exit, and what of that its processes computed. */
export interface Lap {
  readonly ms: number;
  readonly cpuMs: number;
}

/** Single commands, one for each round. */
export interface SingleFigures {
  readonly attach: readonly Lap[];
  readonly remove: readonly Lap[];
}

type What = keyof SingleFigures;
type Unit = keyof Lap;

/** Milliseconds per VM of one batch. */
export interface BatchFigures {
  /** From process start to exit, by the number of VMs. */
  readonly perVm: number;
  /** What its processes computed, by the number of VMs. */
  readonly cpuPerVm: number;
  /** From one VM's record to the next one's. */
  readonly median: number;
  /** The median of the first 20. */
  readonly first: number;
  readonly last: number;
}

/** Everything that was measured. */
export interface Results {
  readonly many: number;
  readonly most: number;
  readonly rounds: number;
  readonly alone: ReadonlyMap<string, SingleFigures>;
  readonly crowded: ReadonlyMap<string, SingleFigures>;
  readonly resident: ResidentFigures;
  readonly batch: ReadonlyMap<string, readonly BatchFigures[]>;
  /** Of one call for as many VMs as a network takes: the C program's, and tapkit's. */
  readonly growth: ReadonlyMap<string, BatchFigures>;
  /** Milliseconds for each VM that a batch attached, when all are removed in one call. */
  readonly cleared: ReadonlyMap<string, number>;
  readonly flows: FlowFigures;
  /** Microseconds. */
  readonly dhcp: readonly number[];
  readonly portMaps: PortMapFigures;
  readonly compiled: CompiledFigures;
  readonly executed: ExecutedFigures;
  readonly modules: readonly ModuleCount[];
  readonly bundleBytes: number;
  readonly machine: readonly string[];
  /** The command that all this comes from. */
  readonly command: string;
  readonly seconds: number;
}

/** What tapkit must reach, without the resident; of single commands, compared with the faster netavark. */
const BOUNDS = {
  alone: { "tapkit, installed": 1.2 },
  crowded: { "tapkit, installed": 1.2 },
  batchCpuOfC: 2,
  clearMs: 5,
  growthOfC: 1.2,
  manyFlowsOfNone: 1.1,
  oneMoreOfOne: 1.3,
  oneMoreMs: 1.5,
  bulkMs: 2000,
  connectLastOfOnly: 1.1,
  resident: {
    script: 0.5,
    scriptBeyondEmptyMs: 10,
    scriptRemove: 0.35,
    curl: 0.35,
    warmAttachMs: 6.5,
    warmRemoveMs: 2.5,
    dhcpMs: 5,
    healMs: 1000,
    memoryMiB: 80,
    idlePercent: 0.2,
  },
  binaryOfBundle: 1.2,
  chainOfBare: 1.15,
  threeOfOne: 3,
} as const;

/** The middle one of the values. */
export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN;
}

const ms = (value: number) => value < 10 ? value.toFixed(1) : value.toFixed(0);
const row = (cells: readonly string[]) => `| ${cells.join(" | ")} |`;

function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const widths = head.map((cell, column) =>
    Math.max(3, ...[head, ...rows].map((cells) => (cells[column] ?? cell).length))
  );
  const pad = (cells: readonly string[]) =>
    row(cells.map((cell, column) => cell.padEnd(widths[column] ?? 0)));
  return [pad(head), row(widths.map((width) => "-".repeat(width))), ...rows.map(pad)];
}

function medianOf(laps: readonly Lap[], unit: Unit): number {
  return median(laps.map((lap) => lap[unit]));
}

/** The median of the faster netavark: the least of its variants' medians. */
function fasterNetavark(
  figures: ReadonlyMap<string, SingleFigures>,
  what: What,
  unit: Unit,
): number {
  const medians = [...figures].filter(([name]) => name.startsWith("netavark"))
    .map(([, single]) => medianOf(single[what], unit));
  return Math.min(...medians);
}

function singleCell(
  figures: ReadonlyMap<string, SingleFigures>,
  name: string,
  what: What,
  unit: Unit,
): string {
  const own = figures.get(name);
  if (own === undefined) return "";
  const value = medianOf(own[what], unit);
  return `${ms(value)} ms (${(value / fasterNetavark(figures, what, unit)).toFixed(2)})`;
}

function singleTable({ alone, crowded, many }: Results, unit: Unit): string[] {
  const rows = [...alone.keys()].map((name) => [
    name,
    ...[alone, crowded].flatMap((figures) =>
      (["attach", "remove"] as const).map((what) => singleCell(figures, name, what, unit))
    ),
  ]);
  return table(["", "attach", "remove", `attach, ${many} there`, `remove, ${many} there`], rows);
}

/** A bound, what was reached, and whether that is enough. */
type Verdict = readonly [what: string, bound: number, reached: number];

function verdicts(
  { alone, crowded, batch, growth, cleared, flows, many, most }: Results,
): Verdict[] {
  const list: Verdict[] = [];
  for (
    const [figures, bounds, where] of [
      [alone, BOUNDS.alone, "alone"],
      [crowded, BOUNDS.crowded, `with ${many} there`],
    ] as const
  ) {
    for (const [name, bound] of Object.entries(bounds)) {
      for (const what of ["attach", "remove"] as const) {
        const own = medianOf(figures.get(name)![what], "ms");
        const ratio = own / fasterNetavark(figures, what, "ms");
        list.push([`${name}: ${what} ${where}, of netavark`, bound, ratio]);
      }
    }
  }
  const cpuOf = (name: string) => median((batch.get(name) ?? []).map((run) => run.cpuPerVm));
  const growthOf = (name: string) => {
    const { first = NaN, last = NaN } = growth.get(name) ?? {};
    return last / first;
  };
  if (batch.has("C")) {
    const cpu = cpuOf(INSTALLED) / cpuOf("C");
    const what = `${INSTALLED}: ${many} in one call, processor time, of the C program's`;
    list.push([what, BOUNDS.batchCpuOfC, cpu]);
    list.push([
      `${INSTALLED}: the last 20 of the first 20 at ${most}, of the C program's own ratio`,
      BOUNDS.growthOfC,
      growthOf(INSTALLED) / growthOf("C"),
    ]);
  }
  const clearMs = cleared.get(INSTALLED)!;
  list.push([`${INSTALLED}: removing ${many} in one call, each, ms`, BOUNDS.clearMs, clearMs]);
  for (const what of ["attach", "remove"] as const) {
    const ratio = medianOf(flows.many[what], "ms") / medianOf(flows.none[what], "ms");
    const where = `beside ${flows.flows} connections of others, of beside none`;
    list.push([`${INSTALLED}: ${what} ${where}`, BOUNDS.manyFlowsOfNone, ratio]);
  }
  return list;
}

const INSTALLED = "tapkit, installed";

function portMapVerdicts(
  { mappings, process, inProcess, bulk, connect }: PortMapFigures,
): Verdict[] {
  const tapkit = connect.find(({ name }) => name === "tapkit")!;
  return [
    [
      `map-port: one more with ${mappings} there, of one with none`,
      BOUNDS.oneMoreOfOne,
      median(process.many) / median(process.none),
    ],
    [
      `one more in process with ${mappings} there, ms`,
      BOUNDS.oneMoreMs,
      median(inProcess.many.call),
    ],
    ["of that, the firewall", BOUNDS.oneMoreMs, median(inProcess.many.firewall)],
    [`${mappings} in one call, ms`, BOUNDS.bulkMs, median(bulk.single)],
    [
      `connect to the last of ${mappings}, of to the only one`,
      BOUNDS.connectLastOfOnly,
      median(tapkit.last) / median(tapkit.alone),
    ],
  ];
}

function verdictTable(list: readonly Verdict[]): string[] {
  return table(
    ["", "at most", "reached", ""],
    list.map(([what, bound, reached]) => [
      what,
      String(bound),
      reached.toFixed(2),
      reached <= bound ? "met" : "**missed**",
    ]),
  );
}

/** The part of results.md that is about port mappings. */
export function portMapReport(figures: PortMapFigures): string[] {
  const { mappings, process, inProcess, bulk, connect, load } = figures;
  const each = (values: readonly number[]) => ms(median(values));
  const fine = (values: readonly number[]) => median(values).toFixed(2);
  return [
    `## ${mappings} port mappings`,
    "",
    "Milliseconds, medians. In process, the first figure is the library's call with its record on",
    "disk, locks and looks for other holders of the port; the second is the firewall's part of it.",
    `The machine's load was ${load.toFixed(1)}.`,
    "",
    ...table(["", "with none there", `with ${mappings} there`], [
      ["one more, `map-port`", each(process.none), each(process.many)],
      ["one more, in process", fine(inProcess.none.call), fine(inProcess.many.call)],
      ["of that, the firewall", fine(inProcess.none.firewall), fine(inProcess.many.firewall)],
      [`${mappings} in one call, each by itself`, each(bulk.single), ""],
      [`${mappings} in one call, as a range`, each(bulk.range), ""],
    ]),
    "",
    "Microseconds that a TCP connection from the LAN takes. The peers' rules are those of their own",
    "programs, made for one container with 15 ports and repeated for the others.",
    "",
    ...table(
      ["", "to the only one", `to the last of ${mappings}`, "ratio"],
      connect.map(({ name, alone, last }) => [
        name,
        median(alone).toFixed(0),
        median(last).toFixed(0),
        (median(last) / median(alone)).toFixed(2),
      ]),
    ),
    "",
    ...verdictTable(portMapVerdicts(figures)),
    "",
  ];
}

function residentVerdicts({ commands, warm, dhcp, heal, size }: ResidentFigures): Verdict[] {
  const bounds = BOUNDS.resident;
  const own = (name: string, what: What) => medianOf(commands.get(name)![what], "ms");
  const ratio = (name: string, what: What) =>
    own(name, what) / fasterNetavark(commands, what, "ms");
  const [script, curl] = ["attach-vm, by the resident", "curl, by the resident"] as const;
  const beyond = own(script, "attach") - own("an empty Deno script", "attach");
  return [
    ["attach by the script, of netavark", bounds.script, ratio(script, "attach")],
    ["attach by the script, ms beyond an empty Deno script", bounds.scriptBeyondEmptyMs, beyond],
    ["remove by the script, of netavark", bounds.scriptRemove, ratio(script, "remove")],
    ["attach by curl, of netavark", bounds.curl, ratio(curl, "attach")],
    ["remove by curl, of netavark", bounds.curl, ratio(curl, "remove")],
    ["attach by a warm client, ms", bounds.warmAttachMs, median(warm.attach)],
    ["remove by a warm client, ms", bounds.warmRemoveMs, median(warm.remove)],
    [
      "OFFER while VMs are attached, 99th percentile, ms",
      bounds.dhcpMs,
      quantile(dhcp.busy, 0.99) / 1000,
    ],
    [`${heal.vms} VMs whole after a flush, ms`, bounds.healMs, median(heal.ms)],
    [`memory with ${size.vms} VMs, MiB`, bounds.memoryMiB, size.memory],
    [`idle with ${size.vms} VMs, % of a core`, bounds.idlePercent, size.idle],
  ];
}

/** The part of results.md that is about the resident. */
function residentReport(figures: ResidentFigures): string[] {
  const { commands, warm, rested, dhcp, size } = figures;
  const cell = (name: string, what: What, unit: Unit) => singleCell(commands, name, what, unit);
  const row = (name: string) =>
    (["ms", "cpuMs"] as const).flatMap((unit) =>
      (["attach", "remove"] as const).map((what) => cell(name, what, unit))
    );
  const both = (values: readonly number[], q: number) => quantile(values, q).toFixed(1);
  return [
    "## By the resident",
    "",
    "One VM with one published port beside another, whole processes; in brackets the ratio to the",
    "faster netavark in these rounds. Processor time is the command's own: what the resident needs for",
    "it is not in it.",
    "",
    ...table(
      ["", "attach", "remove", "attach, CPU", "remove, CPU"],
      [...commands.keys()].map((name) => [name, ...row(name)]),
    ),
    "",
    `Requests of a client that stays connected, ${warm.attach.length} in a row, milliseconds: attach`,
    `median ${both(warm.attach, 0.5)}, 99th percentile ${both(warm.attach, 0.99)}; remove median`,
    `${both(warm.remove, 0.5)}, 99th percentile ${
      both(warm.remove, 0.99)
    }. One after a pause of 150 ms: attach median`,
    `${both(rested.attach, 0.5)}, remove median ${
      both(rested.remove, 0.5)
    }. DISCOVER to OFFER meanwhile,`,
    `microseconds: alone median ${quantile(dhcp.alone, 0.5)}, 99th percentile`,
    `${quantile(dhcp.alone, 0.99)}; while 100 VMs are attached ${quantile(dhcp.busy, 0.5)} and`,
    `${quantile(dhcp.busy, 0.99)}. Removing ${size.vms} in one request: ${ms(size.clearMs)} each.`,
    "",
    ...verdictTable(residentVerdicts(figures)),
    "",
  ];
}

/** The part of results.md that is about the compiled binary. */
function compiledReport(figures: CompiledFigures): string[] {
  const head = ["## The compiled binary", ""];
  if (typeof figures === "string") return [...head, `It could not be made: ${figures}`, ""];
  const at = (name: string) =>
    [figures.alone, figures.byResident].flatMap((by) =>
      (["attach", "remove"] as const).map((what) => medianOf(by.get(name)![what], "ms"))
    );
  const ratio = (by: ReadonlyMap<string, SingleFigures>) =>
    medianOf(by.get(BINARY)!.attach, "ms") / medianOf(by.get(BUNDLE)!.attach, "ms");
  return [
    ...head,
    "One VM with one published port beside another, milliseconds from start to exit, medians; both by",
    "the same Deno.",
    "",
    ...table(
      ["", "attach", "remove", "attach, by the resident", "remove, by the resident"],
      [BUNDLE, BINARY].map((name) => [name, ...at(name).map(ms)]),
    ),
    "",
    ...verdictTable([
      ["attach by the binary, of the bundle", BOUNDS.binaryOfBundle, ratio(figures.alone)],
      [
        "the same, by the resident",
        BOUNDS.binaryOfBundle,
        ratio(figures.byResident),
      ],
    ]),
    "",
  ];
}

/** The part of results.md that is about executed plugins. */
function executedReport({ chain, networks }: ExecutedFigures): string[] {
  const [own, bare] = [median(chain.tapkit), median(chain.bare)];
  const [one, three] = [median(networks.one), median(networks.three)];
  return [
    "## Executed plugins",
    "",
    "Milliseconds, medians. ADD and DEL of bridge, portmap and firewall in a process that lives on, as",
    "tapkit executes them and as a loop that starts the same processes with the same input; and",
    "attach-vm with its removal on networks of the reference bridge.",
    "",
    ...table(["", "ms"], [
      ["the chain, by tapkit", ms(own)],
      ["the chain, by a bare loop", ms(bare)],
      ["attach-vm and removal, one network", ms(one)],
      ["attach-vm and removal, three networks", ms(three)],
    ]),
    "",
    ...verdictTable([
      ["the chain, of the bare loop", BOUNDS.chainOfBare, own / bare],
      ["three networks, of one", BOUNDS.threeOfOne, three / one],
    ]),
    "",
  ];
}

function growthTable({ growth, most }: Results): string[] {
  if (growth.size === 0) return [];
  const rows = [...growth].map(([name, run]) => [
    name === "C" ? "a C program, the same calls" : name,
    ...[run.perVm, run.cpuPerVm, run.first, run.last].map(ms),
    (run.last / run.first).toFixed(2),
  ]);
  const head = ["", "whole", "processor", "first 20", "last 20", "ratio"];
  return ["", `And ${most} in one call:`, "", ...table(head, rows)];
}

function flowReport({ flows, none, many }: FlowFigures): string[] {
  const row = (name: string, unit: Unit) => [
    name,
    ...[none, many].flatMap((laps) => [laps.attach, laps.remove])
      .map((laps) => ms(medianOf(laps, unit))),
  ];
  const head = ["attach", "remove", "attach, with them", "remove, with them"];
  return [
    `## One VM beside ${flows} connections of others`,
    "",
    "The kernel has one table of tracked connections for all network namespaces. One more VM beside",
    "another; medians of what install.ts installs, in milliseconds.",
    "",
    ...table(["", ...head], [row("from start to exit", "ms"), row("processor time", "cpuMs")]),
    "",
  ];
}

/** The text of results.md. */
export function writeReport(results: Results): string {
  const { batch, dhcp, modules, many, rounds } = results;
  const batches = [...batch].map(([name, runs]) => {
    const of = (pick: (figures: BatchFigures) => number) => ms(median(runs.map(pick)));
    return [
      name === "C" ? "a C program, the same calls" : name,
      ...[of((run) => run.perVm), of((run) => run.cpuPerVm), of((run) => run.median)],
      ...[of((run) => run.first), of((run) => run.last)],
    ];
  });
  return [
    "# Benchmark",
    "",
    `Written by \`${results.command}\`.`,
    "Everything happens in one run, in throwaway hosts, taking turns. Milliseconds depend on the",
    "machine and on what else it does; ratios are what counts.",
    "",
    ...results.machine.map((line) => `- ${line}`),
    `- ${rounds} rounds, ${results.seconds.toFixed(0)} s`,
    "",
    "## One VM with one published port",
    "",
    "Another VM is there. From process start to exit, medians; in brackets the ratio to the faster",
    "netavark. The peers' figures include `ip netns add` and `ip netns del`.",
    "",
    ...singleTable(results, "ms"),
    "",
    "The processor time of the same commands, which other load on the machine changes less:",
    "",
    ...singleTable(results, "cpuMs"),
    "",
    `## ${many} VMs in one call`,
    "",
    "Milliseconds for each: of the whole process, of its processor time, and from record to record.",
    "",
    ...table(["", "whole", "processor", "each", "first 20", "last 20"], batches),
    ...growthTable(results),
    "",
    `Removing ${many} in one call, each: ` +
    `${[...results.cleared].map(([name, each]) => `${ms(each)} by ${name}`).join(", ")}.`,
    "",
    ...flowReport(results.flows),
    "## Bounds",
    "",
    ...verdictTable(verdicts(results)),
    "",
    ...residentReport(results.resident),
    ...portMapReport(results.portMaps),
    ...compiledReport(results.compiled),
    ...executedReport(results.executed),
    "## Start-up and DHCP",
    "",
    "Modules a script evaluates at once, and with those it loads when they are needed:",
    "",
    ...table(
      ["script", "at once", "in all"],
      modules.map(({ script, eager, graph }) => [script, String(eager), String(graph)]),
    ),
    "",
    `The bundle (\`install.ts --bundle\`): ${(results.bundleBytes / 1024).toFixed(0)} KiB.`,
    "",
    `DISCOVER to OFFER through the TAP, ${dhcp.length} exchanges: median ${
      ms(median(dhcp) / 1000)
    } ms, 99th percentile ${ms(quantile(dhcp, 0.99) / 1000)} ms.`,
    "",
  ].join("\n");
}
