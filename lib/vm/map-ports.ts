/**
 * Mapping host ports to what is attached, one by one, while it runs.
 *
 * A record never has less than the kernel: a mapping is recorded before it is made and forgotten
 * after it is gone, so that a crash in between is mended by running the same command again.
 *
 * @module
 */

import { InputError, TapkitError } from "../errors.ts";
import type { Firewall } from "../firewall/firewall.ts";
import { openFirewall } from "../firewall/open.ts";
import type { FirewallKind } from "../firewall/store.ts";
import { chooseHostPorts, refuseListeners } from "../firewall/host-ports.ts";
import type { GuestRules } from "../firewall/model.ts";
import { checkSysctls, ensureSysctls } from "../firewall/sysctls.ts";
import {
  findPortConflict,
  formatPort,
  intersectPorts,
  isWildcard,
  parsePorts,
  type PortMapping,
  subtractPorts,
} from "../inet/ports.ts";
import { UndoStack } from "../undo.ts";
import { allPorts, bindToFamilies, portLookup, portOwners, refuseTaken } from "./ports.ts";
import {
  firewallOf,
  type HostPaths,
  hostPaths,
  isThere,
  lockHost,
  lockVm,
  type MappedPort,
  type PortOwners,
  readRecord,
  readRecords,
  type StoredRecord,
  tidyState,
  validateName,
  writeRecord,
} from "./state.ts";
import type { HostOptions, MappedPorts } from "./types.ts";

/** Something that ports lead to, and how its record changes. */
interface Holder {
  /** As conflicts name it. */
  readonly owner: string;
  /** Its rules in the firewall, with all ports that tapkit maps to it. */
  readonly rules: GuestRules;
  readonly owners: PortOwners;
  /** What its rules are made by. */
  readonly firewall?: FirewallKind;
  /** Puts other ports into its record. */
  readonly write: (rules: GuestRules, owners: PortOwners) => void;
  /** Puts the record back as it was. */
  readonly restore: () => void;
}

/**
 * Maps host ports to a VM, beside those it has. What is mapped already stays as it is.
 *
 * @param ports each as `"8080:80"`, `"127.0.0.1:8080:80/udp"`, `"9000-9009:9000-9009"`, `"0:80"`
 * @returns all of its mappings
 * @throws {InputError} when one is malformed, or there is no such VM; nothing was touched
 * @throws {PortConflictError} when somebody has one of the host ports; none of them was mapped
 */
export async function mapPorts(
  vm: string,
  ports: readonly string[],
  options: HostOptions = {},
): Promise<MappedPorts> {
  const asked = parseAsked(ports);
  return await change(vm, options, (host, record) => {
    requireRunning(record);
    return addPorts(host, vmHolder(host, record), asked);
  });
}

/**
 * Takes mappings from a VM, attach-vm's own too. What is not there is passed over.
 *
 * @returns the mappings that are left
 * @throws {InputError} when one is malformed, or there is no such VM; nothing was touched
 */
export async function unmapPorts(
  vm: string,
  ports: readonly string[],
  options: HostOptions = {},
): Promise<MappedPorts> {
  const asked = parseAsked(ports);
  refuseUnchosen(asked);
  return await change(vm, options, (host, record) => dropPorts(vmHolder(host, record), asked));
}

/** The mappings of one VM, or of all; those of a VM that is not there are refused. */
export function listPorts(vm: string | undefined, options: HostOptions = {}): MappedPorts[] {
  const host = hostPaths(options);
  const records = vm === undefined ? readRecords(host) : [requireRecord(host, vm)];
  return records.map(({ vm, ports }) => ({ vm, ports }));
}

/** Compares a VM's mappings with the kernel; returns a sentence for each difference. */
export async function checkPorts(vm: string, options: HostOptions = {}): Promise<string[]> {
  const record = requireRecord(hostPaths(options), vm);
  const { rules, firewall: kind } = vmHolder(hostPaths(options), record);
  using firewall = await openFirewall({ kind });
  return [...firewall.check(rules), ...checkSysctls(rules)];
}

