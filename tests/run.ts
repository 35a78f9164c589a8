/**
 * Runs the tests: `deno task test [--times] [FILTER…]`. A filter is a path, or a part of one.
 *
 * Each file is a process of its own, a few at a time, the longest first. What fails is shown with
 * its output, what is skipped with its reason, and the last line is
 * `N passed, N failed[, N skipped]`. `--times` also shows how long each file took, as
 * tests/seconds.json has it. The machine must be afterwards as it was before.
 */

import seconds from "./seconds.json" with { type: "json" };
import { differences, ownMachine, processesOf, RUN_VARIABLE } from "./support/own-machine.ts";
import { guestImage } from "./support/guest-image.ts";
import { parseReport, type TestCase } from "./support/junit.ts";
import { ROOT } from "./support/machine.ts";
import { BUNDLE_VARIABLE, bundleScripts } from "./support/bundle.ts";
import { ensureRequirements, NotHere } from "./support/requirements.ts";

/** Suites that touch the kernel: each must have run something. */
const KERNEL_SUITES = ["netns", "e2e"];
const SUITES = ["unit", "golden", ...KERNEL_SUITES];
/** Files at a time. They wait for guests and for the kernel as much as they compute. */
const JOBS = Math.max(3, Math.min(6, 2 * navigator.hardwareConcurrency));
/** How long files took once, in seconds: those that take longest begin first. Others are short. */
const SECONDS: Readonly<Record<string, number>> = seconds;
/** They compute all the time, while other files wait much: at most half of what runs begins with them. */
const SWEEPS = /\/(crash-\w+|failure|signals)\.test\.ts$/;
/** `--times` lists files from this on. */
const LISTED_SECONDS = 10;
const SLOWEST = 5;
/** A file that takes longer hangs, on a busy machine too; a sweep of all effects takes an hour. */
const FILE_TIMEOUT_MS = Deno.env.get("TAPKIT_CRASH") === "all" ? 7_200_000 : 900_000;

interface FileResult {
  readonly file: string;
  readonly cases: readonly TestCase[];
  readonly ok: boolean;
  readonly seconds: number;
  readonly output: string;
}

if (import.meta.main) {
  try {
    Deno.exit(await main(Deno.args));
  } catch (error) {
    if (!(error instanceof NotHere)) throw error;
    console.error(`test: ${error.message}`);
    Deno.exit(1);
  }
}

async function main(args: readonly string[]): Promise<number> {
  const filters = args.filter((arg) => arg !== "--times");
  const files = findTests(filters);
  if (files.length === 0) throw new NotHere(`no test file matches ${filters.join(" ")}`);
  const kernel = files.some((file) => KERNEL_SUITES.some((suite) => isOf(file, suite)));
  if (kernel) await ensureRequirements("tests");
  if (files.some((file) => isOf(file, "e2e"))) {
    await guestImage();
    const bundle = await bundleScripts();
    if (bundle !== undefined) Deno.env.set(BUNDLE_VARIABLE, bundle);
  }

  const run = crypto.randomUUID();
  const before = kernel ? ownMachine() : [];
  const directory = await Deno.makeTempDir({ prefix: "tapkit-test-" });
  Deno.addSignalListener("SIGINT", () => {
    Deno.removeSync(directory, { recursive: true });
    Deno.exit(130);
  });
  const results = await runAll(files, { run, directory });
  const problems = [
    ...results.filter(({ ok, cases }) => !ok && !cases.some(({ outcome }) => outcome === "failed"))
      .map(({ file }) => `${file} failed outside its tests`),
    ...(filters.length === 0 ? idleSuites(results) : []),
    ...(kernel ? await traces(run, before) : []),
    ...leftFiles(directory),
  ];
  await Deno.remove(directory, { recursive: true });
  if (args.includes("--times")) showTimes(results);
  return report(results, problems);
}

function findTests(filters: readonly string[]): string[] {
  return SUITES.flatMap((suite) =>
    [...Deno.readDirSync(`${ROOT}/tests/${suite}`)].map(({ name }) => `tests/${suite}/${name}`)
  )
    .filter((file) => file.endsWith(".test.ts"))
    .filter((file) => filters.length === 0 || filters.some((filter) => matches(file, filter)))
    .sort();
}

