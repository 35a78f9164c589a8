/**
 * The resident: one process a host, which answers the guests' DHCP and takes requests on a Unix
 * socket.
 *
 * @module
 */

import deno from "../../deno.json" with { type: "json" };
import { DEFAULT_SOCKET, ownNamespaces } from "../caller.ts";
import { within } from "../checkpoint.ts";
import { describe, TapkitError } from "../errors.ts";
import { closeSocketsAside } from "../sys/socket.ts";
import { type Beside, type DhcpState, serveDhcp, type ServeOptions } from "../vm/dhcp.ts";
import { type HealEvent, type HealMode, healVms } from "../vm/heal.ts";
import { hostPaths } from "../vm/record/paths.ts";
import { OpenSession } from "../vm/session.ts";
import { validateAttach } from "../vm/request.ts";
import type { AttachRequest, PortTarget } from "../vm/types.ts";
import { bodyType, loadValidation, type Operation, route, type Validate } from "./api.ts";
import { Events } from "./events.ts";
import { type Call, HANDLERS, type Reply, type Resident } from "./handlers.ts";
import { errorResponse, failureOf, HttpError, parseJson, readBody, statusOf } from "./http.ts";
import { clientGone, jsonLines, paced, piecesOf } from "./lines.ts";
import { Metrics } from "./metrics.ts";
import { Commands, type RunCommand } from "./commands.ts";
import { Removals } from "./removals.ts";
import { SocketFile } from "./socket.ts";
import { Turns } from "./turns.ts";
import { residentVerbs } from "./verbs.ts";

/** How to serve. */
export interface ResidentOptions extends ServeOptions {
  /** The path of the socket: `/run/tapkit/tapkit.sock`; `"none"` for DHCP alone. */
  readonly socket?: string | undefined;
  /** What is done about what others take away of attached VMs: `auto` unless given. */
  readonly heal?: HealMode | "off";
  /** How long a body may take to arrive, and an answer to be read, in seconds: 30. */
  readonly clientTimeout?: number;
  /** Runs command lines that are handed over. Without it none are taken. */
  readonly runCommand?: RunCommand;
}

const CLIENT_TIMEOUT = 30;
/** How long answers that are ready may take to be read when the process ends. */
const FAREWELL_MS = 1000;
/** What a socket's buffer holds in any case; a client that does not read more is noticed. */
const SMALL = 64 * 1024;

/**
 * Answers DHCP as {@linkcode serveDhcp} does, and takes requests on the socket, until `signal` is
 * aborted: then requests that are under way are undone. With `exitWhenIdle` it ends when no VM is
 * attached and no request is under way.
 *
 * @throws {TapkitError} when another process serves this host, or answers at the socket
 */
export async function serve(options: ResidentOptions = {}): Promise<void> {
  const { socket = DEFAULT_SOCKET, heal = "auto", runCommand, ...timed } = options;
  const { clientTimeout = CLIENT_TIMEOUT, ...rest } = timed;
  if (socket === "none") return await serveDhcp(rest);
  closeSocketsAside();
  const validate = await loadValidation();
  const { exitWhenIdle = false, signal: _, note = () => {}, ...hostOptions } = rest;
  const requests = new Requests(hostOptions, note, clientTimeout * 1000, validate, runCommand);
  const beside: Beside = {
    start: async (dhcp) => {
      await using stack = new AsyncDisposableStack();
      const listening = await requests.start(dhcp, socket).catch((error) => {
        // What attach-vm starts has guests to serve, though another's resident has the socket.
        if (!exitWhenIdle || !(error instanceof TapkitError)) throw error;
        note(`takes no requests: ${describe(error)}`);
      });
      if (listening !== undefined) stack.use(listening);
      if (heal !== "off") stack.use(requests.heal(heal));
      return stack.move();
    },
    isBusy: () => requests.underWay > 0,
    onRecords: (attachments, names) => requests.events.follow(attachments, names),
    onLease: (key) => {
      const [vm = "", name = ""] = key.split("/");
      requests.events.tell({ event: "lease", vm, interface: name });
    },
  };
  const tell = (text: string) => {
    note(text);
    requests.events.tell({ event: "problem", message: text });
  };
  await serveDhcp({ ...rest, note: tell }, beside);
}

/** Takes requests. */
class Requests {
  readonly events = new Events();
  readonly #note: (text: string) => void;
  readonly #timeoutMs: number;
  readonly #validate: Validate;
  readonly #shared: Omit<Resident, "dhcp" | "verbs">;
  readonly #underWay = new Set<Promise<void>>();
  /** Errors of verbs, which have been counted. */
  readonly #told = new WeakSet<Error>();

