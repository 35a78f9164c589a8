/**
 * What every script does around its one library call: parse the command line, print, and turn
 * errors into messages and exit codes.
 *
 * @module
 */

import { describe, InputError, InterruptedError, locating, TapkitError } from "../errors.ts";
import type { HostOptions } from "../vm/types.ts";
import { type Command, helpText, parseCommand, type Parsed } from "./args.ts";

/** The exit codes of every script. */
export const EXIT = {
  done: 0,
  failed: 1,
  usage: 2,
  differs: 3,
  notStarted: 125,
} as const;

/**
 * Runs a command: parses `args` by its table, answers `--help` and `--version`, calls `run`, and
 * prints an error that it throws. Returns the exit code: 128+n if `run` was interrupted by signal
 * n.
 *
 * @param run gets a function to call: from then on, signals abort an AbortSignal instead of ending
 * this process
 */
export async function runScript<const C extends Command>(
  command: C,
  args: readonly string[],
  run: (parsed: Parsed<C>, heed: () => Promise<AbortSignal>) => Promise<number> | number,
): Promise<number> {
  let signal: AbortSignal | undefined;
  const heed = async () => signal = (await import("../signals.ts")).heedSignals();
  const code = await runParsed(command, args, (parsed) => run(parsed, heed));
  return signal?.reason instanceof InterruptedError ? signal.reason.exitCode : code;
}

async function runParsed<const C extends Command>(
  command: C,
  args: readonly string[],
  run: (parsed: Parsed<C>) => Promise<number> | number,
): Promise<number> {
  try {
    const parsed = parseCommand(command, args);
    if (parsed === "help") {
      printText(helpText(command));
      return EXIT.done;
    }
    if (parsed === "version") {
      const { default: { version } } = await import("../../deno.json", { with: { type: "json" } });
      printText(`${command.name} ${version}`);
      return EXIT.done;
    }
    return await run(parsed);
  } catch (error) {
    return printError(command.name, error);
  }
}

/** Prints an error as one line on stderr. Returns the exit code for it. */
export function printError(script: string, error: unknown, doing?: string): number {
  printNote(script, doing === undefined ? explain(error) : `${doing}: ${explain(error)}`);
  if (debugging() && error instanceof Error) tell(`${script}: ${error.stack ?? ""}`);
  if (error instanceof InputError) return EXIT.usage;
  return error instanceof TapkitError && "exitCode" in error && typeof error.exitCode === "number"
    ? error.exitCode
    : EXIT.failed;
}

/** Prints a line for people on stderr. */
export function printNote(script: string, text: string): void {
  tell(`${script}: ${text.replaceAll(/\s*\n\s*/g, " ")}`);
}

/** Writes notes and errors to a log instead of stderr, which nobody may read. */
let log: ((line: string) => boolean) | undefined;
const LOG_LIMIT = 256 * 1024;

/**
 * Sends notes and errors to a file of bounded size; to stderr only if the file cannot be written.
 */
export async function logTo(path: string): Promise<void> {
  const { absolutePath, appendBounded } = await import("../files.ts");
  const file = absolutePath(path);
  log = (line) => {
    try {
      appendBounded(file, `${new Date().toISOString()} ${line}`, LOG_LIMIT);
      return true;
    } catch {
      return false;
    }
  };
}

/** Progress is shown after this time, in milliseconds. */
const PROGRESS_AFTER = 1000;

/** The line of progress that is on the terminal now. */
let progress = "";

/** Shows on a terminal how many VMs are done, in a line that the next text replaces. */
function showProgress(script: string, verb: string, done: number, all: number | undefined): void {
  if (!Deno.stderr.isTerminal()) return;
  clearProgress();
  progress = visible(`${script}: ${verb}: ${all === undefined ? done : `${done} of ${all}`} done`);
  writeOut(Deno.stderr, progress);
}

function clearProgress(): void {
  if (progress !== "") writeOut(Deno.stderr, `\r${" ".repeat(progress.length)}\r`);
  progress = "";
}

/** Writes to stderr, or to the log. A failure is ignored: nobody could be told. */
function tell(text: string): void {
  try {
    const line = `${visible(text)}\n`;
    if (log?.(line) === true) return;
    clearProgress();
    writeOut(Deno.stderr, line);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
  }
}

/** Prints one object as a line of JSON on stdout. */
export function printJson(value: unknown): void {
  printText(JSON.stringify(value));
}

/** Prints the problems that `--check` found. Returns the exit code for them. */
export function printProblems(object: object, problems: readonly string[]): number {
  printJson({ ...object, problems });
  return problems.length === 0 ? EXIT.done : EXIT.differs;
}

