/**
 * Where a command begins: the host's resident does its work if it takes it, else this process.
 *
 * This much is loaded by every command, and where the resident answers, nothing else is.
 *
 * @module
 */

import deno from "../../deno.json" with { type: "json" };
import {
  commandVariables,
  DEFAULT_SOCKET,
  HANDED_OVER,
  namedSocket,
  ownNamespaces,
  thisProcess,
} from "../caller.ts";
import type { Setting } from "./cli.ts";

/** Words of commands that run here: for help, the version, and this process's descriptors. */
const OWN = /^(--help|-h|--version)$|\/(dev\/(fd|std)|proc\/(thread-)?self\b)/;
/** How long the resident may take to say that it takes a command, or to be told of a signal. */
const ANSWER_MS = 2000;
/** The most output, in characters, that is written synchronously: a pipe's buffer holds it. */
const SMALL = 32 * 1024;

type Main = (args: readonly string[], setting?: Setting) => Promise<number>;

/**
 * Runs a command, and returns its exit code.
 *
 * @param words the command's name and its arguments
 * @param named whether `main` takes the name too
 */
export async function start(words: readonly string[], main: Main, named = false): Promise<number> {
  const done = await handOver(words);
  if (typeof done === "number") return done;
  return await main(named ? words : words.slice(1), done);
}

/**
 * Has the resident run a command. Returns the exit code; or, if the command is to run here, the
 * setting to run it with. That setting never has this file's `thisProcess`: in the bundle the scripts
 * are another file with their own classes, and would not recognize the errors that its signals raise.
 */
async function handOver(words: readonly string[]): Promise<number | Setting> {
  const ours = HANDED_OVER.some((name) => name === words[0]) &&
    !words.some((word) => word === "--" || OWN.test(word));
  if (!ours || !mayConnect()) return {};
  const path = namedSocket() ?? DEFAULT_SOCKET;
  const connection = path === "none" ? undefined : await connect(path);
  if (connection === undefined) return {};
  using _connection = connection;
  const reads = words.includes("-") || words.includes("--from=-");
  const text = reads ? await thisProcess.stdin() : undefined;
  const id = crypto.randomUUID();
  const request = {
    id,
    command: words[0]!,
    args: words.slice(1),
    version: deno.version,
    cwd: thisProcess.cwd,
    environment: commandVariables(),
    hasTerminal: thisProcess.hasTerminal,
    namespaces: ownNamespaces(),
    stdin: text,
  };
  let isHeeding = false;
  const code = await run(connection, request, async (ended) => {
    if (isHeeding) return;
    isHeeding = true;
    const signals = await thisProcess.heedSignals();
    signals.addEventListener("abort", async () => {
      const { exitCode } = signals.reason;
      if (ended.aborted) Deno.exit(exitCode);
      let isTold = false;
      after(ANSWER_MS, () => isTold || Deno.exit(exitCode));
      await endCommand(path, id, exitCode - 128);
      isTold = true;
    });
  });
  if (code !== undefined) return code;
  return text === undefined ? {} : { stdin: text };
}

/** Whether Deno has granted all that handing over takes: it must not prompt for more. */
function mayConnect(): boolean {
  return (["read", "write", "net", "env"] as const)
    .every((name) => Deno.permissions.querySync({ name }).state === "granted");
}

async function connect(path: string): Promise<Deno.UnixConn | undefined> {
  try {
    return await Deno.connect({ transport: "unix", path });
  } catch {
    return undefined;
  }
}

/**
 * Sends a command, and prints its output. Returns its exit code; `undefined` if it is to run here,
 * because the resident did not take it, or undid it before it printed anything.
 */
