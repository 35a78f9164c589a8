/**
 * The operations of openapi.json: what each does, by the library's verbs.
 *
 * @module
 */

import { sentence } from "../finding.ts";
import type { PortMapping } from "../inet/ports.ts";
import { inTurns } from "../turns.ts";
import type { DhcpState } from "../vm/dhcp.ts";
import type { HostPaths } from "../vm/record/paths.ts";
import { recordNames } from "../vm/record/paths.ts";
import { validateName } from "../vm/record/identity.ts";
import { hasVm } from "../vm/record/store.ts";
import { validateAttach } from "../vm/request.ts";
import type { AttachRequest, Collected, HostOptions, PortTarget, Removed } from "../vm/types.ts";
import { checkVm } from "../vm/verbs/check.ts";
import { collectVms } from "../vm/verbs/gc.ts";
import { getVm, listVms } from "../vm/verbs/list.ts";
import { listPorts } from "../vm/verbs/map-ports.ts";
import { removeVms } from "../vm/verbs/remove.ts";
import { restoreVms } from "../vm/verbs/restore.ts";
import { document, type Route } from "./api.ts";
import type { Events } from "./events.ts";
import { failureOf, HttpError } from "./http.ts";
import { metricLines, type Metrics, tapLines } from "./metrics.ts";
import type { Commands } from "./commands.ts";
import type { ResidentVerbs } from "./verbs.ts";

/** What all requests share. None of it outlives the process, or is needed after it. */
export interface Resident {
  /** Directories, as the process was started with. */
  readonly options: HostOptions;
  readonly host: HostPaths;
  readonly version: string;
  /** By `performance.now()`. */
  readonly begun: number;
  readonly dhcp: DhcpState;
  readonly namespaces: { readonly net: string; readonly mnt: string };
  readonly verbs: ResidentVerbs;
  /** Absent where no commands are taken. */
  readonly commands: Commands | undefined;
  readonly events: Events;
  readonly metrics: Metrics;
}

/** One request. */
export interface Call extends Resident, Pick<Route, "params" | "query"> {
  /** The body; of JSON Lines, all of them. It has been validated. */
  readonly body: unknown;
  /** Aborted when the client went away, or the process ends. */
  readonly signal: AbortSignal;
  /** Tells those who wait for a verb's progress. */
  readonly note: (text: string) => void;
}

/** What is answered: an object, lines as they come, or text. */
export type Reply =
  | { readonly json: object }
  | { readonly lines: AsyncIterable<object> }
  | { readonly text: string };

type Handler = (call: Call) => Promise<Reply> | Reply;

/** A handler for each operation, by its id. */
export const HANDLERS: Readonly<Record<string, Handler>> = {
  listVms: (call) => ({ json: { vms: listVms(optionsOf(call)) } }),
  getVm: (call) => ({ json: getVm(known(call), optionsOf(call)) }),
  attachVms: async (call) =>
    Array.isArray(call.body)
      ? { lines: attachAll(call, call.body) }
      : await attachOne(call, call.body as AttachRequest),
  changeVm: async (call) => await attachOne(call, { ...call.body as object, name: known(call) }),
  removeVm: async (call) => {
    const vm = call.params.name!;
    validateName(vm);
    const { notes, note } = noting(call);
    const options = { ...optionsOf(call), note, force: isSet(call.query.force) };
    const removed = await call.verbs.removeVm(vm, options);
    return { json: { vm, removed, notes } };
  },
  removeVms: (call) => {
    const { names, force } = call.body as { names: string[]; force?: boolean };
    names.forEach(validateName);
    return { lines: removed(removeVms(names, { ...optionsOf(call), force })) };
  },
  checkVm: async (call) => {
    const vm = call.params.name!;
    const differences = await checkVm(vm, optionsOf(call));
    return { json: { vm, problems: differences.map(sentence), differences } };
  },
  listPorts: (call) => ({ json: { ports: listPorts(undefined, optionsOf(call)) } }),
  listVmPorts: (call) => ({ json: listPorts(known(call), optionsOf(call))[0]! }),
  listAddressPorts: (call) => ({ json: listPorts(address(call), optionsOf(call))[0]! }),
  mapPorts: async (call) => await changePorts(call, known(call), "mapPorts"),
  mapAddressPorts: async (call) => await changePorts(call, address(call), "mapPorts"),
  unmapPorts: async (call) => await changePorts(call, known(call), "unmapPorts"),
  unmapAddressPorts: async (call) => await changePorts(call, address(call), "unmapPorts"),
  restoreVms: (call) => ({ lines: restored(call) }),
  collectVms: (call) => {
    const exclusive = isSet(call.query.exclusive);
    return { lines: removed(collectVms({ ...optionsOf(call), exclusive })) };
  },
  runCommand: (call) => ({ lines: takesCommands(call).run(call) }),
  endCommand: (call) => {
    const { params: { id = "" }, query: { signal } } = call;
    if (takesCommands(call).end(id, Number(signal))) return { json: {} };
    throw new HttpError(404, `there is no command ${id}`);
  },
  events: (call) => ({ lines: call.events.listen(call.signal) }),
  health: ({ version, host, dhcp, begun, namespaces }) => ({
    json: {
      version,
      pid: Deno.pid,
      vms: recordNames(host).length,
      problems: dhcp.errors.size,
      uptimeSeconds: Math.round(performance.now() - begun) / 1000,
      stateDir: host.stateDir,
      namespaces,
    },
  }),
  openapi: () => ({ json: document }),
  metrics: async ({ host, dhcp, metrics }) => {
    const answered = Object.entries(dhcp.totals).map(([outcome, n]) => [{ outcome }, n] as const);
    const lines = [
      ...metricLines("tapkit_vms", "gauge", [[{}, recordNames(host).length]]),
      ...metrics.lines(),
      ...metricLines("tapkit_dhcp_messages_total", "counter", answered),
      ...metricLines("tapkit_dhcp_unserved_taps", "gauge", [[{}, dhcp.errors.size]]),
      ...await tapLines(host),
    ];
    return { text: `${lines.join("\n")}\n` };
  },
};

