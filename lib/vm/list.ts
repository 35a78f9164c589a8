/**
 * What is attached.
 *
 * @module
 */

import { hostPaths, publicRecord, readRecords } from "./state.ts";
import type { HostOptions, VmRecord } from "./types.ts";

/** The records of all attached VMs, by name. One that cannot be read is passed to `note`. */
export function listVms(options: HostOptions = {}): VmRecord[] {
  return readRecords(hostPaths(options))
    .filter(({ made }) => made.phase === "attached")
    .map(publicRecord);
}
