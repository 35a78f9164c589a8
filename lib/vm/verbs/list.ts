/**
 * The records of VMs, as they are.
 *
 * @module
 */

import { TapkitError } from "../../errors.ts";
import { recordOf } from "../record/derive.ts";
import { validateName } from "../record/identity.ts";
import { hostPaths, recordNames } from "../record/paths.ts";
import { attachedSide, readVm, readVms, sideOf, unfinished } from "../record/store.ts";
import type { HostOptions, VmRecord } from "../types.ts";

/**
 * The records of all attached VMs, by name. One that cannot be read is passed to `note`, as one that
 * was left half removed is.
 */
export function listVms(options: HostOptions = {}): VmRecord[] {
  const host = hostPaths(options);
  return readVms(host).flatMap((stored) => {
    if (stored.is === "changing" && stored.to === undefined) {
      const { name } = sideOf(stored)!.spec.id;
      host.note(`warning: "${name}" was left half removed: run attach-vm ${name} --remove again`);
    }
    const at = attachedSide(stored);
    return at === undefined ? [] : [recordOf(at)];
  });
}

/** The names of all VMs that have a record, whether it can be read or not, in order. */
export function vmNames(options: HostOptions = {}): string[] {
  return recordNames(hostPaths(options));
}

/**
 * The record of one VM.
 *
 * @throws {InputError} when the name is malformed
 * @throws {TapkitError} when it is not attached, or its record cannot be read
 */
export function getVm(name: string, options: HostOptions = {}): VmRecord {
  validateName(name);
  const stored = readVm(hostPaths(options), name);
  const at = attachedSide(stored);
  if (at !== undefined) return recordOf(at);
  if (stored?.is !== "changing") {
    throw new TapkitError("it is not attached", { mend: "see attach-vm --list" });
  }
  const again = stored.to === undefined ? `${name} --remove` : name;
  throw new TapkitError(`it ${unfinished(stored)}`, { mend: `run attach-vm ${again} again` });
}
