/**
 * Attaching a VM: namespace, CNI ADD, TAP, firewall, record.
 *
 * The record is written before the first effect. Every step pushes its undo before it acts, and
 * a failure unwinds them all. Attaching again looks for what differs and mends just that.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import { tidyDefaultCni } from "../cni/default-network.ts";
import { mayGiveAgain } from "../cni/runtime.ts";
import { CniError } from "../cni/types.ts";
import { describe } from "../errors.ts";
import { UndoStack } from "../undo.ts";
import { changeRules, changesGuards, dropRules, reguard, rewire } from "./change.ts";
import { checkAttachment, type NetworkFinding, noteMending } from "./check.ts";
import { announce, refuseElsewhere } from "./elsewhere.ts";
import { canonicalNetns, requireSuccessor } from "./netns.ts";
import { askedPorts, choosingAgain, hasPorts } from "./ports.ts";
import { noteUnfinished, removeAttachment, removeMade } from "./remove.ts";
import { samePolicy } from "./policy.ts";
import { hasLimits } from "./limits.ts";
import { mergeRequest, validateAttach, validatePolicy } from "./request.ts";
import { currentResolvers, hostResolvers } from "./resolvers.ts";
import { describeTapUsers, supervised } from "./running.ts";
import { type Host, openHost } from "./session.ts";
import { containerId } from "./host-paths.ts";
import { lockHost, lockVm, tidyState } from "./locks.ts";
import { firewallOf, publicRecord, readRecord, type StoredRecord, writeRecord } from "./state.ts";
import type { AttachRequest, HostOptions, VmRecord } from "./types.ts";
import { attachAnew, type Running } from "./attach-anew.ts";

/**
 * Attaches a VM to its networks, or brings an attachment back to what is recorded and asked for.
 *
 * The end is the same however often it is called, and after a crash at any point.
 *
 * @param running for whose VMM it is attached
 * @returns the record
 * @throws {InputError} when the request is malformed; nothing was touched
 * @throws {TapkitError} when a step failed; everything before it is undone
 */
export async function attachVm(
  request: AttachRequest,
  options: HostOptions = {},
  running?: Running,
): Promise<VmRecord> {
  validateAttach(request);
  const { netns } = request;
  const asked = netns === undefined ? request : { ...request, netns: canonicalNetns(netns) };
  return (await withLocks(
    request.name,
    options,
    (host, id) => attachLocked(host, id, asked, running),
  ))!;
}

/**
 * Brings a recorded VM back to its record: what a reboot took is made again, with the recorded
 * addresses, MACs and ports; one that was left half attached is attached as was asked for, and of
 * one that was left half removed the rest is removed.
 *
 * @returns the record, or `undefined` when there is none of that name any more
 * @throws {TapkitError} when a step failed, or the record is torn; the record stays
 */
export async function restoreVm(
  name: string,
  options: HostOptions = {},
): Promise<VmRecord | undefined> {
  return await withLocks(name, options, async (host, id) => {
    const record = readRecord(host, name);
    if (record?.made.phase !== "removing") {
      return record && await attachLocked(host, id, record.made.request, record.made);
    }
    noteUnfinished(host, name);
    await removeAttachment(host, record);
    return undefined;
  });
}

async function withLocks(
  name: string,
  options: HostOptions,
  act: (host: Host, id: string) => Promise<StoredRecord | undefined>,
): Promise<VmRecord | undefined> {
  using host = openHost(options);
  const id = await containerId(name);
  let attached = false;
  try {
    using _vm = await lockVm(host, name);
    using _host = await lockHost(host);
    const record = await act(host, id);
    attached = record !== undefined;
    return record && publicRecord(record);
  } finally {
    if (!attached) {
      tidyState(host);
      tidyDefaultCni(host.confDir);
    }
  }
}

async function attachLocked(
  host: Host,
  id: string,
  request: AttachRequest,
  running?: Running,
): Promise<StoredRecord> {
  const old = readRecord(host, request.name);
  if (old === undefined) refuseElsewhere(host, request.name);
  announce(host);
  if (old === undefined) return await attachAnew(host, id, request, undefined, running);
  if (old.made.phase === "attached") {
    const again = await attachAgain(host, withCurrentResolvers(host, old), request);
    return handOver(host, again, running);
  }
  if (old.made.phase === "removing") {
    noteUnfinished(host, old.vm);
    await removeAttachment(host, old);
    return await attachAnew(host, id, request, undefined, running);
  }
  host.note(`"${request.name}" was left half attached: beginning again`);
  // With interfaces it was attached before, and is to get its address and MAC again.
  if (old.interfaces.length > 0) {
    return handOver(host, await attachOver(host, old, mergeRequest(old, request)), running);
  }
  await removeAttachment(host, old);
  return await attachAnew(host, id, request, undefined, running);
}