  constructor(
    options: Resident["options"],
    note: (text: string) => void,
    timeoutMs: number,
    validate: Validate,
    runCommand: RunCommand | undefined,
  ) {
    this.#note = note;
    this.#timeoutMs = timeoutMs;
    this.#validate = validate;
    this.#shared = {
      options,
      host: hostPaths({ ...options, note }),
      version: deno.version,
      begun: performance.now(),
      namespaces: ownNamespaces(),
      commands: runCommand && new Commands(runCommand),
      events: this.events,
      metrics: new Metrics(),
    };
  }

  /** How many requests are under way, those who listen to events left out. */
  get underWay(): number {
    return this.#underWay.size;
  }

  /** Listens until the result is disposed of. */
  async start(dhcp: DhcpState, path: string): Promise<AsyncDisposable> {
    const file = await SocketFile.take(path);
    const stop = new AbortController();
    const { options, metrics } = this.#shared;
    const turns = new Turns();
    const shared = new OpenSession();
    const removals = new Removals({ ...options, note: this.#note }, turns, shared);
    const verbs = residentVerbs({ shared, turns, metrics, removals, onError: this.#onVerbError });
    try {
      const server = file.bind(() =>
        Deno.serve({
          path: file.path,
          onListen: () => this.#note(`takes requests at ${file.path}`),
          onError: (error) => errorResponse(error, undefined),
        }, (request) => this.#answer(request, { dhcp, verbs }, stop.signal))
      );
      return {
        [Symbol.asyncDispose]: async () => {
          const headers = { "retry-after": "1" };
          const mend = "send the request again";
          stop.abort(new HttpError(503, "the resident ends", { mend, headers }));
          await within(FAREWELL_MS, lastCall(file));
          const ended = server.shutdown();
          // What is being undone is waited for, however long that takes.
          while (this.#underWay.size > 0) await Promise.all(this.#underWay);
          await removals[Symbol.asyncDispose]();
          shared[Symbol.dispose]();
          await within(FAREWELL_MS, ended);
        },
      };
    } catch (error) {
      file[Symbol.dispose]();
      throw error;
    }
  }

  /** Heals until the result is disposed of; what was begun is undone then. */
  heal(mode: HealMode): AsyncDisposable {
    const stop = new AbortController();
    const onEvent = ({ event, vm, problems, tapReplaced }: HealEvent) => {
      this.#shared.metrics.count("heals", { event });
      const message = problems.join("; ");
      this.#note(`${event === "healed" ? "repaired" : "problem of"} "${vm}": ${message}`);
      this.events.tell({ event, vm, message, ...tapReplaced ? { tapReplaced } : {} });
    };
    const healing = healVms({ ...this.#shared.options, mode, onEvent, signal: stop.signal })
      .catch((error) => this.#note(`nothing is healed: ${describe(error)}`));
    return {
      [Symbol.asyncDispose]: async () => {
        stop.abort();
        await healing;
      },
    };
  }

  async #answer(
    request: Request,
    own: Pick<Resident, "dhcp" | "verbs">,
    stop: AbortSignal,
  ): Promise<Response> {
    const begun = performance.now();
    const gone = new AbortController();
    const onGone = () => gone.abort(clientGone());
    request.signal.addEventListener("abort", onGone, { once: true });
    const signal = AbortSignal.any([gone.signal, stop]);
    const { promise: over, resolve: end } = Promise.withResolvers<void>();
    const label = { operation: "request", object: undefined as string | undefined };
    const done = (status: number, error?: unknown) => {
      this.#shared.metrics.count("requests", { operation: label.operation, status });
      if (error !== undefined) this.#tellError(label, status, error);
      else if (!QUIET.has(label.operation) && !LOOKS.test(label.object ?? "")) {
        const ms = Math.round(performance.now() - begun);
        this.#note(`${nameOf(label)}: done in ${ms} ms`);
      }
      // Deno aborts it even after the answer was read.
      request.signal.removeEventListener("abort", onGone);
      this.#underWay.delete(over);
      end();
      // The server ends only between requests.
      if (this.#underWay.size === 0) setTimeout(own.dhcp.endIfIdle);
    };
    this.#underWay.add(over);
    try {
      signal.throwIfAborted();
      const { operation, params, query } = route(request.method, request.url);
      label.operation = operation.id;
      label.object = params.name ?? params.address;
      const body = await this.#body(request, operation, signal);
      label.object ??= objectOf(body);
      const reply = await HANDLERS[operation.id]!(
        {
          ...this.#shared,
          ...own,
          params,
          query,
          body,
          signal,
          note: (text) => this.#note(`${nameOf(label)}: ${text}`),
        } satisfies Call,
      );
      if (operation.id === "events") this.#underWay.delete(over);
      return this.#send(reply, (reason) => gone.abort(reason), () => done(200));
    } catch (error) {
      const response = errorResponse(error, label.object);
      done(response.status, error);
      return response;
    }
  }

  /** A validated body; of JSON Lines, a list. */
  async #body(request: Request, operation: Operation, signal: AbortSignal): Promise<unknown> {
    if (operation.types.length === 0) return undefined;
    const type = bodyType(operation, request.headers.get("content-type"));
    const text = await readBody(request, type, { timeoutMs: this.#timeoutMs, signal });
    if (type === "application/json") {
      const body = parseJson(text, "the body");
      this.#validate(operation, type, body, "the body");
      return body;
    }
    return text.split("\n").flatMap((line, index) => {
      if (line.trim() === "") return [];
      const where = `line ${index + 1}`;
      const body = parseJson(line, where);
      this.#validate(operation, type, body, where);
      validateAttach(body as AttachRequest);
      return [body];
    });
  }

  #send(reply: Reply, abort: (reason: Error) => void, onEnd: () => void): Response {
    const options = { stallMs: this.#timeoutMs, abort, onEnd };
    if ("lines" in reply) {
      const headers = { "content-type": "application/jsonl" };
      return new Response(paced(jsonLines(reply.lines), options), { headers });
    }
    const [text, type] = "json" in reply
      ? [JSON.stringify(reply.json), "application/json"]
      : [reply.text, "text/plain; version=0.0.4; charset=utf-8"];
    const headers = { "content-type": type };
    if (text.length > SMALL) return new Response(paced(piecesOf(text), options), { headers });
    onEnd();
    return new Response(text, { headers });
  }

  /** Of requests and of command lines alike. */
  readonly #onVerbError = (target: PortTarget, error: unknown): void => {
    if (error instanceof Error) this.#told.add(error);
    this.#shared.metrics.count("errors", { class: failureOf(error).class });
    const event = EVENT_OF_STATUS[statusOf(error)];
    if (event === undefined) return;
    const vm = typeof target === "string" ? { vm: target } : {};
    this.events.tell({ event, ...vm, message: describe(error) });
  };

  #tellError(label: Label, status: number, error: unknown): void {
    this.#note(`${nameOf(label)}: ${status}: ${describe(error)}`);
    if (error instanceof Error && this.#told.has(error)) return;
    this.#shared.metrics.count("errors", { class: failureOf(error).class });
    if (status === 500) this.events.tell({ event: "problem", message: describe(error) });
  }
}

/**
 * Takes the socket away, and waits until all that has connected was read from: the server closes what
 * it has not read from without an answer, and takes connections in their order.
 */
async function lastCall(file: SocketFile): Promise<void> {
  try {
    using last = await Deno.connect({ transport: "unix", path: file.path });
    file[Symbol.dispose]();
    await last.closeWrite();
    await last.read(new Uint8Array(1));
  } catch {
    // Somebody else has taken the socket away.
    file[Symbol.dispose]();
  }
}

/** How a failed verb is reported, by its status: not at all if the caller asked wrongly or gave up. */
const EVENT_OF_STATUS: Readonly<Record<number, "denied" | "problem">> = {
  409: "denied",
  500: "problem",
};

interface Label {
  readonly operation: string;
  readonly object: string | undefined;
}

function nameOf({ operation, object }: Label): string {
  if (operation === "runCommand" && object !== undefined) return object;
  return object === undefined ? operation : `${operation} ${JSON.stringify(object)}`;
}

/** A command line that only looks. */
const LOOKS = / --(list|check)\b/;

/** What a request is about: a VM, or a command line. */
function objectOf(body: unknown): string | undefined {
  const { name, command, args } = (body ?? {}) as {
    name?: string;
    command?: string;
    args?: readonly string[];
  };
  return command === undefined ? name : [command, ...args ?? []].join(" ").slice(0, LONGEST);
}

/** How much of a command line is logged, in characters. */
const LONGEST = 200;

/** Operations that only look, and are not logged when they succeed. */
const QUIET = new Set([
  "listVms",
  "getVm",
  "endCommand",
  "checkVm",
  "listPorts",
  "listVmPorts",
  "listAddressPorts",
  "events",
  "health",
  "openapi",
  "metrics",
]);