/** Control characters of terminals and of text direction. Text of others may contain them. */
const CONTROLS =
  // deno-lint-ignore no-control-regex -- control characters are meant.
  /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** Escapes control characters as JSON does, so that a line of JSON keeps its meaning. */
function visible(text: string): string {
  return text.replaceAll(
    CONTROLS,
    (control) => `\\u${control.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** Prints a line on stdout, with control characters escaped. A closed pipe is not an error. */
export function printText(text: string): void {
  try {
    clearProgress();
    writeOut(Deno.stdout, `${visible(text)}\n`);
  } catch (error) {
    throw new TapkitError(`stdout cannot be written: ${describe(error)}`, {
      mend: "what was done stays; print it again with --list",
      cause: error,
    });
  }
}

/** What {@linkcode forEachVm} does. */
export interface Doing {
  readonly script: string;
  /** For errors: `"attach"` makes `cannot attach "web"`. */
  readonly verb: string;
  /** The exit code for a failure that has none of its own. */
  readonly failed?: number;
  /** Aborted, it ends the loop; VMs that were not begun are named. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Does `act` for each VM, past failures, and returns the exit code. The VMs of a list are done in turns:
 * while one waits for a program of others, the next begins.
 */
export async function forEachVm<T extends { readonly name: string }>(
  { script, verb, failed, signal }: Doing,
  vms: readonly T[] | AsyncIterable<T>,
  act: (vm: T, waits: () => void) => Promise<number | void> | number | void,
): Promise<number> {
  const codes: number[] = [];
  const left = new Set(isList(vms) ? vms : []);
  const done: string[] = [];
  const begun = performance.now();
  const actOn = async (vm: T, waits = () => {}) => {
    left.delete(vm);
    if (codes.length > 0 && performance.now() - begun > PROGRESS_AFTER) {
      showProgress(script, verb, codes.length, isList(vms) ? vms.length : undefined);
    }
    try {
      const code = await act(vm, waits) ?? EXIT.done;
      if (signal?.aborted) done.push(`${JSON.stringify(vm.name)} was done before`);
      return code;
    } catch (error) {
      const code = printError(script, error, cannot(verb, vm.name));
      return code === EXIT.failed && failed !== undefined ? failed : code;
    }
  };
  if (isList(vms) && vms.length > 1) {
    const { inTurns } = await import("../turns.ts");
    for await (const { result } of inTurns(vms, actOn, signal)) codes.push(result);
  } else {
    for await (const vm of vms) {
      codes.push(await actOn(vm));
      if (signal?.aborted) break;
    }
  }
  const names = [...left].map(({ name }) => JSON.stringify(name)).join(", ");
  const parts = [...done, ...names === "" ? [] : [`not begun: ${names}`]];
  if (signal?.aborted && parts.length > 0) {
    printNote(script, `${describe(signal.reason)}: ${parts.join("; ")}`);
  }
  clearProgress();
  const [first = EXIT.done, ...others] = codes;
  if (others.every((code) => code === first)) return first;
  return codes.every((code) => code === EXIT.done || code === EXIT.differs)
    ? EXIT.differs
    : EXIT.failed;
}

/** Validates all requests before the first VM is touched. An error names the VM. */
export function validateEach<T extends { readonly name: string }>(
  verb: string,
  vms: Iterable<T>,
  validate: (vm: T) => void,
): void {
  for (const vm of vms) locating(cannot(verb, vm.name), () => validate(vm));
}

function cannot(verb: string, name: string): string {
  return `cannot ${verb} ${JSON.stringify(name)}`;
}

function isList<T>(vms: readonly T[] | AsyncIterable<T>): vms is readonly T[] {
  return Array.isArray(vms);
}

/** A function that calls `act` the first time only. */
export function once<T>(act: () => Promise<T>): () => Promise<T> {
  let result: Promise<T> | undefined;
  return () => result ??= act();
}

/** An AbortSignal that SIGINT and SIGTERM abort. */
export function stopSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(name, () => controller.abort());
  }
  return controller.signal;
}

/** The flags for directories of the host. */
export const HOST_OPTIONS = [
  {
    name: "state-dir",
    metavar: "DIR",
    help: "where the records of attached VMs are kept",
    default: "$TAPKIT_STATE_DIR, then /var/lib/tapkit",
  },
  {
    name: "cni-conf-dir",
    metavar: "DIR",
    help: "where the CNI configurations are",
    default: "$NETCONFPATH, then /etc/cni/net.d",
  },
  {
    name: "cni-bin-dir",
    metavar: "DIR[:DIR]…",
    help: "where the CNI plugins are",
    default: "$CNI_PATH, then /opt/cni/bin and /usr/lib/cni",
  },
] as const satisfies Command["options"];

/**
 * The library's options for {@linkcode HOST_OPTIONS}. Notes go to stderr.
 *
 * @param signal interrupts the call when it is aborted
 */
export function hostOptions(
  script: string,
  flags: Partial<Record<(typeof HOST_OPTIONS)[number]["name"], string | undefined>>,
  signal?: AbortSignal,
): HostOptions {
  return withoutUndefined({
    signal,
    stateDir: flags["state-dir"],
    confDir: flags["cni-conf-dir"],
    binDirs: flags["cni-bin-dir"]?.split(":").filter((dir) => dir !== ""),
    note: (text: string) => printNote(script, text),
    detail: debugging() ? (text: string) => printNote(script, text) : undefined,
  });
}

/** The object without the keys whose value is `undefined`. */
export function withoutUndefined<T extends object>(
  object: T,
): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const entries = Object.entries(object).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]?: Exclude<T[K], undefined> };
}

/** With this first word, attach-vm and tapkit run serve-dhcp. */
export const BECOME_SERVE_DHCP = "--serve-dhcp";

/**
 * The command that starts a DHCP server. It executes this program again, which may be compiled,
 * bundled, or run from source.
 */
export function serveDhcpCommand(flags: { readonly "state-dir"?: string | undefined }): string[] {
  const stateDir = flags["state-dir"] ?? Deno.env.get("TAPKIT_STATE_DIR");
  const args = [
    "--exit-when-idle",
    ...stateDir === undefined || stateDir === ""
      ? []
      : [`--state-dir=${stateDir.startsWith("/") ? "" : `${Deno.cwd()}/`}${stateDir}`],
  ];
  if (Deno.build.standalone) return [Deno.execPath(), BECOME_SERVE_DHCP, ...args];
  const ours = /\/(?:tapkit|attach-vm)\.[a-z]+$/.test(Deno.mainModule);
  const program = ours
    ? [Deno.mainModule, BECOME_SERVE_DHCP]
    : [new URL("../../scripts/serve-dhcp.ts", import.meta.url).href];
  return [Deno.execPath(), "run", "-A", ...program, ...args];
}

/** Bit numbers of capabilities (linux/capability.h). */
const CAPABILITY = { CAP_NET_ADMIN: 12, CAP_NET_RAW: 13, CAP_SYS_ADMIN: 21 } as const;

/** Throws if this process lacks capabilities to change the host's networks, and names them. */
export function requireRoot(
  needed: readonly (keyof typeof CAPABILITY)[] = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"],
  status: string = Deno.readTextFileSync("/proc/self/status"),
): void {
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`);
  const missing = needed.filter((name) => (effective >> BigInt(CAPABILITY[name]) & 1n) === 0n);
  if (missing.length > 0) {
    throw new TapkitError(`this process lacks ${missing.join(" and ")}`, {
      mend: "run it as root",
    });
  }
}

