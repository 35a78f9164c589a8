/**
 * The library's verbs through the resident's socket. It needs no rights but those to open the socket.
 *
 * @module
 */

import { DEFAULT_SOCKET } from "../caller.ts";
import { orAborted, pause } from "../checkpoint.ts";
import { TapkitError } from "../errors.ts";
import type { PortMapping } from "../inet/ports.ts";
import type {
  Attached,
  AttachRequest,
  Collected,
  Difference,
  MappedPorts,
  PortTarget,
  Removed,
  Restored,
  VmRecord,
} from "../vm/types.ts";
import type { ResidentEvent } from "./events.ts";
import type { Failure } from "./http.ts";

/** Where the resident is. */
export interface ConnectOptions {
  /** The path of its socket; `/run/tapkit/tapkit.sock` when absent. */
  readonly socket?: string;
}

/** Options of a request. */
export interface RequestOptions {
  /** Aborted, it closes the connection: the resident undoes what it began. The reason is thrown. */
  readonly signal?: AbortSignal;
  /** Called with each line that a command would print on standard error. */
  readonly note?: (text: string) => void;
}

/** Whether the resident is well, and whose requests it takes. */
export interface ResidentHealth {
  /** The version of tapkit that it runs. */
  readonly version: string;
  /** Its process id. */
  readonly pid: number;
  /** How many VMs have a record. */
  readonly vms: number;
  /** How many TAPs have guests that get no DHCP. */
  readonly problems: number;
  /** How long it has run, in seconds. */
  readonly uptimeSeconds: number;
  /** The directory of its records. */
  readonly stateDir: string;
  /** As `/proc/PID/ns` has them: `"net:[4026531840]"`. */
  readonly namespaces: { readonly net: string; readonly mnt: string };
}

/** How long the resident that follows one that ends may take to answer, and how often it is asked. */
const SUCCESSOR_MS = 5000;
const LOOK_EVERY_MS = 50;

interface Asking extends RequestOptions {
  readonly method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  readonly json?: unknown;
  /** JSON Lines. */
  readonly lines?: readonly unknown[];
}

/** What each line of an answer may have. */
interface Line {
  readonly name: string;
  readonly notes?: readonly string[];
  readonly error?: Failure;
}

/**
 * The verbs of the library, done by the resident. Each throws what the library throws: errors are of
 * the same classes, with the same fields.
 */
export class ResidentClient implements Disposable {
  readonly #socket: string;
  readonly #http: Deno.HttpClient;

  /** Connects with the first request. */
  constructor({ socket = DEFAULT_SOCKET }: ConnectOptions = {}) {
    this.#socket = socket;
    this.#http = Deno.createHttpClient({ proxy: { transport: "unix", path: socket } });
  }

  /** Attaches a VM, or brings it to what is recorded and asked for: see `attachVm`. */
  async attachVm(request: AttachRequest, options: RequestOptions = {}): Promise<Attached> {
    const asking = { ...options, method: "POST", json: request } as const;
    const { notes, ...attached } = await this.#json<Attached & Notes>("vms", asking);
    tell(notes, options);
    return attached;
  }

  /** Attaches VMs, each a transaction of its own, past failures. */
  async *attachVms(
    requests: readonly AttachRequest[],
    options: RequestOptions = {},
  ): AsyncGenerator<Restored> {
    yield* this.#results<Restored>("vms", { ...options, method: "POST", lines: requests });
  }

  /** The record of a VM: see `getVm`. */
  async getVm(name: string, options: RequestOptions = {}): Promise<VmRecord> {
    return await this.#json(`vms/${encodeURIComponent(name)}`, options);
  }