function matches(file: string, filter: string): boolean {
  return file.includes(filter.replace(/^\.\//, "").replace(`${ROOT}/`, ""));
}

function isOf(file: string, suite: string): boolean {
  return file.startsWith(`tests/${suite}/`);
}

/** Runs the files, those that take longest first, and shows each result. */
async function runAll(
  files: readonly string[],
  options: { run: string; directory: string },
): Promise<FileResult[]> {
  const queue = files.toSorted((a, b) => (SECONDS[b] ?? 0) - (SECONDS[a] ?? 0));
  const results: FileResult[] = [];
  const take = (worker: number) => {
    const place = worker % 2 === 0 ? 0 : queue.findIndex((file) => !SWEEPS.test(file));
    return queue.splice(Math.max(0, place), 1)[0];
  };
  const work = async (_: unknown, worker: number) => {
    for (let file = take(worker); file !== undefined; file = take(worker)) {
      const result = await runFile(file, options);
      results.push(result);
      show(result);
    }
  };
  await Promise.all(Array.from({ length: JOBS }, work));
  return results;
}

async function runFile(
  file: string,
  { run, directory }: { run: string; directory: string },
): Promise<FileResult> {
  const name = file.replaceAll("/", "_");
  const [report, temporary] = [`${directory}/${name}.xml`, `${directory}/${name}.tmp`];
  await Deno.mkdir(temporary);
  const begin = performance.now();
  const child = new Deno.Command(Deno.execPath(), {
    args: ["test", "-A", "--no-check", `--junit-path=${report}`, file],
    cwd: ROOT,
    env: { [RUN_VARIABLE]: run, TMPDIR: temporary, NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  let late = "";
  const timer = setTimeout(() => {
    late = `\nended after ${FILE_TIMEOUT_MS / 1000} s`;
    child.kill("SIGKILL");
  }, FILE_TIMEOUT_MS);
  const { success, stdout, stderr } = await child.output();
  clearTimeout(timer);
  const seconds = (performance.now() - begin) / 1000;
  const text = await Deno.readTextFile(report).catch(() => "");
  await Deno.remove(report).catch(() => {});
  const decoder = new TextDecoder();
  const output = `${decoder.decode(stdout)}${decoder.decode(stderr)}${late}`;
  return { file, cases: parseReport(text), ok: success, seconds, output };
}

function show({ file, cases, ok, seconds, output }: FileResult): void {
  const count = (outcome: TestCase["outcome"]) =>
    cases.filter((test) => test.outcome === outcome).length;
  const skipped = cases.filter(({ outcome }) => outcome === "skipped");
  const rest = skipped.length === 0 ? "" : `, ${skipped.length} skipped`;
  console.log(
    `${ok ? "ok    " : "FAILED"} ${file}: ${count("passed")} passed${rest} (${
      seconds.toFixed(1)
    } s)`,
  );
  for (const { name } of skipped) console.log(`       skipped: ${name}`);
  if (!ok) console.log(output.trim().replaceAll(/^/gm, "    | "));
}

function showTimes(results: readonly FileResult[]): void {
  const long = results.filter(({ seconds }) => seconds >= LISTED_SECONDS)
    .sort((a, b) => b.seconds - a.seconds);
  const table = Object.fromEntries(long.map(({ file, seconds }) => [file, Math.round(seconds)]));
  console.log(JSON.stringify(table, null, 2));
}

/** A kernel suite that ran nothing proves nothing; nor does a file of it. */
function idleSuites(results: readonly FileResult[]): string[] {
  const ran = ({ cases }: FileResult) => cases.some(({ outcome }) => outcome === "passed");
  return KERNEL_SUITES.flatMap((suite) => {
    const own = results.filter(({ file }) => isOf(file, suite));
    if (own.length === 0) return [`tests/${suite} has no test files`];
    return own.filter((result) => result.ok && !ran(result))
      .map(({ file }) => `${file} ran nothing`);
  });
}

/** What the tests left on the machine: namespaces of ended processes need a moment to go. */
async function traces(run: string, before: readonly string[]): Promise<string[]> {
  for (let round = 0;; round++) {
    const found = [
      ...processesOf(run).map((line) => `the tests left a process: ${line}`),
      ...differences(before, ownMachine()).map((line) => `the tests changed the machine: ${line}`),
    ];
    if (found.length === 0 || round === 20) return found;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function leftFiles(directory: string): string[] {
  return [...Deno.readDirSync(directory)].flatMap(({ name }) =>
    [...Deno.readDirSync(`${directory}/${name}`)].map((entry) =>
      `the tests left a temporary file: ${name.replace(/\.tmp$/, "")}: ${entry.name}`
    )
  );
}

function report(results: readonly FileResult[], problems: readonly string[]): number {
  const cases = results.flatMap(({ file, cases }) => cases.map((test) => ({ file, ...test })));
  const of = (outcome: TestCase["outcome"]) => cases.filter((test) => test.outcome === outcome);
  const slow = [...results].sort((a, b) => b.seconds - a.seconds).slice(0, SLOWEST);
  console.log(
    `\nslowest: ${slow.map(({ file, seconds }) => `${file} ${seconds.toFixed(1)} s`).join(", ")}`,
  );
  for (const { file, name, failedSteps } of of("failed")) {
    console.log(`failed: ${file}: ${name}`);
    for (const step of failedSteps) console.log(`        step: ${step}`);
  }
  for (const problem of problems) console.log(`failed: ${problem}`);
  const failed = of("failed").length + problems.length;
  const skipped = of("skipped").length;
  console.log(
    `${of("passed").length} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`,
  );
  return failed > 0 || results.some(({ ok }) => !ok) ? 1 : 0;
}