/** What a call of `-- VMM` attached, and could not take away, is the next one's, or stays. */
function handOver(host: Host, record: StoredRecord, running?: Running): StoredRecord {
  const { run, ...made } = record.made;
  if (run === undefined) return record;
  const { run: heir } = running ?? (supervised(host, record.vm) ? record.made : {});
  if (heir === run) return record;
  const handed = { ...record, made: { ...made, ...heir === undefined ? {} : { run: heir } } };
  writeRecord(host, handed);
  return handed;
}

/** The host's resolvers may have changed since, or have come. */
function withCurrentResolvers(host: Host, old: StoredRecord): StoredRecord {
  const dns = currentResolvers(old, hostResolvers());
  if (JSON.stringify(dns) === JSON.stringify(old.dns)) return old;
  const record = { ...old, dns };
  writeRecord(host, record);
  return record;
}

/** Mends what differs from the record, and changes what may change. */
async function attachAgain(
  host: Host,
  old: StoredRecord,
  request: AttachRequest,
): Promise<StoredRecord> {
  const wanted = mergeRequest(old, request);
  validatePolicy(wanted);
  if (old.made.rulesInDoubt) await dropRules(host, old);
  const differences = await checkAttachment(old, host);
  noteMending(host, old.vm, differences);
  const networked = await mendNetworks(host, old, wanted, differences.network);
  if (networked.over) return networked.record;
  const whole = networked.record;
  const undo = new UndoStack();
  try {
    if (differences.wire.length > 0) await noteTapUsers(host, whole);
    const record = differences.wire.length > 0
      ? await rewire(host, whole, wanted)
      : differences.guards.length > 0 || changesGuards(whole, wanted)
      ? await reguard(host, whole, wanted, undo)
      : whole;
    const opening = (old.made.request.openFirewall ?? false) !== (wanted.openFirewall ?? false);
    const same = hasPorts(record, wanted) && samePolicy(record.made.request, wanted) && !opening &&
      hasLimits(record.made.guests, wanted, host.session.nl) && !record.made.rulesInDoubt;
    await checkpoint(host.signal);
    if (differences.firewall.length === 0 && same) {
      // A process that was killed may have left this for later.
      const firewall = await host.session.firewall(firewallOf(record.made));
      for (const guest of record.made.guests) firewall.endStaleFlows(guest);
      return record;
    }
    return await choosingAgain(askedPorts(wanted), () => changeRules(host, record, wanted));
  } catch (error) {
    throw await undo.fail(error);
  }
}

/**
 * Brings what CNI made back: chained plugins of other makers by themselves where that does, else
 * everything over.
 *
 * @returns the record, and whether it has all that is wanted
 */
async function mendNetworks(
  host: Host,
  old: StoredRecord,
  wanted: AttachRequest,
  findings: readonly NetworkFinding[],
): Promise<{ record: StoredRecord; over?: true }> {
  const left = findings.some(({ seen }) => seen)
    ? (await import("./rerun.ts")).mendVisible(host, old, findings)
    : findings;
  if (left.length === 0) return { record: old };
  if (left.every(({ executed, masquerade }) => executed === undefined && !masquerade)) {
    return { record: await attachOver(host, old, wanted), over: true };
  }
  const { checkAdded, rerunFailed } = await import("./rerun.ts");
  const record = await rerunFailed(host, old, left);
  if (record !== undefined) return { record };
  return { record: await checkAdded(host, await attachOver(host, old, wanted)), over: true };
}

/** Who runs the guest has to know that its TAP becomes another one. */
async function noteTapUsers(host: Host, record: StoredRecord): Promise<void> {
  const users = await describeTapUsers(record);
  if (users === undefined) return;
  host.note(`warning: the TAP that ${users} has open is made anew, and has to be opened again`);
}

/**
 * ADD where the network may have kept the address; else, and where that is refused, DEL, then ADD
 * that asks for the addresses and the MACs that are recorded.
 */
async function attachOver(
  host: Host,
  old: StoredRecord,
  wanted: AttachRequest,
): Promise<StoredRecord> {
  // One that was given and is gone is not made here: then all else stays as it is.
  requireSuccessor(old.vm, old);
  await noteTapUsers(host, old);
  const addressed = old.interfaces.some(({ addresses }) => addresses.length > 0);
  if (addressed && old.made.networks.some(mayGiveAgain)) {
    await removeMade(host, old, { keepLeases: true });
    try {
      return await attachAnew(host, old.id, wanted, old, { keepLeases: true });
    } catch (error) {
      if (!saysTaken(error)) throw error;
      host.note(`making room by DEL: ${describe(error)}`);
    }
  }
  await removeMade(host, old);
  return await attachAnew(host, old.id, wanted, old);
}

/** Whether an error says, or came of a plugin's saying, that something is there already. */
function saysTaken(error: unknown): boolean {
  if (error instanceof CniError) return error.taken;
  return error instanceof Error && saysTaken(error.cause);
}
