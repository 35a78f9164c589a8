/**
 * What is attached.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { hostPaths, recordNames, validateName } from "./host-paths.ts";
import { publicRecord, readRecord, readRecords, unfinished } from "./state.ts";
import type { HostOptions, VmRecord } from "./types.ts";

/**
 * The records of all attached VMs, by name. One that cannot be read is passed to `note`, as one that
 * was left half removed is.
 */
export function listVms(options: HostOptions = {}): VmRecord[] {
  const host = hostPaths(options);
  return readRecords(host).flatMap((record) => {
    const { vm, made: { phase } } = record;
    if (phase === "removing") {
      host.note(`warning: "${vm}" was left half removed: run attach-vm ${vm} --remove again`);
    }
    return phase === "attached" ? [publicRecord(record)] : [];
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
  const record = readRecord(hostPaths(options), name);
  if (record?.made.phase === "attached") return publicRecord(record);
  if (record === undefined) {
    throw new TapkitError("it is not attached", { mend: "see attach-vm --list" });
  }
  const again = record.made.phase === "removing" ? `${name} --remove` : name;
  throw new TapkitError(`it ${unfinished(record)}`, { mend: `run attach-vm ${again} again` });
}
