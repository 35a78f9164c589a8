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
import { bring, look, planCourse, type PlannedCourse } from "../layers/bring.ts";
import { layersOf } from "../layers/kinds.ts";
import type { Context } from "../layers/layer.ts";
import { nameHolder } from "../network/plan.ts";
import { choosingAgain } from "../ports.ts";
import type { Attachment, Both, Spec } from "../record/attachment.ts";
import { recordOf } from "../record/derive.ts";
import { guestsOf } from "../record/served.ts";
import { announce, refuseElsewhere } from "../record/elsewhere.ts";
import { claimId, releaseId } from "../record/ids.ts";
import { canonicalNetns } from "../record/netns-path.ts";
import { recordPath } from "../record/paths.ts";
import { attachedSide, deleteVm, readVm, unfinished, writeVm } from "../record/store.ts";
import { validateAttach } from "../request.ts";
import { currentResolvers, hostResolvers } from "../resolvers.ts";
import { describeTapUsers } from "../running.ts";
import type { Attached, AttachRequest, Difference, HostOptions, LayerName } from "../types.ts";
import { noteRepairs } from "./notes.ts";
import { removeRecorded } from "./take-away.ts";
import { askedPorts, type Running, wantedOf } from "./wanted.ts";
import { changingVm, contextOf, type VmWork } from "./work.ts";

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
  validateAttach(request);
  const { netns } = request;
  const asked = netns === undefined ? request : { ...request, netns: canonicalNetns(netns) };
  return await changingVm(request.name, options, async (work) => {
    const isKnown = isThere(recordPath(work.host, request.name));
    const stored = isKnown ? readVm(work.host, request.name) : undefined;
    return await attachStored(work, await settled(work, stored), { request: asked, running });
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

async function attachOnce(
  work: VmWork,
  stored: Attachment | undefined,
  { keepLeases, ...asked }: Asked & { readonly keepLeases: boolean },
): Promise<Attached | Refused> {
  const { host, id: { name } } = work;
  const layers = layersOf(host).vm;
  using context = contextOf(work, stored);
  const recorded = attachedSide(stored);
  const from = recorded && withCurrentResolvers(recorded);
  const { heals } = asked;
  const all = from === undefined ? [] : await look(layers, context, from, heals?.only);
  heals?.onFound(all);
  const liveOnly = heals?.recreate === false;
  const found = liveOnly ? all.filter(({ repair }) => repair === "live") : all;
  if (from !== undefined) noteRepairs(host, name, found);
  const remade = found.some(({ layer, repair }) =>
    repair === "recreate" && (layer === "netns" || layer === "network")
  );
  const layered: Context<Both> = {
    ...context,
    found,
    liveOnly,
    keepLeases: keepLeases && from !== undefined && mayKeep(from),
  };
  const { undo } = context;
  try {
    const to = await wantedOf(layered, { id: work.id, from, remade, ...asked });
    const course = await planCourse(layers, layered, { from, to });
    const nothing = course.made.size === 0 && context.cutOff === undefined &&
      found.every(({ repair }) => repair === "none") && isSame(from, course.to);
    if (nothing) return await unchanged(layered, from!, recorded!);
    undo.push(`record of "${name}"`, (failures) => {
      // What is in doubt by now, the same command looks at whole.
      if (failures.length === 0 || stored === undefined) putBack(work, stored);
    });
    const record = async (planned: PlannedCourse<Both>) => {
      if (from !== undefined && planned.made.has("wire")) await noteTapReplaced(work, from);
      journal(work, from, planned);
    };
    await record(course);
    const { at, changes } = await bring(layers, layered, course, record);
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
