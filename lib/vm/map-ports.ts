/**
 * Mapping host ports to what is attached, one by one, while it runs.
 *
 * A record never has less than the kernel: a mapping is recorded before it is made and forgotten
 * after it is gone, so that a crash in between is mended by running the same command again.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import { InputError } from "../errors.ts";
import type { Firewall } from "../firewall/firewall.ts";
import { chooseHostPorts, refuseListeners } from "../firewall/host-ports.ts";
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
import { openVm } from "./netns.ts";
import {
  type AddressRecord,
  deleteAddress,
  newAddress,
  readAddress,
  readAddresses,
  validateAddress,
} from "./addresses.ts";
import {
  addressHolder,
  addressPorts,
  type Holder,
  keepRequest,
  locatedHolder,
  refuseUnknown,
  requireRecord,
  requireRunning,
  requireSettled,
  vmHolder,
} from "./port-holders.ts";
import {
  allPorts,
  bindToFamilies,
  checkOwners,
  choosingAgain,
  noteClosed,
  portLookup,
  portOwners,
  publishedByPlugin,
  refuseAbsent,
  refuseTaken,
} from "./ports.ts";
import { type Host, openHost } from "./session.ts";
import { bringSettings, checkSettings, returnSettings } from "./settings.ts";
import { hostPaths } from "./host-paths.ts";
import { lockHost, lockVm, tidyState } from "./locks.ts";
import { type MappedPort, readRecords, type StoredRecord } from "./state.ts";
import type { HostOptions, MapOptions, MappedPorts, PortTarget } from "./types.ts";

/**
 * Maps host ports to a VM, or to an address that tapkit did not attach, beside those it has. What
 * is mapped already stays as it is.
 *
 * @param ports each as `"8080:80"`, `"127.0.0.1:8080:80/udp"`, `"9000-9009:9000-9009"`, `"0:80"`
 * @returns all of its mappings
 * @throws {InputError} when one is malformed, or there is no such VM; nothing was touched
 * @throws {PortConflictError} when somebody has one of the host ports; none of them was mapped
 */
export async function mapPorts(
  target: PortTarget,
  ports: readonly string[],
  { openFirewall = false, ...options }: MapOptions = {},
): Promise<MappedPorts> {
  const asked = parseAsked(ports);
  if (typeof target !== "string") {
    return await changeAddress(target.to, options, async (host, record) => {
      const { kind } = await host.session.firewall();
      const known = record ?? newAddress(host, host.session.nl, validateAddress(target.to), kind);
      const holder = addressHolder(host, known, record);
      return await choosingAgain(asked, () => addPorts(host, holder, asked, openFirewall));
    });
  }
  return await changeVm(target, options, (host, record) => {
    requireRunning(record);
    requireSettled(record);
    const holder = locatedHolder(host, record);
    return choosingAgain(asked, () => addPorts(host, holder, asked, openFirewall));
  });
}

/**
 * Takes mappings from a VM, attach-vm's own too, or from an address. What is not there is passed
 * over.
 *
 * @returns the mappings that are left
 * @throws {InputError} when one is malformed, or there is no such VM; nothing was touched
 */
export async function unmapPorts(
  target: PortTarget,
  ports: readonly string[],
  options: HostOptions = {},
): Promise<MappedPorts> {
  const asked = parseAsked(ports);
  refuseUnchosen(asked);
  if (typeof target !== "string") {
    return await changeAddress(target.to, options, async (host, record) => {
      if (record !== undefined) {
        return await dropPorts(host, addressHolder(host, record, record), asked);
      }
      // Of a process that was killed before it had done anything.
      deleteAddress(host, validateAddress(target.to));
      return [];
    });
  }
  return await changeVm(target, options, async (host, record) => {
    requireSettled(record);
    const left = await unpublished(host, record, asked);
    if (left !== record) await guardPorts(host, { record }, left.ports, new UndoStack());
    return await dropPorts(host, vmHolder(host, left), asked);
  });
}