  /** The records of all attached VMs, by name. */
  async listVms(options: RequestOptions = {}): Promise<VmRecord[]> {
    return (await this.#json<{ vms: VmRecord[] }>("vms", options)).vms;
  }

  /** Removes a VM: see `removeVm`. Returns whether there was anything to remove. */
  async removeVm(
    name: string,
    { force = false, ...options }: RequestOptions & { readonly force?: boolean } = {},
  ): Promise<boolean> {
    const path = `vms/${encodeURIComponent(name)}${force ? "?force=true" : ""}`;
    const asking = { ...options, method: "DELETE" } as const;
    const { removed, notes } = await this.#json<{ removed: boolean } & Notes>(path, asking);
    tell(notes, options);
    return removed;
  }

  /** Removes VMs together: see `removeVms`. */
  async *removeVms(
    names: Iterable<string>,
    { force = false, ...options }: RequestOptions & { readonly force?: boolean } = {},
  ): AsyncGenerator<Removed> {
    const json = { names: [...names], force };
    yield* this.#results<Removed>("remove", { ...options, method: "POST", json });
  }

  /** Compares a VM with its record: see `checkVm`. */
  async checkVm(name: string, options: RequestOptions = {}): Promise<Difference[]> {
    const path = `vms/${encodeURIComponent(name)}/check`;
    return (await this.#json<{ differences: Difference[] }>(path, options)).differences;
  }

  /** Brings every recorded VM back to its record: see `restoreVms`. */
  async *restoreVms(options: RequestOptions = {}): AsyncGenerator<Restored> {
    yield* this.#results<Restored>("restore", { ...options, method: "POST" });
  }

  /** Removes attachments that are dead: see `collectVms`. */
  async *collectVms(
    { exclusive = false, ...options }: RequestOptions & { readonly exclusive?: boolean } = {},
  ): AsyncGenerator<Collected> {
    const path = `gc${exclusive ? "?exclusive=true" : ""}`;
    for await (
      const { name, error } of this.#results<Removed>(path, { ...options, method: "POST" })
    ) {
      yield error === undefined ? { name } : { name, error };
    }
  }

  /** Publishes ports: see `mapPorts`. */
  async mapPorts(
    target: PortTarget,
    ports: readonly (string | PortMapping)[],
    { openFirewall = false, ...options }: RequestOptions & { readonly openFirewall?: boolean } = {},
  ): Promise<MappedPorts> {
    const json = { ports, openFirewall };
    return await this.#json(portsPath(target), { ...options, method: "PUT", json });
  }

  /** Withdraws ports: see `unmapPorts`. */
  async unmapPorts(
    target: PortTarget,
    ports: readonly (string | PortMapping)[],
    options: RequestOptions = {},
  ): Promise<MappedPorts> {
    return await this.#json(portsPath(target), { ...options, method: "DELETE", json: { ports } });
  }

  /** The ports of one VM or address, or of all: see `listPorts`. */
  async listPorts(target?: PortTarget, options: RequestOptions = {}): Promise<MappedPorts[]> {
    if (target !== undefined) return [await this.#json(portsPath(target), options)];
    return (await this.#json<{ ports: MappedPorts[] }>("ports", options)).ports;
  }

  /** Whether the resident is well. */
  async health(options: RequestOptions = {}): Promise<ResidentHealth> {
    return await this.#json("health", options);
  }

  /** What happens on the host from now on, until the loop is left or `signal` is aborted. */
  async *events(options: RequestOptions = {}): AsyncGenerator<ResidentEvent> {
    yield* this.#lines<ResidentEvent>("events", options);
  }

  async #json<T>(path: string, asking: Asking): Promise<T> {
    const response = await this.#ask(path, asking);
    return await this.#reading(asking, () => response.json());
  }

  /** The results of VMs; those that failed have an error of the library's class. */
  async *#results<T>(path: string, asking: Asking): AsyncGenerator<T> {
    for await (const line of this.#lines<Line>(path, asking)) {
      const { notes, error, ...result } = line;
      tell(notes, asking);
      yield (error === undefined ? result : { ...result, error: await revive(error) }) as T;
    }
  }

  async *#lines<T>(path: string, asking: Asking): AsyncGenerator<T> {
    const { body } = await this.#ask(path, asking);
    const reader = body!.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      while (true) {
        const { done, value } = await this.#reading(asking, () => reader.read());
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop()!;
        for (const line of lines) yield JSON.parse(line);
      }
    } finally {
      // It may never end when the signal was aborted in the middle of a line's arrival.
      reader.cancel().catch(() => {});
    }
  }

  async #ask(path: string, { method = "GET", json, lines, signal }: Asking): Promise<Response> {
    const body = lines?.map((line) => JSON.stringify(line)).join("\n") ??
      (json === undefined ? undefined : JSON.stringify(json));
    const type = lines === undefined ? "application/json" : "application/jsonl";
    const send = () =>
      this.#reading({ signal }, () =>
        fetch(`http://localhost/v1/${path}`, {
          client: this.#http,
          method,
          ...signal && { signal },
          ...body !== undefined && { body, headers: { "content-type": type } },
        }));
    const deadline = performance.now() + SUCCESSOR_MS;
    let refusal: Failure | undefined;
    while (true) {
      const response = await send().catch((error) => {
        if (refusal === undefined || signal?.aborted) throw error;
      });
      if (response?.ok) return response;
      if (response !== undefined) {
        refusal = (await this.#reading({ signal }, () => response.json())).error as Failure;
        if (!response.headers.has("retry-after")) throw await revive(refusal);
      }
      // It ends, and has done nothing, or undone it.
      if (performance.now() >= deadline) throw await revive(refusal!);
      await pause(LOOK_EVERY_MS, signal);
    }
  }

  /** Does what fails when the connection does. */
  async #reading<T>(
    { signal }: { readonly signal?: AbortSignal | undefined },
    act: () => Promise<T>,
  ): Promise<T> {
    try {
      return await orAborted(act(), signal);
    } catch (cause) {
      signal?.throwIfAborted();
      const refused = /\(Connect\)|os error (2|111)\b/.test(reasons(cause));
      throw refused
        ? new TapkitError(`nothing answers at ${this.#socket}`, { mend: "run serve", cause })
        : new TapkitError(`the resident at ${this.#socket} ended before it answered`, {
          mend: "send the request again: what is half done is completed or taken away",
          cause,
        });
    }
  }

  /** Closes its connections. */
  [Symbol.dispose](): void {
    this.#http.close();
  }
}

/** The messages of an error and of those that led to it. */
function reasons(error: unknown): string {
  return error instanceof Error ? `${error.message} ${reasons(error.cause)}` : "";
}

interface Notes {
  readonly notes: readonly string[];
}

function tell(notes: readonly string[] = [], { note }: RequestOptions): void {
  for (const text of notes) note?.(text);
}

function portsPath(target: PortTarget): string {
  return typeof target === "string"
    ? `vms/${encodeURIComponent(target)}/ports`
    : `addresses/${encodeURIComponent(target.to)}/ports`;
}

/** An error as the resident's library threw it. */
async function revive({ class: name, message, mend, fields }: Failure): Promise<Error> {
  const classes: Readonly<Record<string, { readonly prototype: object }>> = {
    ...await import("../errors.ts"),
    ...await import("../cni/types.ts"),
    ...await import("../inet/ports.ts"),
    ...await import("../netlink/errors.ts"),
  } as never;
  const error = new TapkitError(message, { mend });
  const { prototype } = Object.hasOwn(classes, name) ? classes[name]! : TapkitError;
  if (prototype instanceof TapkitError) Object.setPrototypeOf(error, prototype);
  return Object.assign(error, fields, {
    name: prototype instanceof TapkitError ? name : error.name,
  });
}
