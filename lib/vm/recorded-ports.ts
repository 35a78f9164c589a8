/**
 * The host ports in the records of VMs and addresses, whether or not their rules are in the kernel.
 *
 * @module
 */

import type { TakenPorts } from "../inet/ports.ts";
import { portsOf } from "./record/derive.ts";
import { addressTag } from "./record/identity.ts";
import { eachRecord, perRecord } from "./record/memory.ts";
import type { HostPaths } from "./record/paths.ts";
import { readAddresses, sidesOf } from "./record/store.ts";
import type { Host } from "./session.ts";

const mappingsOf = perRecord((attachment) =>
  sidesOf(attachment).flatMap(({ spec }) => portsOf(spec.claims))
);

/**
 * The ports of all records but one. The caller holds the host's lock.
 *
 * @param except whose ports are not asked for, a VM or the tag of an address
 */
export function recordedPorts(host: Host, except: string): TakenPorts[] {
  const vms = [...eachRecord(host, { except })]
    .map(([owner, attachment]) => ({ owner, mappings: mappingsOf(attachment) }));
  return [...vms, ...addressPorts(host)]
    .filter(({ owner, mappings }) => owner !== except && mappings.length > 0);
}

function addressPorts(host: HostPaths): TakenPorts[] {
  return readAddresses(host).flatMap(sidesOf)
    .map(({ to, claims }) => ({ owner: addressTag(to), mappings: portsOf(claims) }));
}