/** The mappings of one VM or address, or of all. A VM that is not there is refused. */
export function listPorts(
  target: PortTarget | undefined,
  options: HostOptions = {},
): MappedPorts[] {
  const host = hostPaths(options);
  if (typeof target === "object") {
    const to = validateAddress(target.to);
    return [{ to, ports: addressPorts(readAddress(host, to)) }];
  }
  if (target !== undefined) return [{ vm: target, ports: requireRecord(host, target).ports }];
  return [
    ...readRecords(host).map(({ vm, ports }) => ({ vm, ports })),
    ...readAddresses(host).map((record) => ({ to: record.to, ports: addressPorts(record) })),
  ];
}

/**
 * Compares the mappings of a VM or an address with the kernel; returns a sentence for each
 * difference.
 */
export async function checkPorts(
  target: PortTarget,
  options: HostOptions = {},
): Promise<string[]> {
  using host = openHost(options);
  const holder = typeof target === "string"
    ? vmHolder(host, requireRecord(host, target))
    : recordedAddress(host, target.to);
  if (holder === undefined) return [];
  const firewall = await host.session.firewall(holder.firewall);
  return [
    ...firewall.check(holder.rules),
    ...checkSettings(host, [holder.rules], { firewall }),
    ...await checkOwners(host, firewall, holder.owner, allPorts(holder.owners)),
  ];
}

