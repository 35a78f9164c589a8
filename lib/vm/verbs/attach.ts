/**
 * Attaching a VM: for the first time, again, after a crash, after a reboot.
 *
 * @module
 */

import { checkpoint } from "../../checkpoint.ts";
import { mayGiveAgain } from "../../cni/runtime.ts";
import { CniError } from "../../cni/types.ts";
import { describe } from "../../errors.ts";
import { isSame } from "../../same.ts";
import { isThere } from "../../sys/text.ts";
import {
  bring,
  changesOf,
  look,
  planCourse,
  type PlannedCourse,
  removalsOf,
} from "../layers/bring.ts";
import { layersOf } from "../layers/kinds.ts";
import type { Context } from "../layers/layer.ts";
import { nameHolder } from "../network/plan.ts";
import { choosingAgain } from "../ports.ts";
import type { Attachment, Both, Spec } from "../record/attachment.ts";
import { portsOf, recordOf } from "../record/derive.ts";
import { guestsOf } from "../record/served.ts";
import { announce, refuseElsewhere } from "../record/elsewhere.ts";
import { claimId, releaseId } from "../record/ids.ts";
import { canonicalNetns } from "../record/netns-path.ts";
import { identityOf } from "../record/identity.ts";
import { recordPath } from "../record/paths.ts";
import { attachedSide, deleteVm, readVm, sideOf, unfinished, writeVm } from "../record/store.ts";
import { validateAttach } from "../request.ts";
import { currentResolvers, hostResolvers } from "../resolvers.ts";
import { describeTapUsers } from "../running.ts";
import type { Host } from "../session.ts";
import type {
  Attached,
  AttachRequest,
  Difference,
  HostOptions,
  LayerName,
  Plan,
} from "../types.ts";
import { noteRepairs } from "./notes.ts";
import { removeRecorded } from "./take-away.ts";
import { askedPorts, type Running, wantedOf } from "./wanted.ts";
import { changingVm, contextOf, onlyLooking, type VmWork } from "./work.ts";

/**
 * Attaches a VM to its networks, or brings an attachment back to what is recorded and asked for.
 *
 * The end is the same however often it is called, and after a crash at any point.
 *
 * @param running for whose VMM it is attached
 * @throws {InputError} when the request is malformed; nothing was touched
 * @throws {TapkitError} when a step failed; everything before it is undone
 */
export async function attachVm(
  request: AttachRequest,
  options: HostOptions = {},
  running: Running = {},
): Promise<Attached> {
  const asked = validAsked(request);
  return await changingVm(request.name, options, async (work) => {
    const stored = storedOf(work.host, request.name);
    return await attachStored(work, await settled(work, stored), { request: asked, running });
  });
}

function validAsked(request: AttachRequest): AttachRequest {
  validateAttach(request);
  const { netns } = request;
  return netns === undefined ? request : { ...request, netns: canonicalNetns(netns) };
}

function storedOf(host: Host, name: string): Attachment | undefined {
  return isThere(recordPath(host, name)) ? readVm(host, name) : undefined;
}

/**
 * What {@linkcode attachVm} would do. Nothing is changed, and nothing locked; plugins are asked to CHECK.
 *
 * @throws {TapkitError} for what it would refuse, as far as that is known before anything is made
 */
export async function planAttach(
  request: AttachRequest,
  options: HostOptions = {},
): Promise<Plan> {
  const asked = { request: validAsked(request), running: {} };
  return await onlyLooking(options, async ({ host, outside }) => {
    const work = { host, outside, id: identityOf(request.name) };
    const layers = layersOf(host).vm;
    const stored = storedOf(host, request.name);
    if (stored === undefined) refuseElsewhere(host, request.name);
    if (stored?.is === "changing" && attachedSide(stored) === undefined) {
      host.note(`"${request.name}" ${unfinished(stored)}: it would be removed, then attached`);
      return { changes: removalsOf(layers, sideOf(stored)!), tapReplaced: true };
    }
    using context = contextOf(work, stored);
    const compared = await compare(work, context, stored, { keepLeases: true });
    try {
      const course = await planTo(work, compared, asked);
      const tapReplaced = stored !== undefined && course.made.has("wire");
      return { changes: changesOf(layers, compared.layered, course), tapReplaced };
    } catch (error) {
      throw nameHolder(host, error);
    }
  });
}

/**
 * Brings a recorded VM back to its record: what a reboot took is made again, with the recorded
 * addresses, MACs and ports; one that was left half attached is attached as was asked for, and of
 * one that was left half removed the rest is removed.
 *
 * @returns undefined when there is none of that name any more
 * @throws {TapkitError} when a step failed, or the record is torn; the record stays
 */