async function run(
  connection: Deno.UnixConn,
  request: { readonly command: string },
  onWait: (ended: AbortSignal) => Promise<void>,
): Promise<number | undefined> {
  const ended = new AbortController();
  let isTaken = false;
  after(ANSWER_MS, () => isTaken || ended.signal.aborted || connection.close());
  let failure: unknown;
  let printed = 0;
  let writing = Promise.resolve();
  const print = (to: "stdout" | "stderr", text: string) => {
    printed += text.length;
    const failed = (error: unknown) => {
      if (to === "stdout" && !(error instanceof Deno.errors.BrokenPipe)) failure ??= error;
    };
    try {
      if (printed <= SMALL) return thisProcess[to](text);
    } catch (error) {
      return failed(error);
    }
    // A slow reader, such as a pager, must not hold up the resident.
    writing = writing.then(() => writeAll(Deno[to], text)).catch(failed);
  };
  try {
    await send(connection, "POST /v1/commands", request);
    const onHead = () => isTaken = true;
    for await (const line of linesOf(connection, onHead, () => onWait(ended.signal))) {
      const { stdout, stderr, exit } = JSON.parse(line);
      if (stdout !== undefined) print("stdout", stdout);
      if (stderr !== undefined) print("stderr", stderr);
      if (exit === undefined) continue;
      await writing;
      if (failure === undefined) return exit;
      const why = `stdout cannot be written: ${(failure as Error).message}`;
      print("stderr", `${request.command}: ${why}: what was done stays; print it with --list\n`);
      await writing;
      return exit === 0 ? 1 : exit;
    }
  } catch (error) {
    if (!(error instanceof Error)) throw error;
  } finally {
    ended.abort();
  }
  if (printed === 0) return undefined;
  print("stderr", `${request.command}: the resident ended before it was done: run it again\n`);
  await writing;
  return 1;
}

/** Sends a signal to a command that the resident runs. */
async function endCommand(path: string, id: string, signal: number): Promise<void> {
  using connection = await connect(path);
  if (connection === undefined) return;
  await send(connection, `DELETE /v1/commands/${id}?signal=${signal}`);
  await connection.read(new Uint8Array(1));
}

/** Sends a request. With HTTP 1.0 the answer ends where the connection does. */
async function send(connection: Writer, what: string, json?: object): Promise<void> {
  const body = json === undefined ? "" : JSON.stringify(json);
  const length = new TextEncoder().encode(body).length;
  const head = `${what} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: ${length}`;
  await writeAll(connection, `${head}\r\n\r\n${body}`);
}

interface Writer {
  write(bytes: Uint8Array): Promise<number>;
}

async function writeAll(writer: Writer, text: string): Promise<void> {
  let bytes = new TextEncoder().encode(text);
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(await writer.write(bytes));
    } catch (error) {
      // A non-blocking pipe is full.
      if (!(error instanceof Deno.errors.WouldBlock)) throw error;
      await new Promise<void>((resolve) => after(1, resolve));
    }
  }
}

/** Calls `act` later. Deno's own timers take 4 ms to be loaded. */
function after(ms: number, act: () => void): void {
  const { value } = Atomics.waitAsync(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
  Promise.resolve(value).then(act);
}

/**
 * The lines of an answer; none if the request was refused.
 *
 * @param onHead called when the request is taken
 * @param onWait called when the rest of the answer takes longer
 */
async function* linesOf(
  connection: Deno.UnixConn,
  onHead: () => void,
  onWait: () => Promise<void>,
): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  const bytes = new Uint8Array(64 * 1024);
  let text = "";
  let isBody = false;
  for (let count; (count = await connection.read(bytes)) !== null;) {
    text += decoder.decode(bytes.subarray(0, count), { stream: true });
    if (!isBody) {
      const end = text.indexOf("\r\n\r\n");
      if (end === -1) continue;
      if (!/^HTTP\/1\.\d 200 /.test(text)) return;
      isBody = true;
      text = text.slice(end + 4);
      onHead();
    }
    const lines = text.split("\n");
    text = lines.pop()!;
    yield* lines;
    await onWait();
  }
}
