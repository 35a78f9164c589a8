/**
 * Child processes. Nothing else starts them.
 *
 * @module
 */

import { DENO_DIR_BEFORE } from "./caller.ts";
import { TapkitError } from "./errors.ts";
import { isFile } from "./files.ts";
import { keepDescriptors, spawnSession } from "./sys/spawn.ts";

/**
 * The environment of a program that outlives this one: paths and settings, no secrets of the
 * caller.
 */
const LASTING =
  /^(PATH|HOME|LANG|LC_ALL|TZ|TMPDIR|XDG_CACHE_HOME|DENO_DIR|DENO_V8_FLAGS|NO_COLOR|NETCONFPATH|CNI_PATH|TAPKIT_.*)$/;

/**
 * Starts a program that outlives this one: in a session of its own, without descriptors of ours,
 * with a small part of our environment, and with {@linkcode residentVariables}.
 *
 * Equivalent to: `setsid env -i PATH="$PATH" … PROGRAM ARG… </dev/null >/dev/null 2>&1 &`
 */
export function spawnDetached(program: string, args: readonly string[]): void {
  keepDescriptors();
  const env = Object.entries(Deno.env.toObject()).filter(([name]) => LASTING.test(name));
  spawnSession(program, args, { ...Object.fromEntries(env), ...residentVariables() });
}

/**
 * The resident needs half the memory with these flags. V8 takes no code from a cache that was written
 * without them, so they come with a cache of their own, in a directory of this name.
 */
export const RESIDENT_V8_FLAGS = "--max-semi-space-size=1,--optimize-for-size";
export const RESIDENT_CACHE = "resident";

/** The variables that the resident is started with, as this program would start it. */
export function residentVariables(): Record<string, string> {
  const { [DENO_DIR_BEFORE]: before, DENO_DIR: cache } = Deno.env.toObject();
  const hasCache = before !== undefined && cache !== undefined;
  return {
    // A Deno that runs for long asks over the network whether there is a newer one.
    DENO_NO_UPDATE_CHECK: "1",
    ...hasCache || Deno.build.standalone ? { DENO_V8_FLAGS: RESIDENT_V8_FLAGS } : {},
    ...hasCache ? { DENO_DIR: `${cache}/${RESIDENT_CACHE}` } : {},
  };
}

/** The environment of our caller. */
function callersEnvironment(): Record<string, string> {
  const { [DENO_DIR_BEFORE]: before, DENO_DIR: now, ...env } = Deno.env.toObject();
  const directory = before ?? now;
  return directory === undefined || directory === "" ? env : { ...env, DENO_DIR: directory };
}

/**
 * Starts a program with our standard input, output and error, in the network namespace of the
 * calling thread. `env` is added to our caller's environment.
 *
 * @throws {Deno.errors.NotFound} when there is no such program
 * @throws {Deno.errors.PermissionDenied} when it cannot be executed
 */
