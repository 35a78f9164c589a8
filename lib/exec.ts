/**
 * Child processes: the one place that starts them.
 *
 * @module
 */

import { TapkitError } from "./errors.ts";
import { isFile } from "./files.ts";
import { keepDescriptors, spawnSession } from "./sys/spawn.ts";

/** What a program that outlives this one is to know: where things are, and none of the caller's secrets. */
const LASTING =
  /^(PATH|HOME|LANG|LC_ALL|TZ|TMPDIR|XDG_CACHE_HOME|DENO_DIR|DENO_V8_FLAGS|NO_COLOR|NETCONFPATH|CNI_PATH|TAPKIT_.*)$/;

/**
 * Starts a program that outlives this one: in a session of its own, with no descriptor of ours,
 * and little of our environment.
 *
 * Equivalent to: `setsid env -i PATH="$PATH" … PROGRAM ARG… </dev/null >/dev/null 2>&1 &`
 */
export function spawnDetached(program: string, args: readonly string[]): void {
  keepDescriptors();
  const env = Object.entries(Deno.env.toObject()).filter(([name]) => LASTING.test(name));
  spawnSession(program, args, Object.fromEntries(env));
}

/**
 * Starts a program on this one's standard input, output and error, in the network namespace
 * the calling thread is in, with this one's environment and what is added to it.
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
    env: { ...env },
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
}

/**
 * Runs a program to its end and returns its standard output.
 *
 * @throws {TapkitError} when it is missing or fails, with the last line of its standard error
 */
export function runSync(program: string, args: readonly string[]): string {
  keepDescriptors();
  let output: Deno.CommandOutput;
  try {
    const env = { NO_COLOR: "1" };
    output = new Deno.Command(program, { args: [...args], env, stdin: "null" }).outputSync();
  } catch (error) {
    throw new TapkitError(`${program} cannot be run`, {
      mend: `install the package that has ${program}`,
      cause: error,
    });
  }
  const decoder = new TextDecoder();
  if (output.success) return decoder.decode(output.stdout);
  const said = decoder.decode(output.stderr).trim().split("\n");
  // The last that some programs say is where to read more, or where in them it was.
  const reason = said.find((line) => line.startsWith("error: ")) ??
    said.findLast((line) => !line.startsWith("Try ")) ?? "";
  throw new TapkitError(`${program} ${args[0] ?? ""} failed with ${output.code}: ${reason}`);
}

/** How to run a program that reads its input from a pipe and is given so long. */
export interface PipedRun {
  readonly args?: readonly string[];
  /** Added to this process's own environment. */
  readonly env: Readonly<Record<string, string>>;
  readonly stdin: string;
  /** When it is killed, with its whole process group. */
  readonly timeoutMs: number;
  /** More bytes than these on its standard output, and it is killed. */
  readonly maxStdout: number;
  /** Kills it when it is raised. Its session gets none of a terminal's signals. */
  readonly signal?: AbortSignal | undefined;
  /** How much longer it may take once that is raised. */
  readonly graceMs?: number;
}

/** What became of such a program. */
export interface PipedOutcome {
  readonly stdout: string;
  /** The end of it, where it was long. */
  readonly stderr: string;
  readonly code: number;
  /** The signal that ended it: `"SIGSEGV"`. */
  readonly signal?: string;
  /** Why it was killed here. */
  readonly killed?: "timeout" | "output" | "interrupted";
}

/** How much is kept of what a program says on its standard error. */
const MAX_STDERR = 16 * 1024;
/** How long a program that has ended may have its pipes open: a child of its may hold them for good. */
const PIPE_GRACE_MS = 200;

/**
 * Deno forks for its own `detached`, copying the page tables of a large process, which takes longer
 * than many a program runs; without it there is a vfork.
 */
const SETSID = "/usr/bin/setsid";

/**
 * Runs a program in a session, and so a process group, of its own, in the network namespace the
 * calling thread is in, until it ends. A child of its that keeps the pipes open is not waited for.
 *
 * @throws {Deno.errors.NotFound} when there is no such program
 * @throws {Deno.errors.PermissionDenied} when it cannot be executed
 */
export async function runPiped(program: string, run: PipedRun): Promise<PipedOutcome> {
  // Throws for what setsid would only print.
  const executable = (Deno.statSync(program).mode ?? 0) & 0o111;
  if (executable === 0) throw new Deno.errors.PermissionDenied(`${program} is not executable`);
  const setsid = isFile(SETSID);
  let killed: PipedOutcome["killed"];
  const kill = (why: typeof killed) => {
    killed ??= why;
    killGroup(child.pid);
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
  const stdout = collect(child.stdout, { limit: run.maxStdout, onMore: () => kill("output") });
  const stderr = collect(child.stderr, { limit: MAX_STDERR });
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

/** A program need not read its input. */
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

/** Reads a pipe as it fills; keeps its end, or where more than `limit` matters, says so. */
function collect(
  stream: ReadableStream<Uint8Array>,
  { limit, onMore }: { limit: number; onMore?: () => void },
) {
  const reader = stream.getReader();
  const chunks: Uint8Array[] = [];
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
      const bytes = new Uint8Array(size);
      let at = 0;
      for (const chunk of chunks) {
        bytes.set(chunk, at);
        at += chunk.length;
      }
      return new TextDecoder().decode(bytes.subarray(Math.max(0, size - limit)));
    },
  };
}

function killGroup(pid: number): void {
  try {
    Deno.kill(-pid, "SIGKILL");
  } catch {
    // It has ended meanwhile.
  }
}
