/**
 * Taking a recorded attachment away, for the verbs that do.
 *
 * @module
 */

import { describe } from "../../errors.ts";
import { takeAway } from "../layers/bring.ts";
import { layersOf } from "../layers/kinds.ts";
import type { Context } from "../layers/layer.ts";
import type { OpenNetns } from "../layers/open-netns.ts";
import type { Attachment, Both } from "../record/attachment.ts";
import { goneLinks } from "../network/together.ts";
import { releaseId } from "../record/ids.ts";
import { HostLock, tidyState } from "../record/locks.ts";
import { deleteVm, sideOf, writeVm } from "../record/store.ts";
import { describeTapUsers } from "../running.ts";
import { openHost } from "../session.ts";
import type { HostOptions, HostSession } from "../types.ts";
import { contextOf, type VmWork } from "./work.ts";

/**
 * Takes an attachment away as {@linkcode removeRecorded} does, who runs the guest being told; where that
 * fails, what is left is not brought back by anything but attaching it anew.
 */
export async function removeForGood(work: VmWork, stored: Attachment): Promise<void> {
  const { host, id } = work;
  const from = sideOf(stored);
  using context = contextOf(work, stored);
  const users = await noteTapUsers(work, from, context.vm);
  if (from !== undefined && !(stored.is === "changing" && stored.to === undefined)) {
    try {
      writeVm(host, id.name, { is: "changing", from }, { durable: false });
    } catch (error) {
      // On a full disk it goes all the same.
      host.note(`warning: ${describe(error)}`);
    }
  }
  const gone = goneLinks(host);
  const together = gone.active && users === undefined && from !== undefined &&
    goesByItself(stored, from);
  await removeBy({ ...context, together: together ? gone : undefined }, work, from);
}

/** Whether a VM's namespace goes with its name, and all that is in it with the hosts' ends of its links. */
function goesByItself(stored: Attachment, { facts }: Both): boolean {
  return stored.is === "attached" && !facts.netns.given && facts.networks.length > 0 &&
    facts.networks.every(({ attachment: { plugins } }) =>
      plugins.length > 0 && plugins.every(({ implementation }) => implementation === "builtin")
    );
}

/** Who runs the guest has to know that it loses its network. Returns who does. */
export async function noteTapUsers(
  { host, id }: VmWork,
  at: Both | undefined,
  opened?: OpenNetns,
): Promise<string | undefined> {
  const users = at && await describeTapUsers(at.facts.netns, opened);
  if (users === undefined) return undefined;
  host.note(`warning: ${users} has the TAP of "${id.name}" open, and loses its network`);
  return users;
}

/**
 * Until it is disposed of, the links of VMs that are removed in this session are not deleted one by one, but
 * in the end together; with them those that processes left that were killed.
 *
 * @param options with the session of the removals
 */
export function removingTogether(
  options: HostOptions & { readonly session: HostSession },
): AsyncDisposable {
  const gone = goneLinks(options);
  gone.active = true;
  return {
    async [Symbol.asyncDispose]() {
      gone.active = false;
      const { signal: _, ...uninterrupted } = options;
      using host = openHost(uninterrupted);
      try {
        using _lock = await HostLock.take(host);
        await gone.end();
      } finally {
        tidyState(host);
      }
    },
  };
}

/**
 * Takes an attachment away, past failures; the record goes last.
 *
 * @throws {TapkitError} naming everything that failed; the record stays then
 */
export async function removeRecorded(work: VmWork, stored: Attachment): Promise<void> {
  using context = contextOf(work, stored);
  await removeBy(context, work, sideOf(stored));
}

async function removeBy(
  context: Context<Both>,
  work: VmWork,
  from: Both | undefined,
): Promise<void> {
  if (from !== undefined) await takeAway(layersOf(work.host).vm, context, from);
  releaseId(work.host, work.id);
  deleteVm(work.host, work.id.name);
}
