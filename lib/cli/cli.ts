/**
 * A command that runs: what it prints, and where its library is.
 *
 * @module
 */

import { absolutePath, type Caller, thisProcess } from "../caller.ts";
import { describe, InputError, locating, TapkitError } from "../errors.ts";
import type { HostOptions } from "../vm/types.ts";
import type { Command } from "./args.ts";
import { debugging, explain } from "./explain.ts";

/** The exit codes of every script. */
export const EXIT = {
  done: 0,
  failed: 1,
  usage: 2,
  differs: 3,
  notStarted: 125,
} as const;

/** What scripts call. */
export type Library = typeof import("../../mod.ts");

/** Where a command runs. */
export interface Setting {
  /** Who runs it; this process, unless given. */
  readonly caller?: Caller;
  /** The caller's standard input, if that was read already. */
  readonly stdin?: string;
  /** Verbs that are done otherwise than by the library. */
  readonly verbs?: Partial<Library>;
  /** Whether a command may run there: it is asked for its state directory before it does anything. */
  readonly admit?: (stateDir: string | undefined) => boolean;
}

/** A command may not run where it is. */
export class NotHereError extends Error {}

/** Progress is shown after this time, and again each time it has passed; milliseconds. */
const PROGRESS_EVERY = 1000;
const LOG_LIMIT = 256 * 1024;

/** What {@linkcode Cli.forEachVm} does. */
export interface Doing {
  /** For errors: `"attach"` makes `cannot attach "web"`. */
  readonly verb: string;
  /** The exit code for a failure that has none of its own. */
  readonly failed?: number;
  /** Aborted, it ends the loop; VMs that were not begun are named. */
  readonly signal?: AbortSignal | undefined;
}

/** What shows on a terminal how far a command is. */
export interface Progress extends Disposable {
  /** Shows it, where it is time; to be called between what does not give others their turn. */
  look(): void;
}

/** A command that runs. */
export class Cli {
  /** Of the command. */
  readonly name: string;
  readonly caller: Caller;
  readonly #setting: Setting;
  /** The line of progress that is on the terminal now. */
  #progress = "";
  /** Takes notes and errors instead of stderr, which nobody may read. */
  #log: ((line: string) => boolean) | undefined;
  #signal: Promise<AbortSignal> | undefined;

  constructor(name: string, setting: Setting) {
    this.name = name;
    const { caller = thisProcess, stdin } = setting;
    this.caller = stdin === undefined ? caller : { ...caller, stdin: () => Promise.resolve(stdin) };
    this.#setting = setting;
  }

  /** What the command calls to do its work. */
  async library(): Promise<Library> {
    const library = await import("../../mod.ts");
    return this.#setting.verbs === undefined ? library : { ...library, ...this.#setting.verbs };
  }

  /** From now on, signals abort the returned one instead of ending the command. */
  heed(): Promise<AbortSignal> {
    return this.#signal ??= this.caller.heedSignals();
  }

  /** What {@linkcode heed} returned, if it was called. */
  get heeded(): Promise<AbortSignal> | undefined {
    return this.#signal;
  }

  /** Prints an error as one line on stderr. Returns the exit code for it. */
  error(error: unknown, doing?: string): number {
    this.note(doing === undefined ? explain(error) : `${doing}: ${explain(error)}`);
    if (debugging() && error instanceof Error) this.#tell(`${this.name}: ${error.stack ?? ""}`);
    if (error instanceof InputError) return EXIT.usage;
    return error instanceof TapkitError && "exitCode" in error && typeof error.exitCode === "number"
      ? error.exitCode
      : EXIT.failed;
  }

  /** Prints a line for people on stderr. */
  note(text: string): void {
    this.#tell(`${this.name}: ${text.replaceAll(/\s*\n\s*/g, " ")}`);
  }

  /** Prints one object as a line of JSON on stdout. */
  json(value: unknown): void {
    this.text(JSON.stringify(value));
  }

  /** Prints the problems that `--check` found. Returns the exit code for them. */
  problems(object: object, problems: readonly string[]): number {
    this.json({ ...object, problems });
    return problems.length === 0 ? EXIT.done : EXIT.differs;
  }

  /** Prints a line on stdout, with control characters escaped. A closed pipe is not an error. */
  text(text: string): void {
    this.painted(visible(text));
  }

  /** Prints a line whose control characters are its own: see style.ts. */
  painted(text: string): void {
    try {
      this.#clearProgress();
      this.caller.stdout(`${text}\n`);
    } catch (error) {
      throw new TapkitError(`stdout cannot be written: ${describe(error)}`, {
        mend: "what was done stays; print it again with --list",
        cause: error,
      });
    }
  }

