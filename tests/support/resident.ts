/**
 * The resident on a throwaway host, and requests to it from the test's own process.
 *
 * @module
 */

import { connect, type ResidentClient } from "../../mod.ts";
import { scriptWords } from "./bundle.ts";
import type { Host } from "./host.ts";
import { eventually, ROOT } from "./machine.ts";
import type { Running } from "./running.ts";

const SOCKET = "/run/tapkit/tapkit.sock";

/** An answer. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  // deno-lint-ignore no-explicit-any
  readonly json: any;
}

/** The bytes of a request that attaches VMs. */
export function postLines(names: readonly string[]): string {
  const text = names.map((name) => JSON.stringify({ name })).join("\n");
  return "POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/jsonl\r\n" +
    `content-length: ${text.length}\r\n\r\n${text}`;
}

/** A resident that runs on a host. */
export class ResidentServer implements AsyncDisposable {
  readonly process: Running;
  readonly client: ResidentClient;
  /** The socket's path, for this process. */
  readonly path: string;
  readonly #http: Deno.HttpClient;

  private constructor(process: Running, client: ResidentClient, path: string) {
    this.process = process;
    this.client = client;
    this.path = path;
    this.#http = Deno.createHttpClient({ proxy: { transport: "unix", path } });
  }

  /**
   * Starts it, and waits until it answers.
   *
   * @param clientTimeout in seconds; only the library has it
   * @param program what to start: the sources or the bundle that are tested, unless given
   */
  static async start(
    host: Host,
    { args = [], clientTimeout, program }: {
      args?: readonly string[];
      clientTimeout?: number;
      program?: string;
    } = {},
  ): Promise<ResidentServer> {
    const code = `import { serve } from "${ROOT}/mod.ts";
      const stop = new AbortController();
      Deno.addSignalListener("SIGTERM", () => stop.abort());
      await serve({
        clientTimeout: ${clientTimeout},
        note: (text) => console.error(text),
        signal: stop.signal,
      });`;
    const flags = ["--socket", SOCKET, ...args];
    const [command, ...words] = program !== undefined
      ? [program, ...flags]
      : clientTimeout === undefined
      ? [Deno.execPath(), ...scriptWords("serve"), ...flags]
      : [Deno.execPath(), "eval", "--config", `${ROOT}/deno.json`, "--ext=ts", code];
    const process = host.spawn(command, words);
    const path = host.path(SOCKET);
    const client = await connect({ socket: path });
    const ended = process.status.then(async () => {
      throw new Error(`the resident ended: ${await process.stderr}`);
    });
    ended.catch(() => {});
    const up = eventually(
      20_000,
      "the resident answers",
      () => client.health().then(() => true, () => false),
    );
    await Promise.race([up, ended]);
    return new ResidentServer(process, client, path);
  }

  /** Sends a request. A body that is no text is sent as JSON. */
  async ask(method: string, path: string, body?: unknown, type?: string): Promise<Answer> {
    const response = await fetch(`http://localhost${path}`, {
      client: this.#http,
      method,
      ...body !== undefined && {
        body: typeof body === "string" ? body : JSON.stringify(body),
        headers: { "content-type": type ?? "application/json" },
      },
    });
    const text = await response.text();
    const isJson = response.headers.get("content-type") === "application/json";
    const json = isJson ? JSON.parse(text) : undefined;
    return { status: response.status, headers: response.headers, text, json };
  }

  /** Opens a connection for bytes of any kind. */
  async raw(text = ""): Promise<Deno.UnixConn> {
    const connection = await Deno.connect({ transport: "unix", path: this.path });
    if (text !== "") await connection.write(new TextEncoder().encode(text));
    return connection;
  }

  /** Ends it by a signal; returns its exit code and what it said. */
  async end(signal: Deno.Signal = "SIGTERM"): Promise<{ code: number; stderr: string }> {
    this.process.kill(signal);
    const { code } = await this.process.status;
    return { code, stderr: await this.process.stderr };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client[Symbol.dispose]();
    this.#http.close();
    await this.process[Symbol.asyncDispose]();
  }
}
