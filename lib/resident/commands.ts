/**
 * Command lines that other processes hand over: they run here, and print there.
 *
 * @module
 */

import { type Caller, type CommandName, commandVariables } from "../caller.ts";
import { InputError } from "../errors.ts";
import { interruptedBy, SIGNALS } from "../signals.ts";
import { type HostPaths, hostPaths } from "../vm/record/paths.ts";
import { HttpError } from "./http.ts";
import type { ResidentVerbs } from "./verbs.ts";

/** What a command needs of the request that hands it over, and of the process that takes it. */
interface Call {
  readonly body: unknown;
  readonly signal: AbortSignal;
  readonly note: (text: string) => void;
  readonly host: HostPaths;
  readonly version: string;
  readonly namespaces: { readonly net: string; readonly mnt: string };
  readonly verbs: ResidentVerbs;
}

/** Runs a command line. Returns its exit code; `undefined` when it was not admitted. */
export type RunCommand = (command: CommandName, args: readonly string[], setting: {
  /** Who runs it: where its output goes, and what its words are about. */
  readonly caller: Caller;
  /** The library's verbs, as the resident does them. */
  readonly verbs: ResidentVerbs;
  /** Asked for the command's state directory, absolute if it names one, before it does anything. */
  readonly admit: (stateDir: string | undefined) => boolean;
}) => Promise<number | undefined>;

/** A command line, and whose it is. */
interface CommandRequest {
  /** Chosen by the client: it names the command where it is to be ended. */
  readonly id: string;
  readonly command: CommandName;
  readonly args: readonly string[];
  readonly cwd: string;
  readonly hasTerminal: boolean;
  readonly environment: Readonly<Record<string, string>>;
  readonly version: string;
  readonly namespaces: { readonly net: string; readonly mnt: string };
  readonly stdin?: string;
}

/** A piece of what a command prints, or its exit code, which comes last. */
type Piece =
  | { readonly stdout: string }
  | { readonly stderr: string }
  | { readonly exit: number };

/** The commands that run. */
export class Commands {
  readonly #run: RunCommand;
  readonly #environment = commandVariables();
  readonly #running = new Map<string, (signal: keyof typeof SIGNALS) => void>();

  constructor(run: RunCommand) {
    this.#run = run;
  }

  /**
   * Runs a command. What it prints comes as it is printed. Without an exit code in the end it is to be run
   * elsewhere: it did nothing, or was undone because this process ends.
   *
   * @throws {HttpError} 421 for a client that another process has to serve
   */
  run(call: Call): AsyncGenerator<Piece> {
    const request = call.body as CommandRequest;
    this.#refuseForeign(call, request);
    if (request.args.includes("--")) {
      throw new InputError("a VMM is its command's own child", { mend: "run the command itself" });
    }
    if (this.#running.has(request.id)) throw new InputError(`command ${request.id} runs already`);
    return this.#pieces(call, request);
  }

  /** Does what a signal would do to a command. Returns whether it runs. */
  end(id: string, signal: number): boolean {
    const name = (Object.keys(SIGNALS) as (keyof typeof SIGNALS)[])
      .find((name) => SIGNALS[name] === signal)!;
    this.#running.get(id)?.(name);
    return this.#running.has(id);
  }

  async *#pieces(call: Call, request: CommandRequest): AsyncGenerator<Piece> {
    const pieces: Piece[] = [];
    let wake = () => {};
    let isOver = false;
    const put = (piece: Piece) => {
      // What is undone because the connection or this process ends says nothing.
      if (!call.signal.aborted && !isOver) pieces.push(piece);
      wake();
    };
    const end = (code: number | undefined) => {
      if (code !== undefined) put({ exit: code });
      isOver = true;
      wake();
    };
    const signals = new AbortController();
    let heeded = false;
    const caller: Caller = {
      ...request,
      stdout: (stdout) => put({ stdout }),
      stderr: (stderr) => (call.note(stderr.trimEnd()), put({ stderr })),
      stdin: () => Promise.resolve(request.stdin ?? ""),
      heedSignals: () => {
        heeded = true;
        return Promise.resolve(signals.signal);
      },
    };
    const abort = () => (signals.abort(call.signal.reason), wake());
    call.signal.addEventListener("abort", abort);
    if (call.signal.aborted) abort();
    this.#running.set(request.id, (name) => {
      const reason = interruptedBy(name);
      if (heeded) signals.abort(reason);
      else end(reason.exitCode);
    });
    const isOurs = (stateDir: string | undefined) =>
      hostPaths(stateDir === undefined ? {} : { stateDir }).stateDir === call.host.stateDir;
    const setting = { caller, verbs: call.verbs, admit: isOurs };
    const work = this.#run(request.command, request.args, setting).then(end);
    try {
      while (true) {
        yield* pieces.splice(0);
        if (isOver || call.signal.aborted) break;
        const { promise, resolve } = Promise.withResolvers<void>();
        wake = resolve;
        await Promise.race([promise, work]);
      }
      yield* pieces.splice(0);
    } finally {
      await work;
      this.#running.delete(request.id);
      call.signal.removeEventListener("abort", abort);
    }
  }

  #refuseForeign(call: Call, { version, namespaces, environment }: CommandRequest): void {
    const { net, mnt } = call.namespaces;
    const names = new Set([...Object.keys(environment), ...Object.keys(this.#environment)]);
    const foreign = version !== call.version
      ? `version ${version}`
      : namespaces.net !== net || namespaces.mnt !== mnt
      ? "another network or mount namespace"
      : [...names].find((name) => environment[name] !== this.#environment[name]) ??
        [...names].find((name) => RELATIVE.test(environment[name] ?? "") && isOfPaths(name));
    if (foreign === undefined) return;
    throw new HttpError(421, `this resident does not serve ${foreign}`, {
      mend: "run the command itself",
    });
  }
}

const RELATIVE = /(^|:)[^/:]/;

function isOfPaths(variable: string): boolean {
  return ["NETCONFPATH", "CNI_PATH", "TAPKIT_STATE_DIR"].includes(variable);
}