  /** Sends notes and errors to a file of bounded size; to stderr only if it cannot be written. */
  async logTo(path: string): Promise<void> {
    const { appendBounded } = await import("../files.ts");
    const file = this.path(path);
    this.#log = (line) => {
      try {
        appendBounded(file, `${new Date().toISOString()} ${line}`, LOG_LIMIT);
        return true;
      } catch {
        return false;
      }
    };
  }

  /** The absolute path of what the caller means by `path`. */
  path(path: string): string {
    return absolutePath(path, this.caller.cwd);
  }

  /**
   * The library's options for {@linkcode HOST_OPTIONS}. Notes go to stderr.
   *
   * @param signal interrupts the call when it is aborted
   */
  hostOptions(
    flags: Partial<Record<(typeof HOST_OPTIONS)[number]["name"], string | undefined>>,
    signal?: AbortSignal,
  ): HostOptions {
    const named = (path: string | undefined) => path === undefined ? undefined : this.path(path);
    const stateDir = named(flags["state-dir"]);
    if (this.#setting.admit?.(stateDir) === false) throw new NotHereError();
    const directories = flags["cni-bin-dir"]?.split(":").filter((directory) => directory !== "");
    return withoutUndefined({
      signal,
      stateDir,
      confDir: named(flags["cni-conf-dir"]),
      binDirs: directories?.map((directory) => this.path(directory)),
      note: (text: string) => this.note(text),
      detail: debugging() ? (text: string) => this.note(text) : undefined,
    });
  }

  /**
   * Does `act` for each VM, past failures, and returns the exit code. The VMs of a list are done in
   * turns: while one waits for a program of others, the next begins.
   */
  async forEachVm<T extends { readonly name: string }>(
    { verb, failed, signal }: Doing,
    vms: readonly T[] | AsyncIterable<T>,
    act: (vm: T, waits: () => void) => Promise<number | void> | number | void,
  ): Promise<number> {
    const codes: number[] = [];
    const left = new Set(isList(vms) ? vms : []);
    const done: string[] = [];
    const what = () => {
      const all = isList(vms) ? vms.length : undefined;
      if (all === 1) return `${verb} ${JSON.stringify((vms as readonly T[])[0]!.name)}`;
      return `${verb}: ${all === undefined ? codes.length : `${codes.length} of ${all}`} done`;
    };
    // The terminal is the VMM's.
    using progress = verb === "run" ? undefined : this.progress(what);
    const actOn = async (vm: T, waits = () => {}) => {
      left.delete(vm);
      progress?.look();
      try {
        const code = await act(vm, waits) ?? EXIT.done;
        if (signal?.aborted) done.push(`${JSON.stringify(vm.name)} was done before`);
        return code;
      } catch (error) {
        const code = this.error(error, cannot(verb, vm.name));
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
      this.note(`${describe(signal.reason)}: ${parts.join("; ")}`);
    }
    const [first = EXIT.done, ...others] = codes;
    if (others.every((code) => code === first)) return first;
    return codes.every((code) => code === EXIT.done || code === EXIT.differs)
      ? EXIT.differs
      : EXIT.failed;
  }

  /**
   * From a second on, says on a terminal what takes so long, in a line that the next text replaces; until
   * the result is disposed of.
   *
   * @param what what is being done by now: `attach "web"`
   */
  progress(what: () => string): Progress {
    const { caller } = this;
    if (!caller.hasTerminal) return { look: () => {}, [Symbol.dispose]: () => {} };
    const begun = performance.now();
    let shown = begun;
    const look = () => {
      const now = performance.now();
      if (now - shown < PROGRESS_EVERY) return;
      shown = now;
      this.#clearProgress();
      const seconds = Math.floor((now - begun) / 1000);
      this.#progress = visible(`${this.name}: ${what()}, ${seconds} s`);
      caller.stderr(this.#progress);
    };
    const timer = setInterval(look, PROGRESS_EVERY / 4);
    return {
      look,
      [Symbol.dispose]: () => {
        clearInterval(timer);
        this.#clearProgress();
      },
    };
  }

  #clearProgress(): void {
    if (this.#progress === "") return;
    this.caller.stderr(`\r${" ".repeat(this.#progress.length)}\r`);
    this.#progress = "";
  }

  /** Writes to stderr, or to the log. A failure is ignored: nobody could be told. */
  #tell(text: string): void {
    try {
      const line = `${visible(text)}\n`;
      if (this.#log?.(line) === true) return;
      this.#clearProgress();
      this.caller.stderr(line);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
    }
  }
}

/** Validates all requests before the first VM is touched. An error names the VM. */
export function validateEach<T extends { readonly name: string }>(
  verb: string,
  vms: Iterable<T>,
  validate: (vm: T) => void,
): void {
  for (const vm of vms) locating(cannot(verb, vm.name), () => validate(vm));
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

/** The object without the keys whose value is `undefined`. */
export function withoutUndefined<T extends object>(
  object: T,
): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const entries = Object.entries(object).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]?: Exclude<T[K], undefined> };
}

/** Control characters of terminals and of text direction. Text of others may contain them. */
const CONTROLS =
  // deno-lint-ignore no-control-regex -- control characters are meant.
  /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** Escapes control characters as JSON does, so that a line of JSON keeps its meaning. */
export function visible(text: string): string {
  return text.replaceAll(
    CONTROLS,
    (control) => `\\u${control.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

function cannot(verb: string, name: string): string {
  return `cannot ${verb} ${JSON.stringify(name)}`;
}

function isList<T>(vms: readonly T[] | AsyncIterable<T>): vms is readonly T[] {
  return Array.isArray(vms);
}
