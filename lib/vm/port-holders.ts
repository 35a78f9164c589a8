/**
 * What ports lead to, a VM or an address, as mapping them sees it.
 *
 * @module
 */

import { InputError, TapkitError } from "../errors.ts";
import { isThere } from "../files.ts";
import type { GuestRules } from "../firewall/model.ts";
import type { FirewallKind } from "../firewall/store.ts";
import { formatPort, intersectPorts, parsePorts, type PortMapping } from "../inet/ports.ts";
import { type AddressRecord, deleteAddress, locateVm, writeAddress } from "./addresses.ts";
import { allPorts, portOwners } from "./ports.ts";
import type { Host } from "./session.ts";
import { type HostPaths, validateName } from "./host-paths.ts";
import {
  firewallOf,
  hasRecord,
  type PortOwners,
  readRecord,
  type StoredRecord,
  writeRecord,
} from "./state.ts";

/** Something that ports lead to, and how its record changes. */
export interface Holder {
  /** As conflicts name it. */
  readonly owner: string;
  /** The command that opens its ports where a firewall keeps them closed. */
  readonly command: string;
  /** Its rules in the firewall, with all ports that tapkit maps to it. */
  readonly rules: GuestRules;
  readonly owners: PortOwners;
  /** What its rules are made by. */
  readonly firewall: FirewallKind;
  /** Of a VM, as it was. */
  readonly record?: StoredRecord;
  /** Puts other ports into its record. */
  readonly write: (rules: GuestRules, owners: PortOwners) => void;
  /** Puts the record back as it was. */
  readonly restore: () => void;
  /** Whether its rules go with its last port. */
  readonly portsOnly?: true;
}

/**
 * Refuses a VM that has no record, before anything is locked.
 *
 * @throws {InputError} when it has none
 */
export function refuseUnknown(host: HostPaths, vm: string): void {
  validateName(vm);
  if (hasRecord(host, vm)) return;
  throw new InputError(`VM "${vm}" is not attached`, { mend: "see attach-vm --list" });
}

/**
 * The record of a VM that is attached.
 *
 * @throws {InputError} when there is none
 */
export function requireRecord(host: HostPaths, vm: string): StoredRecord {
  refuseUnknown(host, vm);
  const record = readRecord(host, vm);
  if (record?.made.phase === "attached") return record;
  throw new TapkitError(`VM "${vm}" was left half attached`, { mend: `run attach-vm ${vm} first` });
}

/** Refuses a VM of which other ports were being published when that was cut off. */
export function requireSettled({ vm, made }: StoredRecord): void {
  const inDoubt = made.networks.some(({ plugins }) =>
    plugins.some((plugin) => plugin.inDoubt !== undefined)
  );
  if (!inDoubt) return;
  throw new TapkitError(`VM "${vm}" was left half changed`, { mend: `run attach-vm ${vm} first` });
}

/** Refuses a VM that a reboot took, or a change of whose rules was cut off. */
export function requireRunning({ vm, netns, made }: StoredRecord): void {
  if (isThere(netns) && !made.rulesInDoubt) return;
  const state = made.rulesInDoubt ? "was left half changed" : "is recorded, but not there";
  throw new TapkitError(`VM "${vm}" ${state}`, { mend: `run attach-vm ${vm} first` });
}

/** A VM's ports lead to its first interface. */
export function vmHolder(host: HostPaths, record: StoredRecord): Holder {
  const [rules, ...others] = record.made.guests;
  if (rules === undefined) throw new TapkitError(`VM "${record.vm}" has no interface`);
  const before = portOwners(record);
  return {
    owner: record.vm,
    record,
    command: `attach-vm ${record.vm}`,
    rules,
    owners: before,
    firewall: firewallOf(record.made),
    restore: () => writeRecord(host, record),
    write: (rules, owners) => {
      writeRecord(host, {
        ...record,
        ports: allPorts(owners),
        made: {
          ...record.made,
          portOwners: owners,
          request: {
            ...keepRequest(record.made.request, before.attach, owners.attach),
            ...rules.openPorts ? { openFirewall: true } : {},
          },
          guests: [rules, ...others],
        },
      });
    },
  };
}

/** The same; where its network says nothing of how it is reached, that is found out. */
export function locatedHolder(host: Host, record: StoredRecord): Holder {
  const holder = vmHolder(host, record);
  const [link] = record.interfaces;
  if (link === undefined) return holder;
  return { ...holder, rules: locateVm(host.session.nl, holder.rules, link) };
}

/**
 * An address, which goes with its last port.
 *
 * @param before what was on disk
 */
export function addressHolder(
  host: HostPaths,
  record: AddressRecord,
  before: AddressRecord | undefined,
): Holder {
  const { to, rules, mapPort } = record;
  return {
    owner: rules.owner,
    command: `map-port --to ${to} …`,
    rules,
    owners: { attach: [], mapPort },
    firewall: record.firewall,
    restore: () => before === undefined ? deleteAddress(host, to) : writeAddress(host, before),
    write: (rules, { mapPort }) =>
      mapPort.length === 0
        ? deleteAddress(host, to)
        : writeAddress(host, { ...record, rules, mapPort }),
    portsOnly: true,
  };
}

/** All mappings to an address. */
export function addressPorts(record: AddressRecord | undefined): PortMapping[] {
  return record === undefined ? [] : allPorts({ attach: [], mapPort: record.mapPort });
}

/**
 * What attaching again asks for: what was asked for, but for the ports that are gone.
 *
 * @param before attach-vm's own ports, in the order of the request's
 */
export function keepRequest(
  request: StoredRecord["made"]["request"],
  before: readonly PortMapping[],
  after: readonly PortMapping[],
): StoredRecord["made"]["request"] {
  if (before === after || request.ports === undefined || request.ports === "none") return request;
  const left = [...before];
  const ports = parsePorts(request.ports).flatMap((asked, index) => {
    const text = request.ports![index]!;
    // Without a host address there is one for each family.
    const bound = left.splice(0, asked.hostIP === "" && isPair(left) ? 2 : 1);
    const kept = intersectPorts(bound, after);
    return JSON.stringify(kept) === JSON.stringify(bound) ? [text] : kept.map(formatPort);
  });
  return { ...request, ports: ports.length === 0 ? "none" : ports };
}

/** Whether the first two are one mapping, on all IPv4 and all IPv6 addresses. */
function isPair([first, second]: readonly PortMapping[]): boolean {
  return first?.hostIP === "0.0.0.0" && second?.hostIP === "::" &&
    first.hostPort === second.hostPort && first.protocol === second.protocol;
}
