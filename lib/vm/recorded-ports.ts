/**
 * The host ports in the records of VMs and addresses, whether or not their rules are in the kernel.
 *
 * @module
 */

import type { TakenPorts } from "../inet/ports.ts";
import { isThere } from "../sys/text.ts";
import type { Attachment } from "./record/attachment.ts";
import { portsOf } from "./record/derive.ts";
import { addressTag } from "./record/identity.ts";
import { eachRecord } from "./record/memory.ts";
import { addressesDir, type HostPaths } from "./record/paths.ts";
import { readAddresses, sidesOf } from "./record/store.ts";
import type { Host } from "./session.ts";

/** The mappings of records that were looked at. */
const known = new WeakMap<Attachment, TakenPorts>();

/**
 * The ports of all records but one. The caller holds the host's lock.
 *
 * @param except whose ports are not asked for, a VM or the tag of an address
 */
export function recordedPorts(host: Host, except: string): TakenPorts[] {
  const vms = [...eachRecord(host, { except })]
    .map(([name, attachment]) => portsOfVm(name, attachment));
  return [...vms, ...addressPorts(host)]
    .filter(({ owner, mappings }) => owner !== except && mappings.length > 0);
}

function portsOfVm(owner: string, attachment: Attachment): TakenPorts {
  const found = known.get(attachment) ??
    { owner, mappings: sidesOf(attachment).flatMap(({ spec }) => portsOf(spec.claims)) };
  known.set(attachment, found);
  return found;
}

function addressPorts(host: HostPaths): TakenPorts[] {
  if (!isThere(addressesDir(host))) return [];
  return readAddresses(host).flatMap(sidesOf)
    .map(({ to, claims }) => ({ owner: addressTag(to), mappings: portsOf(claims) }));
}
