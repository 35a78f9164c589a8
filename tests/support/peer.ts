/**
 * Programs inside a network namespace: a process of its own, since an asynchronous socket of
 * this process would be opened in this process's namespace.
 */

import { fromFileUrl } from "@std/path";
import { type Netns, withNetns } from "../../lib/sys/netns.ts";

/** What a server told of a client. */
export interface Answer {
  readonly server: string;
  /** The client's address as the server saw it. */
  readonly client: string;
  readonly clientPort: number;
}

type Protocol = "tcp" | "udp";

/** How long an answer is waited for that must not come. */
const SILENCE_MS = 400;

export class Peer implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #output: ReadableStreamDefaultReader<string>;
  #id = 0;
  #buffered = "";

  private constructor(child: Deno.ChildProcess) {
    this.#child = child;
    this.#input = child.stdin.getWriter();
    this.#output = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  }

  /** @param name what its servers call themselves */
  static async start(netns: Netns, name: string): Promise<Peer> {
    const script = fromFileUrl(new URL("./peer-process.ts", import.meta.url));
    const child = withNetns(netns, () =>
      new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--no-lock", "--no-config", "--no-check", script, name],
        stdin: "piped",
        stdout: "piped",
        stderr: "inherit",
      }).spawn());
    const peer = new Peer(child);
    await peer.#readLine();
    return peer;
  }

  get pid(): number {
    return this.#child.pid;
  }

  async serve(protocol: Protocol, port: number, host = "0.0.0.0"): Promise<void> {
    await this.#call({ op: "serve", protocol, port, host });
  }

  /** Connects, or sends a datagram, and returns what the server answers. */
  async ask(protocol: Protocol, host: string, port: number, handle?: string): Promise<Answer> {
    const op = protocol === "tcp" ? "connect" : "send";
    return JSON.parse(await this.#call({ op, host, port, handle }));
  }

  /** Sends on a TCP connection that {@linkcode ask} opened under a handle. */
  async say(handle: string): Promise<Answer> {
    return JSON.parse(await this.#call({ op: "say", handle }));
  }

  async close(handle: string): Promise<void> {
    await this.#call({ op: "close", handle });
  }

  /** Asks where no answer may come; returns why none came: `"timeout"`, `"ECONNREFUSED"`. */
  async failToAsk(
    protocol: Protocol,
    host: string,
    port: number,
    handle?: string,
  ): Promise<string> {
    const op = protocol === "tcp" ? "connect" : "send";
    return await this.#fail({ op, host, port, handle, timeout: SILENCE_MS });
  }

  /** {@linkcode say} where no answer may come. */
  async failToSay(handle: string): Promise<string> {
    return await this.#fail({ op: "say", handle, timeout: SILENCE_MS });
  }

  async #fail(command: Record<string, unknown>): Promise<string> {
    let result: string;
    try {
      result = await this.#call(command);
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
    throw new Error(`${JSON.stringify(command)} was answered: ${result}`);
  }

  async #call(command: Record<string, unknown>): Promise<string> {
    const id = ++this.#id;
    await this.#input.write(new TextEncoder().encode(`${JSON.stringify({ id, ...command })}\n`));
    const reply = JSON.parse(await this.#readLine());
    if (reply.error !== undefined) throw new Error(reply.error);
    return reply.result;
  }

  async #readLine(): Promise<string> {
    while (!this.#buffered.includes("\n")) {
      const { value, done } = await this.#output.read();
      if (done) throw new Error("the peer's process ended");
      this.#buffered += value;
    }
    const end = this.#buffered.indexOf("\n");
    const line = this.#buffered.slice(0, end);
    this.#buffered = this.#buffered.slice(end + 1);
    return line;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#input.close();
    await this.#output.cancel();
    await this.#child.status;
  }
}
