/**
 * A VM's published ports: chosen, refused where they are taken, and bound to addresses.
 *
 * @module
 */

import { chooseHostPorts, refuseListeners } from "../firewall/host-ports.ts";
import {
  bindPorts,
  findPortConflict,
  formatPort,
  parsePorts,
  PortConflictError,
  type PortMapping,
} from "../inet/ports.ts";
import { type Family, isIp } from "../inet/ip.ts";
import { type HostPaths, readRecords, type StoredRecord } from "./state.ts";
import type { AttachRequest } from "./types.ts";

/**
 * The ports of a request, with a host port chosen wherever 0 asks for one. The caller holds the
 * host's lock until they are recorded.
 *
 * @throws {PortConflictError} when another VM or a process has one of them
 */
export function reservePorts(host: HostPaths, request: AttachRequest): PortMapping[] {
  const { name, ports = [] } = request;
  if (ports === "none" || ports.length === 0) return [];
  const taken = readRecords(host)
    .filter(({ vm }) => vm !== name)
    .map(({ vm, ports }) => ({ owner: vm, mappings: ports }));
  const wanted = chooseHostPorts(parsePorts(ports), taken);
  const conflict = findPortConflict(wanted, taken);
  if (conflict !== undefined) {
    const { owner, hostPort } = conflict;
    const holder = taken.find((one) => one.owner === owner)!.mappings
      .find(({ hostPort: first, range = 1 }) => hostPort >= first && hostPort < first + range)!;
    throw new PortConflictError(
      conflict,
      `already mapped to VM "${owner}"`,
      `choose another port or run map-port ${owner} --remove ${formatPort(holder)}`,
    );
  }
  refuseListeners(wanted);
  return wanted;
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