export async function restoreVm(
  name: string,
  options: HostOptions = {},
): Promise<Attached | undefined> {
  return await changingVm(name, options, async (work) => {
    const stored = readVm(work.host, name);
    const wanted = stored?.is === "attached" ? stored.at : stored?.to;
    const whole = await settled(work, stored);
    if (wanted === undefined) return undefined;
    const { run } = wanted.spec;
    return await attachStored(work, whole, {
      request: { name },
      running: { run },
      spec: wanted.spec,
    });
  });
}

/** How an attached VM is healed. */
export interface HealRequest {
  /** The layers to look at; all unless given. */
  readonly only?: readonly LayerName[];
  /** Whether also what the VMM would have to open again, its TAP, is made anew. */
  readonly recreate: boolean;
}

/** What healing a VM did. */
export interface Healed extends Attached {
  /** What differed. */
  readonly found: readonly Difference[];
}

/**
 * Repairs an attached VM, as far as that can be done while its guest runs.
 *
 * @returns undefined for a VM that is not attached, or is being changed
 * @throws {TapkitError} when a repair failed; what it began is undone
 */
export async function healVm(
  name: string,
  heals: HealRequest,
  options: HostOptions = {},
): Promise<Healed | undefined> {
  return await changingVm(name, options, async (work) => {
    const stored = readVm(work.host, name);
    if (stored?.is !== "attached") return undefined;
    let found: readonly Difference[] = [];
    const done = await attachStored(work, stored, {
      request: { name },
      running: { run: stored.at.spec.run },
      heals: { ...heals, onFound: (all) => found = all },
    });
    return { ...done, found };
  });
}

/** What is recorded, once what was left half attached or half removed is gone. */
async function settled(
  work: VmWork,
  stored: Attachment | undefined,
): Promise<Attachment | undefined> {
  if (stored?.is !== "changing") return stored;
  const { name } = work.id;
  const again = stored.from === undefined
    ? "beginning again"
    : stored.to === undefined
    ? "removing what is left of it"
    : "looking at all of it";
  work.host.note(`"${name}" ${unfinished(stored)}: ${again}`);
  if (attachedSide(stored) !== undefined) return stored;
  await removeRecorded(work, stored);
  return undefined;
}

/** What is to be attached. */
interface Asked {
  readonly request: AttachRequest;
  readonly running: Running;
  /** What was wanted of it, where nothing of it is there any more. */
  readonly spec?: Spec;
  /** Only this is to be repaired. */
  readonly heals?: HealRequest & { readonly onFound: (all: readonly Difference[]) => void };
}

async function attachStored(
  work: VmWork,
  stored: Attachment | undefined,
  asked: Asked,
): Promise<Attached> {
  const { host, id } = work;
  if (stored === undefined) refuseElsewhere(host, id.name);
  announce(host);
  return await choosingAgain(askedPorts(asked.request), async () => {
    const done = await attachOnce(work, stored, { ...asked, keepLeases: true });
    if (!("refused" in done)) return done;
    host.note(`making room by DEL: ${describe(done.refused)}`);
    const again = await attachOnce(work, stored, { ...asked, keepLeases: false });
    if ("refused" in again) throw again.refused;
    return again;
  });
}

/** ADD by itself, without a DEL before, was refused: something is there already. */
interface Refused {
  readonly refused: unknown;
}

/** An attachment beside what is in the kernel. */
interface Compared {
  readonly from: Both | undefined;
  /** Whether its networks are made anew. */
  readonly remade: boolean;
  readonly layered: Context<Both>;
}

async function compare(
  { host }: VmWork,
  context: Context<Both>,
  stored: Attachment | undefined,
  { heals, keepLeases }: Pick<Asked, "heals"> & { readonly keepLeases: boolean },
): Promise<Compared> {
  const recorded = attachedSide(stored);
  const from = recorded && withCurrentResolvers(recorded);
  const all = from === undefined ? [] : await look(layersOf(host).vm, context, from, heals?.only);
  heals?.onFound(all);
  const liveOnly = heals?.recreate === false;
  const found = liveOnly ? all.filter(({ repair }) => repair === "live") : all;
  const remade = found.some(({ layer, repair }) =>
    repair === "recreate" && (layer === "netns" || layer === "network")
  );
  const kept = keepLeases && from !== undefined && mayKeep(from);
  return { from, remade, layered: { ...context, found, liveOnly, keepLeases: kept } };
}

async function planTo(
  { host, id }: VmWork,
  { from, remade, layered }: Compared,
  asked: Asked,
): Promise<PlannedCourse<Both>> {
  const to = await wantedOf(layered, { id, from, remade, ...asked });
  return await planCourse(layersOf(host).vm, layered, { from, to });
}

