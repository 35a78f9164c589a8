/**
 * A VM's published ports: chosen, refused where they are taken, and bound to addresses.
 *
 * @module
 */

import { chooseHostPorts, refuseListeners } from "../firewall/host-ports.ts";
import type { Firewall } from "../firewall/firewall.ts";
import {
  bindPorts,
  findPortConflict,
  parsePorts,
  PortConflictError,
  type PortMapping,
  type TakenPorts,
} from "../inet/ports.ts";
import { type Family, isIp } from "../inet/ip.ts";
import { type HostPaths, readRecords, type StoredRecord } from "./state.ts";
import type { AttachRequest } from "./types.ts";

/**
 * The ports of a request, with a host port chosen wherever 0 asks for one. The caller holds the
 * host's lock until they are in the firewall.
 *
 * @param old what the VM had before: host ports that were chosen then stay
 * @throws {PortConflictError} when another VM or a process has one of them
 */
export function reservePorts(
  host: HostPaths,
  firewall: Firewall,
  request: AttachRequest,
  old?: StoredRecord,
): PortMapping[] {
  const { name, ports = [] } = request;
  if (ports === "none" || ports.length === 0) return [];
  const kept = old !== undefined && hasPorts(old, request);
  const asked = kept ? old.ports : parsePorts(ports);
  const taken = takenPorts(host, firewall, asked).filter(({ owner }) => owner !== name);
  const wanted = chooseHostPorts(asked, taken);
  const conflict = findPortConflict(wanted, taken);
  if (conflict !== undefined) {
    const { owner } = conflict;
    throw new PortConflictError(
      conflict,
      `already mapped to VM "${owner}"`,
      `choose another host port, or give "${owner}" others (attach-vm ${owner} --ports …)`,
    );
  }
  refuseListeners(wanted);
  return wanted;
}

/**
 * What VMs have, by their names: as the kernel has it, which knows in the same time however many
 * there are; as the records have it when somebody took the kernel's table away.
 */
function takenPorts(
  host: HostPaths,
  firewall: Firewall,
  asked: readonly PortMapping[],
): TakenPorts[] {
  const inTheWay = firewall.portsInTheWay(asked);
  if (inTheWay === undefined) {
    return readRecords(host).map(({ vm, ports }) => ({ owner: vm, mappings: ports }));
  }
  // An owner's tag is NAME/INTERFACE.
  return inTheWay.map(({ owner, mappings }) => ({ owner: owner.split("/", 1)[0]!, mappings }));
}

/**
 * The ports as the record has them: each bound to an address, or to all of one family the VM has.
 *
 * @param addresses the VM's, without prefix length
 */
export function bindToFamilies(
  ports: readonly PortMapping[],
  addresses: readonly string[],
): PortMapping[] {
  return bindPorts(ports, addresses.map(isIp).filter((family): family is Family => family !== 0));
}

/** Whether the VM has the ports that are asked for; a host port once chosen stays. */
export function hasPorts(record: StoredRecord, { ports }: AttachRequest): boolean {
  return JSON.stringify(record.made.request.ports ?? "none") === JSON.stringify(ports ?? "none");
}