export function spawnInherited(
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Deno.ChildProcess {
  keepDescriptors();
  return new Deno.Command(program, {
    args: [...args],
    clearEnv: true,
    env: { ...callersEnvironment(), ...env },
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
}

/**
 * Runs a program to its end and returns its standard output. `env` is added to our environment.
 *
 * @throws {TapkitError} when it is missing, or fails; with the last line of its standard error
 */
export function runSync(
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): string {
  keepDescriptors();
  let output: Deno.CommandOutput;
  try {
    output = new Deno.Command(program, {
      args: [...args],
      env: { NO_COLOR: "1", ...env },
      stdin: "null",
    }).outputSync();
  } catch (error) {
    throw new TapkitError(`${program} cannot be run`, {
      mend: `install the package that contains ${program}`,
      cause: error,
    });
  }
  const decoder = new TextDecoder();
  if (output.success) return decoder.decode(output.stdout);
  const said = decoder.decode(output.stderr).trim().split("\n");
  // Some programs end with a hint where to read more, or with a location in their source.
  const reason = said.find((line) => line.startsWith("error: ")) ??
    said.findLast((line) => !line.startsWith("Try ")) ?? "";
  throw new TapkitError(`${program} ${args[0] ?? ""} failed with ${output.code}: ${reason}`);
}

/** How to run a program on pipes, with a time limit. */
export interface PipedRun {
  readonly args?: readonly string[];
  /** Added to our environment. */
  readonly env: Readonly<Record<string, string>>;
  readonly stdin: string;
  /** It is killed after this time, with its process group. */
  readonly timeoutMs: number;
  /** It is killed if it writes more bytes than this to its standard output. */
  readonly maxStdout: number;
  /** Kills it when aborted. A terminal's signals do not reach its session. */
  readonly signal?: AbortSignal | undefined;
  /** How long it may still run after that. */
  readonly graceMs?: number;
}

/** How such a program ended. */
export interface PipedOutcome {
  readonly stdout: string;
  /** Only the end, if it was long. */
  readonly stderr: string;
  readonly code: number;
  /** The signal that ended it: `"SIGSEGV"`. */
  readonly signal?: string;
  /** Why we killed it. */
  readonly killed?: "timeout" | "output" | "interrupted";
}

/** How many bytes of its standard error are kept. */
const MAX_STDERR = 16 * 1024;
/** How long we read its pipes after it ended: a child of the program may keep them open. */
const PIPE_GRACE_MS = 200;

/**
 * With `detached`, Deno uses fork, which copies the page tables of a large process and takes longer
 * than many programs run. Without it, Deno uses vfork.
 */
const SETSID = "/usr/bin/setsid";

/**
 * Runs a program to its end, in a session and process group of its own, and in the network
 * namespace of the calling thread. Does not wait for a child of the program that keeps the pipes
 * open.
 *
 * @throws {Deno.errors.NotFound} when there is no such program
 * @throws {Deno.errors.PermissionDenied} when it cannot be executed
 */
export async function runPiped(program: string, run: PipedRun): Promise<PipedOutcome> {
  // Throws the errors that setsid would only print.
  const executable = (Deno.statSync(program).mode ?? 0) & 0o111;
  if (executable === 0) throw new Deno.errors.PermissionDenied(`${program} is not executable`);
  const setsid = isFile(SETSID);
  let killed: PipedOutcome["killed"];
  const kill = (why: typeof killed) => {
    killed ??= why;
    killWithGroup(child);
  };
  using stack = new DisposableStack();
  keepDescriptors();
  const child = new Deno.Command(setsid ? SETSID : program, {
    args: [...setsid ? [program] : [], ...run.args ?? []],
    env: { ...run.env },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
    detached: !setsid,
  }).spawn();
  const killAfter = (ms: number, why: typeof killed) => {
    const timer = setTimeout(() => kill(why), ms);
    stack.defer(() => clearTimeout(timer));
  };
  killAfter(run.timeoutMs, "timeout");
  const interrupt = () => killAfter(run.graceMs ?? 0, "interrupted");
  if (run.signal?.aborted) interrupt();
  run.signal?.addEventListener("abort", interrupt);
  stack.defer(() => run.signal?.removeEventListener("abort", interrupt));
  const stdout = readPipe(child.stdout, { limit: run.maxStdout, onMore: () => kill("output") });
  const stderr = readPipe(child.stderr, { limit: MAX_STDERR });
  const written = writeInput(child.stdin, run.stdin);
  const { code, signal } = await child.status;
  const [out, err] = await Promise.all([stdout.end(PIPE_GRACE_MS), stderr.end(PIPE_GRACE_MS)]);
  await written.end();
  return {
    stdout: out,
    stderr: err,
    code,
    ...signal === null ? {} : { signal },
    ...killed === undefined ? {} : { killed },
  };
}

/** Writes the input of a program, which may not read it. */
function writeInput(stream: WritableStream<Uint8Array>, text: string) {
  const writer = stream.getWriter();
  const done = writer.write(new TextEncoder().encode(text)).then(() => writer.close())
    .catch(() => {});
  return {
    async end(): Promise<void> {
      await Promise.race([writer.abort().catch(() => {}), done]);
    },
  };
}

/** Reads a pipe. Keeps the last `limit` bytes, and calls `onMore` if there are more. */
function readPipe(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
  { limit, onMore }: { limit: number; onMore?: () => void },
) {
  const reader = stream.getReader();
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  let size = 0;
  const reading = (async () => {
    for (let next = await reader.read(); !next.done; next = await reader.read()) {
      chunks.push(next.value);
      size += next.value.length;
      if (size > limit) onMore?.();
      while (chunks.length > 1 && size - chunks[0]!.length > limit) size -= chunks.shift()!.length;
    }
  })().catch(() => {});
  return {
    async end(graceMs: number): Promise<string> {
      let timer: ReturnType<typeof setTimeout> | undefined;
      const grace = new Promise<void>((resolve) => timer = setTimeout(resolve, graceMs));
      await Promise.race([reading, grace]);
      clearTimeout(timer);
      await reader.cancel().catch(() => {});
      await reading;
      return await new Blob(chunks).slice(Math.max(0, size - limit)).text();
    },
  };
}

/** Kills a program that leads a process group, and the group. */
function killWithGroup(child: Deno.ChildProcess): void {
  // The program first: if setsid has not made the group yet, it makes none any more.
  for (const kill of [() => child.kill("SIGKILL"), () => Deno.kill(-child.pid, "SIGKILL")]) {
    try {
      kill();
    } catch {
      // It has ended.
    }
  }
}
