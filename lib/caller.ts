/**
 * Who runs a command: where its output goes, and what its words are about.
 *
 * @module
 */

/** Who runs a command. */
export interface Caller {
  /** The directory that relative paths start from. */
  readonly cwd: string;
  /** Whether its standard error is a terminal. */
  readonly hasTerminal: boolean;
  /**
   * Writes all of the text. A reader that has gone away is not an error.
   *
   * @throws {Error} when it cannot be written
   */
  stdout(text: string): void;
  /** Writes all of the text, like `stdout`. */
  stderr(text: string): void;
  /** All of its standard input. */
  stdin(): Promise<string>;
  /**
   * From now on, signals that ask the command to end abort the returned one, with an
   * {@linkcode InterruptedError} as its reason, instead of ending it.
   */
  heedSignals(): Promise<AbortSignal>;
}

/** The caller of a command that runs in this process alone. */
export const thisProcess: Caller = {
  get cwd() {
    return Deno.cwd();
  },
  get hasTerminal() {
    return Deno.stderr.isTerminal();
  },
  stdout: (text) => writeOut(Deno.stdout, text),
  stderr: (text) => writeOut(Deno.stderr, text),
  stdin: () => new Response(Deno.stdin.readable).text(),
  heedSignals: async () => (await import("./signals.ts")).heedSignals(),
};

/** Variables that commands go by. */
const VARIABLES = /^(TAPKIT|DOCKER)_|^(NETCONFPATH|CNI_PATH)$/;
/** Variables that say only where the resident is, or how the process was started. */
const OF_PROCESS = ["TAPKIT_SOCKET", "TAPKIT_CALLER_DENO_DIR"];

/** Of this process's environment, what commands go by. */
export function commandVariables(): Record<string, string> {
  const all = Object.entries(Deno.env.toObject());
  return Object.fromEntries(
    all.filter(([name]) => VARIABLES.test(name) && !OF_PROCESS.includes(name)),
  );
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
