/**
 * What is attached.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import {
  hostPaths,
  publicRecord,
  readRecord,
  readRecords,
  recordNames,
  validateName,
} from "./state.ts";
import type { HostOptions, VmRecord } from "./types.ts";

/** The records of all attached VMs, by name. One that cannot be read is passed to `note`. */
export function listVms(options: HostOptions = {}): VmRecord[] {
  return readRecords(hostPaths(options))
    .filter(({ made }) => made.phase === "attached")
    .map(publicRecord);
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
  throw record === undefined
    ? new TapkitError("it is not attached", { mend: "see attach-vm --list" })
    : new TapkitError("it was left half attached", { mend: `run attach-vm ${name} again` });
}
