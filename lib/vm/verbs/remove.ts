/**
 * Taking VMs off their networks.
 *
 * @module
 */

import { ConflictError, TapkitError } from "../../errors.ts";
import { inTurns } from "../../turns.ts";
import { removalsOf } from "../layers/bring.ts";
import { layersOf } from "../layers/kinds.ts";
import type { Attachment } from "../record/attachment.ts";
import { holderElsewhere } from "../record/elsewhere.ts";
import { identityOf, validateName } from "../record/identity.ts";
import type { HostPaths } from "../record/paths.ts";
import { readVm, sideOf } from "../record/store.ts";
import { pidInWords, supervised } from "../running.ts";
import { sessionOf } from "../session.ts";
import type { HostOptions, Plan, Removed } from "../types.ts";
import { noteTapUsers, removeForGood, removingTogether } from "./take-away.ts";
import { changingVm, onlyLooking } from "./work.ts";

/** How to remove. */
export interface RemoveOptions extends HostOptions {
  /** Also from under a VMM that `-- VMM` runs. */
  readonly force?: boolean | undefined;
}

/**
 * Takes a VM off its networks. Of a VM whose record is lost, all that bears its name or its
 * container id goes.
 *
 * @returns whether there was anything to take away
 * @throws {InputError} when the name is malformed
 * @throws {ConflictError} while a VMM of `-- VMM` runs, unless `force`: nothing was touched
 * @throws {TapkitError} naming everything that could not be taken away: the rest is gone
 */
export async function removeVm(name: string, options: RemoveOptions = {}): Promise<boolean> {
  return await changingVm(name, options, async (work) => {
    const { host } = work;
    if (options.force !== true) refuseRunning(name, supervised(host, name));
    const stored = readUsable(host, name);
    if (stored !== undefined) return await removeForGood(work, stored), true;
    const holder = holderElsewhere(host, name);
    if (holder === undefined) return await (await import("./lost.ts")).removeLost(work);
    host.note(`the VM "${name}" of ${holder} stays: write --state-dir ${holder} to remove it`);
    return false;
  });
}

/**
 * What {@linkcode removeVm} would take away. Nothing is changed, and nothing locked.
 *
 * @throws {ConflictError} while a VMM of `-- VMM` runs, unless `force`
 */
export async function planRemove(name: string, options: RemoveOptions = {}): Promise<Plan> {
  validateName(name);
  return await onlyLooking(options, async ({ host, outside }) => {
    const work = { host, outside, id: identityOf(name) };
    if (options.force !== true) refuseRunning(name, supervised(host, name));
    const stored = readUsable(host, name);
    const from = stored && sideOf(stored);
    if (from !== undefined) {
      await noteTapUsers(work, from);
      return { changes: removalsOf(layersOf(host).vm, from), tapReplaced: false };
    }
    const isElsewhere = holderElsewhere(host, name) !== undefined;
    const changes = isElsewhere ? [] : await (await import("./lost.ts")).planLost(work);
    return { changes, tapReplaced: false };
  });
}

/** Takes several VMs off their networks: see mod.ts. */
export async function* removeVms(
  names: Iterable<string>,
  options: RemoveOptions = {},
): AsyncGenerator<Removed> {
  using own = sessionOf(options, { batch: true });
  const { session } = own;
  const remove = async (name: string, waits: () => void): Promise<Removed> => {
    try {
      return { name, removed: await removeVm(name, { ...options, session, waits }) };
    } catch (error) {
      return { name, error };
    }
  };
  await using _together = removingTogether({ ...options, session });
  for await (const { result } of inTurns(names, remove, options.signal)) yield result;
}

/** Takes away what a call of `-- VMM` attached, unless it is another's, or nobody's, by now. */
export async function removeRun(name: string, run: string, options: HostOptions): Promise<void> {
  await changingVm(name, options, async (work) => {
    const stored = readVm(work.host, name);
    if (stored !== undefined && sideOf(stored)?.spec.run === run) {
      await removeForGood(work, stored);
    }
  });
}

function refuseRunning(name: string, running: { readonly pid?: number } | undefined): void {
  if (running === undefined) return;
  throw new ConflictError(`it is running${pidInWords(running.pid)}, by attach-vm ${name} -- …`, {
    mend: "end that, and it is removed; or use --force, which leaves it without a network",
  });
}

/** The record, unless it is lost: one that cannot be read is as good as none here. */
function readUsable(host: HostPaths, name: string): Attachment | undefined {
  try {
    return readVm(host, name);
  } catch (error) {
    if (!(error instanceof TapkitError)) throw error;
    host.note(`${error.message}: removing what bears the name of "${name}"`);
    return undefined;
  }
}