function parseAsked(texts: readonly string[]): PortMapping[] {
  const ports = parsePorts(texts);
  if (ports.length > 0) return ports;
  throw new InputError("no port is named", { mend: "write HOST_PORT:VM_PORT, as in 8080:80" });
}

/** 0 asks for a port to be chosen; of one that was, the number has to be said. */
function refuseUnchosen(asked: readonly PortMapping[]): void {
  const unchosen = asked.find(({ hostPort }) => hostPort === 0);
  if (unchosen === undefined) return;
  throw new InputError(`port "${formatPort(unchosen)}": host port 0 names none to remove`, {
    mend: "name the port that was chosen, as --list shows it",
  });
}

async function change(
  vm: string,
  options: HostOptions,
  act: (host: HostPaths, record: StoredRecord) => Promise<readonly PortMapping[]>,
): Promise<MappedPorts> {
  const host = hostPaths(options);
  requireRecord(host, vm);
  try {
    using _vm = await lockVm(host, vm);
    using _host = await lockHost(host);
    return { vm, ports: await act(host, requireRecord(host, vm)) };
  } catch (error) {
    await tidyState(host);
    throw error;
  }
}

function requireRecord(host: HostPaths, vm: string): StoredRecord {
  validateName(vm);
  const record = readRecord(host, vm);
  if (record === undefined) {
    throw new InputError(`VM "${vm}" is not attached`, { mend: "see attach-vm --list" });
  }
  if (record.made.phase === "attached") return record;
  throw new TapkitError(`VM "${vm}" was left half attached`, { mend: `run attach-vm ${vm} first` });
}

function requireRunning({ vm, netns, made }: StoredRecord): void {
  if (isThere(netns) && !made.rulesInDoubt) return;
  const state = made.rulesInDoubt ? "was left half changed" : "is recorded, but not there";
  throw new TapkitError(`VM "${vm}" ${state}`, { mend: `run attach-vm ${vm} first` });
}

/** A VM's ports lead to its first interface. */
function vmHolder(host: HostPaths, record: StoredRecord): Holder {
  const [rules, ...others] = record.made.guests;
  if (rules === undefined) throw new TapkitError(`VM "${record.vm}" has no interface`);
  const before = portOwners(record);
  return {
    owner: record.vm,
    rules,
    owners: before,
    firewall: firewallOf(record.made),
    restore: () => writeRecord(host, record),
    write: (rules, owners) =>
      writeRecord(host, {
        ...record,
        ports: allPorts(owners),
        made: {
          ...record.made,
          portOwners: owners,
          request: keepRequest(record.made.request, before.attach, owners.attach),
          guests: [rules, ...others],
        },
      }),
  };
}

/**
 * What attaching again asks for: what was asked for, but for the ports that are gone.
 *
 * @param before attach-vm's own ports, in the order of the request's
 */