function optionsOf({ options, signal, note }: Call): HostOptions {
  return { ...options, signal, note };
}

/** Collects what a verb tells, beside passing it on. */
function noting({ note }: Call): { notes: string[]; note: (text: string) => void } {
  const notes: string[] = [];
  return { notes, note: (text) => (notes.push(text), note(text)) };
}

/** A query parameter without a value is set, as a flag is. */
function isSet(value: string | undefined): boolean {
  return value !== undefined && value !== "false";
}

function takesCommands({ commands }: Call): Commands {
  if (commands !== undefined) return commands;
  throw new HttpError(404, "this resident takes no commands", { mend: "run it by serve" });
}

/**
 * The VM of the path.
 *
 * @throws {HttpError} 404 when it has no record
 */
function known({ host, params: { name = "" } }: Call): string {
  validateName(name);
  if (hasVm(host, name)) return name;
  throw new HttpError(404, `VM "${name}" is not attached`, { mend: "see GET /v1/vms" });
}

function address({ params: { address = "" } }: Call): PortTarget {
  return { to: address };
}

async function attachOne(call: Call, request: AttachRequest): Promise<Reply> {
  validateAttach(request);
  const { notes, note } = noting(call);
  const attached = await call.verbs.attachVm(request, { ...optionsOf(call), note });
  return { json: { ...attached, notes } };
}

/** Attaches VMs in turns, and others' requests between them. */
async function* attachAll(call: Call, requests: readonly AttachRequest[]): AsyncGenerator<object> {
  using session = await call.verbs.openSession(requests.length);
  const left = new Set(requests);
  const attach = async (request: AttachRequest, next: () => void): Promise<object> => {
    left.delete(request);
    const { name } = request;
    const { notes, note } = noting(call);
    try {
      const options = { ...optionsOf(call), session, note, waits: next };
      const attached = await call.verbs.attachVm(request, options);
      return { name, ...attached, notes };
    } catch (error) {
      return failed(name, error, notes);
    }
  };
  for await (const { result } of inTurns(requests, attach, call.signal)) yield result;
  for (const { name } of left) yield failed(name, new HttpError(503, "it was not begun"), []);
}

function failed(name: string, error: unknown, notes: readonly string[] = []): object {
  return { name, error: failureOf(error, name), notes };
}

async function* restored(call: Call): AsyncGenerator<object> {
  for await (const { name, error, ...attached } of restoreVms(optionsOf(call))) {
    yield error === undefined ? { name, ...attached, notes: [] } : failed(name, error);
  }
}

async function* removed(
  results: AsyncIterable<Removed | Collected>,
): AsyncGenerator<object> {
  for await (const result of results) {
    const { name, error } = result;
    const removed = "removed" in result ? result.removed : true;
    yield error === undefined ? { name, removed, notes: [] } : failed(name, error);
  }
}

type PortList = readonly (string | PortMapping)[];

interface PortsRequest {
  readonly ports: PortList;
  readonly openFirewall?: boolean;
}

async function changePorts(
  call: Call,
  target: PortTarget,
  change: "mapPorts" | "unmapPorts",
): Promise<Reply> {
  const { ports, openFirewall = false } = call.body as PortsRequest;
  const options = { ...optionsOf(call), openFirewall };
  return { json: await call.verbs[change](target, ports, options) };
}