async function attachOnce(
  work: VmWork,
  stored: Attachment | undefined,
  { keepLeases, ...asked }: Asked & { readonly keepLeases: boolean },
): Promise<Attached | Refused> {
  const { host, id: { name } } = work;
  using context = contextOf(work, stored);
  const { undo } = context;
  const compared = await compare(work, context, stored, { ...asked, keepLeases });
  const { from, layered } = compared;
  const { found } = layered;
  if (from !== undefined) noteRepairs(host, name, found);
  try {
    const course = await planTo(work, compared, asked);
    const nothing = course.made.size === 0 && context.cutOff === undefined &&
      found.every(({ repair }) => repair === "none") && isSame(from, course.to);
    if (nothing) return await unchanged(layered, from!, attachedSide(stored)!);
    undo.push(`record of "${name}"`, (failures) => {
      // What is in doubt by now, the same command looks at whole.
      if (failures.length === 0 || stored === undefined) putBack(work, stored);
    });
    const record = async (planned: PlannedCourse<Both>) => {
      if (from !== undefined && planned.made.has("wire")) await noteTapReplaced(work, from);
      journal(work, from, planned);
    };
    await record(course);
    await searchAhead(host, from, course.to);
    const { at, changes } = await bring(layersOf(host).vm, layered, course, record);
    await checkpoint(host.signal);
    writeVm(host, name, { is: "attached", at });
    const tapReplaced = changes.some(({ layer, change }) =>
      layer === "wire" && change === "recreated"
    );
    return { record: recordOf(at), changes, tapReplaced };
  } catch (error) {
    const failure = await undo.fail(nameHolder(host, error));
    if (layered.keepLeases && saysTaken(failure)) return { refused: failure };
    throw failure;
  }
}

/** While networks are made, the kernel may look for connections that new ports must not inherit. */
async function searchAhead(host: Host, from: Both | undefined, to: Both): Promise<void> {
  const { claims, firewall } = to.spec;
  if (claims.length === 0 || isSame(from?.spec.claims, claims)) return;
  (await host.session.firewall(firewall)).flows.searchAhead(portsOf(claims));
}

/** Writes down what is there, and what is going to be. */
function journal({ host, id }: VmWork, from: Both | undefined, { to }: PlannedCourse<Both>): void {
  if (from === undefined) claimId(host, id);
  const attachment: Attachment = { is: "changing", ...from === undefined ? {} : { from }, to };
  // Of what changes while the guest runs nothing outlives a power failure.
  writeVm(host, id.name, attachment, { durable: from === undefined });
}

function putBack({ host, id }: VmWork, stored: Attachment | undefined): void {
  if (stored !== undefined) return writeVm(host, id.name, stored);
  releaseId(host, id);
  deleteVm(host, id.name);
}

/** Nothing is to do but what a process that was killed may have left, and what guests are told. */
async function unchanged({ host }: Context<Both>, at: Both, recorded: Both): Promise<Attached> {
  // A batch ends old connections some time after it records its VMs; a TCP port has none that is free.
  if (at.spec.claims.some(({ protocol }) => protocol !== "tcp")) {
    const firewall = await host.session.firewall(at.spec.firewall);
    for (const rules of guestsOf(at)) firewall.endStaleFlows(rules);
  }
  await checkpoint(host.signal);
  if (!isSame(at, recorded)) writeVm(host, at.spec.id.name, { is: "attached", at });
  return { record: recordOf(at), changes: [], tapReplaced: false };
}

/** The host's resolvers may have changed since, or have come. */
function withCurrentResolvers(at: Both): Both {
  const dns = currentResolvers(at.facts, hostResolvers());
  return isSame(dns, at.facts.dns) ? at : { ...at, facts: { ...at.facts, dns } };
}

/** Whether ADD alone may give a VM its addresses again. */
function mayKeep({ facts: { networks } }: Both): boolean {
  return networks.some(({ link }) => (link?.addresses.length ?? 0) > 0) &&
    networks.some(({ attachment }) => mayGiveAgain(attachment));
}

/** Who runs the guest has to know that its TAP becomes another one. */
async function noteTapReplaced({ host }: VmWork, { facts }: Both): Promise<void> {
  const users = await describeTapUsers(facts.netns);
  if (users === undefined) return;
  host.note(`warning: the TAP that ${users} has open is made anew, and has to be opened again`);
}

/** Whether an error says, or came of a plugin's saying, that something is there already. */
function saysTaken(error: unknown): boolean {
  if (error instanceof CniError) return error.taken;
  return error instanceof Error && saysTaken(error.cause);
}
