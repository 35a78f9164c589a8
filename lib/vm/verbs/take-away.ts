/**
 * Taking a recorded attachment away, for the verbs that do.
 *
 * @module
 */

import { describe } from "../../errors.ts";
import { takeAway } from "../layers/bring.ts";
import { layersOf } from "../layers/kinds.ts";
import type { Attachment, Both } from "../record/attachment.ts";
import { releaseId } from "../record/ids.ts";
import { deleteVm, sideOf, writeVm } from "../record/store.ts";
import { describeTapUsers } from "../running.ts";
import { contextOf, type VmWork } from "./work.ts";

/**
 * Takes an attachment away as {@linkcode removeRecorded} does, who runs the guest being told; where that
 * fails, what is left is not brought back by anything but attaching it anew.
 */
export async function removeForGood(work: VmWork, stored: Attachment): Promise<void> {
  const { host, id } = work;
  const from = sideOf(stored);
  await noteTapUsers(work, from);
  if (from !== undefined && !(stored.is === "changing" && stored.to === undefined)) {
    try {
      writeVm(host, id.name, { is: "changing", from }, { durable: false });
    } catch (error) {
      // On a full disk it goes all the same.
      host.note(`warning: ${describe(error)}`);
    }
  }
  await removeRecorded(work, stored);
}

/** Who runs the guest has to know that it loses its network. */
export async function noteTapUsers({ host, id }: VmWork, at: Both | undefined): Promise<void> {
  const users = at && await describeTapUsers(at.facts.netns);
  if (users === undefined) return;
  host.note(`warning: ${users} has the TAP of "${id.name}" open, and loses its network`);
}

/**
 * Takes an attachment away, past failures; the record goes last.
 *
 * @throws {TapkitError} naming everything that failed; the record stays then
 */
export async function removeRecorded(work: VmWork, stored: Attachment): Promise<void> {
  const from = sideOf(stored);
  if (from !== undefined) {
    using context = contextOf(work, stored);
    await takeAway(layersOf(work.host).vm, context, from);
  }
  releaseId(work.host, work.id);
  deleteVm(work.host, work.id.name);
}