const MENDS: Readonly<Record<string, string>> = {
  EACCES: "run it as root",
  EPERM: "run it as root",
  ENOSPC: "free space on that file system",
  ENOENT: "check that it exists",
  ENOTDIR: "check that it is a directory",
  EROFS: "make it writable, or choose another directory",
};

function explain(error: unknown): string {
  if (error instanceof TapkitError) return describe(error);
  if (error instanceof Deno.errors.NotCapable) {
    return `${describe(error)}: run it with deno run -A`;
  }
  if (error instanceof Error && "code" in error && error.code !== undefined) {
    const mend = MENDS[String(error.code)];
    return `${describe(error)} (${error.code})${mend === undefined ? "" : `: ${mend}`}`;
  }
  const kind = error instanceof Error ? `${error.name}: ` : "";
  return `this is a bug in tapkit: ${kind}${describe(error)}` +
    (debugging() ? "" : ": run it again with TAPKIT_DEBUG=1 to see where");
}

function debugging(): boolean {
  const allowed = Deno.permissions.querySync({ name: "env", variable: "TAPKIT_DEBUG" });
  return allowed.state === "granted" && Boolean(Deno.env.get("TAPKIT_DEBUG"));
}

/** Writes all of the text. A write may be partial, or fail for now on a non-blocking pipe. */
function writeOut(stream: { writeSync(bytes: Uint8Array): number }, text: string): void {
  let bytes = new TextEncoder().encode(text);
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(stream.writeSync(bytes));
    } catch (error) {
      if (error instanceof Deno.errors.BrokenPipe) return;
      if (!(error instanceof Deno.errors.WouldBlock)) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}