function recordedAddress(host: Host, text: string): Holder | undefined {
  const record = readAddress(host, validateAddress(text));
  return record && addressHolder(host, record, record);
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

async function changeVm(
  vm: string,
  options: HostOptions,
  act: (host: Host, record: StoredRecord) => Promise<readonly PortMapping[]>,
): Promise<MappedPorts> {
  using host = openHost(options);
  refuseUnknown(host, vm);
  try {
    using _vm = await lockVm(host, vm);
    using _host = await lockHost(host);
    return { vm, ports: await act(host, requireRecord(host, vm)) };
  } catch (error) {
    tidyState(host);
    throw error;
  }
}

async function changeAddress(
  text: string,
  options: HostOptions,
  act: (
    host: Host,
    record: AddressRecord | undefined,
  ) => Promise<readonly PortMapping[]>,
): Promise<MappedPorts> {
  using host = openHost(options);
  const to = validateAddress(text);
  try {
    using _host = await lockHost(host);
    return { to, ports: await act(host, readAddress(host, to)) };
  } finally {
    tidyState(host);
  }
}

/** Maps what is not mapped; returns all mappings. */
async function addPorts(
  host: Host,
  holder: Holder,
  asked: readonly PortMapping[],
  openFirewall: boolean,
): Promise<readonly PortMapping[]> {
  const { owners } = holder;
  const opening = openFirewall && !holder.rules.openPorts;
  const rules = opening ? { ...holder.rules, openPorts: true } : holder.rules;
  const have = allPorts(owners);
  const firewall = await host.session.firewall(holder.firewall);
  const ports = await choosePorts(host, firewall, holder, asked);
  const added = subtractPorts(ports, owners.mapPort);
  // What somebody else maps for attach-vm, a plugin, is not mapped once more.
  const elsewhere = subtractPorts(owners.attach, rules.ports);
  const ours = subtractPorts(ports, elsewhere);
  const after = { ...rules, ports: [...rules.ports, ...subtractPorts(ours, rules.ports)] };
  const wanted = { ...owners, mapPort: [...owners.mapPort, ...added] };
  // Where somebody took the rules away, all of this one's come back.
  const whole = !firewall.exists();
  const change = whole ? after : { ...rules, ports: ours };
  const undo = new UndoStack();
  try {
    undo.push("settings of the kernel", async () => {
      await returnSettings(host, { firewall: holder.firewall });
      firewall.removeIfUnused();
    });
    if (added.length > 0 || opening) {
      undo.push(`the record of ${rules.owner}`, holder.restore);
      holder.write(after, wanted);
    }
    await guardPorts(host, holder, allPorts(wanted), undo);
    undo.push(`the ports of ${rules.owner}`, () => {
      if (opening) firewall.add({ ...holder.rules, ports: [] });
      if (have.length === 0 && holder.portsOnly) return firewall.remove(after);
      firewall.removePorts({ ...rules, ports: subtractPorts(ours, rules.ports) });
    });
    firewall.add(change);
    await bringSettings(host, [change], { firewall });
    noteClosed(host, firewall, [after], holder.command);
    await checkpoint(host.signal);
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
async function choosePorts(
  host: Host,
  firewall: Firewall,
  { owner, rules, owners }: Holder,
  asked: readonly PortMapping[],
): Promise<MappedPort[]> {
  const have = allPorts(owners);
  const bind = (ports: readonly PortMapping[]) => bindToFamilies(ports, rules.addresses);
  const settled = answerAgain(asked, owners.mapPort);
  const fresh = subtractPorts(bind(settled).filter(({ hostPort }) => hostPort !== 0), have);
  const unchosen = settled.filter(({ hostPort }) => hostPort === 0);
  if (fresh.length + unchosen.length === 0) return bind(settled);

  refuseAbsent(host, [...fresh, ...unchosen]);
  const look = await portLookup(host, firewall, owner);
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

/** Guards that let answers from these ports pass, where the guest may not send all it wants. */
async function guardPorts(
  host: Host,
  { record }: Pick<Holder, "record">,
  ports: readonly PortMapping[],
  undo: UndoStack,
): Promise<void> {
  if (record?.denyEgress === undefined) return;
  using stack = new DisposableStack();
  if (openVm(stack, record) === undefined) return;
  await (await import("./change.ts")).changeKept(host, record, { ...record, ports }, undo);
}

/** A record after the plugins that publish some of these ports do so no more. */
async function unpublished(
  host: Host,
  record: StoredRecord,
  asked: readonly PortMapping[],
): Promise<StoredRecord> {
  const { attach } = portOwners(record);
  const published = publishedByPlugin(record.made.networks) ? attach : [];
  if (intersectPorts(published, boundBoth(asked)).length === 0) return record;
  requireRunning(record);
  const left = subtractPorts(attach, boundBoth(asked));
  const request = keepRequest(record.made.request, attach, left);
  return await (await import("./rerun.ts")).unpublish(host, record, left, request);
}

/** Mappings each bound to an address, or to all of either family. */
function boundBoth(ports: readonly PortMapping[]): PortMapping[] {
  return ports.flatMap((port) =>
    port.hostIP === "" ? [{ ...port, hostIP: "0.0.0.0" }, { ...port, hostIP: "::" }] : [port]
  );
}

/** Takes mappings away; returns those that are left. */
async function dropPorts(
  host: Host,
  holder: Holder,
  asked: readonly PortMapping[],
): Promise<readonly PortMapping[]> {
  const { rules, owners } = holder;
  const bound = boundBoth(asked);
  const have = allPorts(owners);
  if (intersectPorts(have, bound).length === 0) return have;
  const wanted = {
    attach: subtractPorts(owners.attach, bound),
    mapPort: subtractPorts(owners.mapPort, bound),
  };
  const gone = { ...rules, ports: intersectPorts(rules.ports, bound) };
  const undo = new UndoStack();
  const firewall = await host.session.firewall(holder.firewall);
  try {
    const left = { ...rules, ports: subtractPorts(rules.ports, bound) };
    const leaving = wanted.mapPort.length === 0 && holder.portsOnly === true;
    undo.push(`the ports of ${rules.owner}`, () => {
      firewall.add(gone);
      return bringSettings(host, [gone], { firewall });
    });
    if (leaving) firewall.remove(rules);
    else firewall.removePorts(gone);
    await returnSettings(host, {
      leaves: (owner) => owner === rules.owner,
      gone: [{ ...rules, ports: have }],
      // A plugin may publish some.
      kept: leaving ? [] : [{ ...left, ports: allPorts(wanted) }],
      firewall: holder.firewall,
    });
    if (leaving) firewall.removeIfUnused();
    undo.push(`the record of ${rules.owner}`, holder.restore);
    holder.write(left, wanted);
    await guardPorts(host, holder, allPorts(wanted), undo);
  } catch (error) {
    throw await undo.fail(error);
  }
  return allPorts(wanted);
}
