/** Processes in throwaway machines. */

/** A process in a machine, killed with its descendants when it is disposed. */
export class Running implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #lines: string[] = [];
  readonly #waiting = new Set<() => void>();
  readonly #reading: Promise<void>;
  readonly #errors: Promise<string>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  #ended = false;

  constructor(child: Deno.ChildProcess) {
    this.#child = child;
    this.#writer = child.stdin.getWriter();
    this.#reading = this.#read(child.stdout);
    this.#errors = new Response(child.stderr).text();
    // Whoever waits for them sees the failure; nobody has to.
    this.#reading.catch(() => {});
    this.#errors.catch(() => {});
  }

  /** All lines of its standard output so far. */
  get lines(): readonly string[] {
    return this.#lines;
  }

  /** Its exit status. */
  get status(): Promise<Deno.CommandStatus> {
    return this.#child.status;
  }

  /** Everything it says on standard error, once it has ended. */
  get stderr(): Promise<string> {
    return this.#errors;
  }

  /** Writes to its standard input. */
  async write(text: string): Promise<void> {
    await this.#writer.write(new TextEncoder().encode(text));
  }

  /** Ends its standard input. */
  async closeStdin(): Promise<void> {
    await this.#writer.close().catch(() => {});
  }

  /**
   * Waits for a line of standard output.
   *
   * @param from the first line that counts, by its number; also the past is looked at
   * @throws when the process ends or the time is over before that
   */
  async line(
    match: (line: string) => boolean,
    { from = 0, timeoutMs = 10_000 }: { from?: number; timeoutMs?: number } = {},
  ): Promise<string> {
    const deadline = Date.now() + timeoutMs;
    for (let next = from;;) {
      while (next < this.#lines.length) {
        const line = this.#lines[next++]!;
        if (match(line)) return line;
      }
      const left = deadline - Date.now();
      if (this.#ended || left <= 0) {
        const why = this.#ended ? `it ended: ${await this.#errors}` : `${timeoutMs} ms are over`;
        throw new Error(`the awaited line did not come, ${why}\n${this.#lines.join("\n")}`);
      }
      await this.#more(left);
    }
  }

  /** Sends a signal to the process itself, past nsenter, which passes nothing on. */
  kill(signal: Deno.Signal = "SIGTERM"): void {
    const inner = childrenOf(this.#child.pid);
    for (const pid of inner.length > 0 ? inner : [this.#child.pid]) {
      try {
        Deno.kill(pid, signal);
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      }
    }
    // It has stopped with its child.
    if (signal === "SIGCONT") tryKill(this.#child.pid, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#ended) killFamily(this.#child.pid);
    await this.closeStdin();
    await this.#child.status;
    await this.#reading.catch(() => {});
    await this.#errors.catch(() => {});
  }

  #more(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#waiting.delete(done);
        resolve();
      };
      const timer = setTimeout(done, timeoutMs);
      this.#waiting.add(done);
    });
  }

  async #read(stream: ReadableStream<Uint8Array>): Promise<void> {
    let rest = "";
    try {
      for await (const text of stream.pipeThrough(new TextDecoderStream() as never)) {
        const parts = (rest + text).split("\n");
        rest = parts.pop() ?? "";
        this.#lines.push(...parts.map((line) => line.replace(/\r+$/, "")));
        this.#wake();
      }
    } finally {
      if (rest !== "") this.#lines.push(rest);
      this.#ended = true;
      this.#wake();
    }
  }

  #wake(): void {
    for (const wake of [...this.#waiting]) wake();
  }
}

/** The processes that a process started and that live. */
export function childrenOf(pid: number): number[] {
  try {
    const text = Deno.readTextFileSync(`/proc/${pid}/task/${pid}/children`);
    return text.split(" ").filter((word) => word !== "").map(Number);
  } catch {
    return [];
  }
}

/**
 * Kills what nsenter started, with its descendants. nsenter ends by itself then: killed before its
 * child, it would leave a zombie to the real machine's init, which may take seconds to reap it.
 */
export function killFamily(nsenter: number): void {
  const family = childrenOf(nsenter).flatMap(familyOf);
  for (const pid of family.length > 0 ? family : [nsenter]) tryKill(pid);
  // It stops when its child is stopped.
  tryKill(nsenter, "SIGCONT");
}

/** A process and all that descend from it, the youngest first. */
function familyOf(pid: number): number[] {
  return [...childrenOf(pid).flatMap(familyOf), pid];
}

/** Sends a process a signal, unless it has ended. */
export function tryKill(pid: number, signal: Deno.Signal = "SIGKILL"): void {
  try {
    Deno.kill(pid, signal);
  } catch {
    // It has ended.
  }
}