function keepRequest(
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

/** Maps what is not mapped; returns all mappings. */
async function addPorts(
  host: HostPaths,
  holder: Holder,
  asked: readonly PortMapping[],
): Promise<readonly PortMapping[]> {
  const { rules, owners } = holder;
  using firewall = await openFirewall({ kind: holder.firewall });
  const ports = choosePorts(host, firewall, holder, asked);
  const added = subtractPorts(ports, owners.mapPort);
  // What somebody else maps for attach-vm, a plugin, is not mapped once more.
  const elsewhere = subtractPorts(owners.attach, rules.ports);
  const ours = subtractPorts(ports, elsewhere);
  const after = { ...rules, ports: [...rules.ports, ...subtractPorts(ours, rules.ports)] };
  const wanted = { ...owners, mapPort: [...owners.mapPort, ...added] };
  // Where somebody took the rules away, all of this one's come back.
  const whole = firewall.portsInTheWay([]) === undefined;
  const change = whole ? after : { ...rules, ports: ours };
  const undo = new UndoStack();
  try {
    if (added.length > 0) {
      undo.push(`the record of ${rules.owner}`, holder.restore);
      holder.write(after, wanted);
    }
    undo.push(
      `the ports of ${rules.owner}`,
      () => firewall.removePorts({ ...rules, ports: subtractPorts(ours, rules.ports) }),
    );
    firewall.add(change);
    for (const setting of ensureSysctls(change)) host.note(`set ${setting}`);
  } catch (error) {
    throw await undo.fail(error);
  }
  return allPorts(wanted);
}

/**
 * The mappings that are asked for, bound to addresses, each with its host port.
 *
 * @throws {PortConflictError} when somebody has one of those that are not mapped yet
 */
function choosePorts(
  host: HostPaths,
  firewall: Firewall,
  { owner, rules, owners }: Holder,
  asked: readonly PortMapping[],
): MappedPort[] {
  const have = allPorts(owners);
  const bind = (ports: readonly PortMapping[]) => bindToFamilies(ports, rules.addresses);
  const settled = answerAgain(asked, owners.mapPort);
  const fresh = subtractPorts(bind(settled).filter(({ hostPort }) => hostPort !== 0), have);
  const unchosen = settled.filter(({ hostPort }) => hostPort === 0);
  if (fresh.length + unchosen.length === 0) return bind(settled);

  const look = portLookup(host, firewall, owner);
  const taken = (wanted: readonly PortMapping[]) => [
    { owner, mappings: have },
    ...look(wanted),
  ];
  const chosen = chooseHostPorts(
    [...fresh, ...unchosen],
    (candidate) => findPortConflict([candidate], taken([candidate])) !== undefined,
  ).slice(fresh.length);
  refuseTaken(fresh, taken(fresh));
  refuseListeners(fresh);
  const mark = (port: PortMapping): MappedPort => ({ ...port, chosen: true });
  return [
    ...bind(settled.filter(({ hostPort }) => hostPort !== 0)),
    ...bind(chosen).map(mark),
  ];
}

/** Host ports that were chosen before, in the place of those that are to be chosen. */
function answerAgain(
  asked: readonly PortMapping[],
  mapPort: readonly MappedPort[],
): PortMapping[] {
  const free = mapPort.filter(({ chosen }) => chosen);
  return asked.map((port) => {
    if (port.hostPort !== 0) return port;
    const answer = free.find((other) =>
      other.protocol === port.protocol && other.vmPort === port.vmPort &&
      (port.hostIP === "" ? isWildcard(other.hostIP) : other.hostIP === port.hostIP)
    );
    if (answer === undefined) return port;
    const { hostPort } = answer;
    for (const other of free.filter((candidate) => candidate.hostPort === hostPort)) {
      free.splice(free.indexOf(other), 1);
    }
    return { ...port, hostPort };
  });
}

/** Takes mappings away; returns those that are left. */
async function dropPorts(
  holder: Holder,
  asked: readonly PortMapping[],
): Promise<readonly PortMapping[]> {
  const { rules, owners } = holder;
  const bound = asked.flatMap((port) =>
    port.hostIP === "" ? [{ ...port, hostIP: "0.0.0.0" }, { ...port, hostIP: "::" }] : [port]
  );
  const have = allPorts(owners);
  if (intersectPorts(have, bound).length === 0) return have;
  const wanted = {
    attach: subtractPorts(owners.attach, bound),
    mapPort: subtractPorts(owners.mapPort, bound),
  };
  const [foreign] = intersectPorts(subtractPorts(owners.attach, rules.ports), bound);
  if (foreign !== undefined) {
    const port = formatPort(foreign);
    throw new TapkitError(`port "${port}" is mapped by a plugin of the VM's network`, {
      mend: `run attach-vm ${holder.owner} --remove, and attach it without that port`,
    });
  }
  const gone = { ...rules, ports: intersectPorts(rules.ports, bound) };
  const undo = new UndoStack();
  using firewall = await openFirewall({ kind: holder.firewall });
  try {
    undo.push(`the ports of ${rules.owner}`, () => firewall.add(gone));
    firewall.removePorts(gone);
    undo.push(`the record of ${rules.owner}`, holder.restore);
    holder.write({ ...rules, ports: subtractPorts(rules.ports, bound) }, wanted);
  } catch (error) {
    throw await undo.fail(error);
  }
  return allPorts(wanted);
}
