/**
 * Who runs a command: where its output goes, what its words are about, and what it may do.
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

/** The absolute path of what a caller in `directory` means by `path`. */
export function absolutePath(path: string, directory?: string): string {
  if (path.startsWith("/")) return path;
  // @std/path would cost every command its loading, and resolves ".." without regard to links.
  const below = path.replace(/^(\.\/+)+/, "");
  return `${(directory ?? Deno.cwd()).replace(/\/$/, "")}/${below}`.replace(/\/\.$/, "");
}

/** The path of the resident's socket where none is named. */
export const DEFAULT_SOCKET = "/run/tapkit/tapkit.sock";

/** The socket that the environment names, if it does. */
export function namedSocket(): string | undefined {
  return Deno.env.get("TAPKIT_SOCKET") || undefined;
}

/** The namespaces of this process that commands are about, as `/proc/PID/ns` has them. */
export function ownNamespaces(): { readonly net: string; readonly mnt: string } {
  const read = (kind: string) => Deno.readLinkSync(`/proc/self/ns/${kind}`);
  return { net: read("net"), mnt: read("mnt") };
}

/** Bit numbers of capabilities (linux/capability.h). */
const CAPABILITY_BIT = { CAP_NET_ADMIN: 12n, CAP_NET_RAW: 13n, CAP_SYS_ADMIN: 21n } as const;

/** A capability that commands need. */
export type Capability = keyof typeof CAPABILITY_BIT;

/**
 * Those of the capabilities `needed` that this process lacks.
 *
 * @param status what `/proc/self/status` says
 */
export function missingCapabilities(
  needed: readonly Capability[],
  status: string = Deno.readTextFileSync("/proc/self/status"),
): Capability[] {
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`);
  return needed.filter((name) => (effective >> CAPABILITY_BIT[name] & 1n) === 0n);
}

/** A command that the resident takes. */
export type CommandName = "attach-vm" | "bridge-legacy" | "map-port";

/** Commands that the resident takes. */
export const HANDED_OVER: readonly CommandName[] = ["attach-vm", "bridge-legacy", "map-port"];

/**
 * The variable in which a launcher that install.ts wrote keeps the caller's DENO_DIR, empty for
 * none, because it sets another for us.
 */
export const DENO_DIR_BEFORE = "TAPKIT_CALLER_DENO_DIR";

/** Variables that commands go by. */
const VARIABLES = /^(TAPKIT|DOCKER)_|^(NETCONFPATH|CNI_PATH)$/;
/** Variables that say only where the resident is, or how the process was started. */
const OF_PROCESS = ["TAPKIT_SOCKET", DENO_DIR_BEFORE];

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
