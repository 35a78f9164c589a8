/**
 * Mapping ports to a VM while it runs, or to an address that tapkit did not attach: the same attachment
 * with other claims.
 *
 * @module
 */

import { checkpoint } from "../../checkpoint.ts";
import { InputError, TapkitError } from "../../errors.ts";
import type { Firewall } from "../../firewall/firewall.ts";
import { formatPort, type PortMapping } from "../../inet/ports.ts";
import { isSame } from "../../same.ts";
import { reachableByPorts } from "../network/host-end.ts";
import {
  bring,
  changesOf,
  type Course,
  hasNamespace,
  look,
  planCourse,
  removalsOf,
  takeAway,
} from "../layers/bring.ts";
import { layersOf, servingLayers } from "../layers/kinds.ts";
import type { Layer } from "../layers/layer.ts";
import { choosingAgain, claimPorts, findSecondOwners, holdsAny, withoutPorts } from "../ports.ts";
import { type AddressAttachment, servedAddress } from "../record/address.ts";
import type { Attachment, Both, Claim } from "../record/attachment.ts";
import { portsOf } from "../record/derive.ts";
import { addressTag, validateName } from "../record/identity.ts";
import { type HostPaths, hostPaths } from "../record/paths.ts";
import { type Served, servedVm } from "../record/served.ts";
import {
  deleteAddress,
  hasVm,
  readAddress,
  readAddresses,
  readVm,
  readVms,
  sideOf,
  unfinished,
  writeAddress,
  writeVm,
} from "../record/store.ts";
import { readPorts } from "../request.ts";
import { type Host, openHost } from "../session.ts";
import type {
  Change,
  Difference,
  HostOptions,
  MapOptions,
  MappedPorts,
  Plan,
  PortTarget,
} from "../types.ts";
import { newAddress, validateAddress } from "./mapped-address.ts";
import { withClaims } from "./wanted.ts";
import { changingHost, changingVm, contextOf, lookingAt, onlyLooking, type Work } from "./work.ts";

/** Where nothing is to be done, but told what would be. */
interface Planning {
  readonly onPlan?: ((changes: readonly Change[]) => void) | undefined;
}

/** With whom ports are mapped. */
interface MapWork extends Work, Planning {}

/** One port, as text or as a mapping. */
type Port = string | PortMapping;

/** Something that ports lead to: how its claims are read, changed and kept. */
interface Holder<B> {
  /** As conflicts name it. */
  readonly owner: string;
  readonly layers: readonly Layer<B>[];
  readonly served: (at: B) => Served;
  readonly claims: (at: B) => readonly Claim[];
  /** The same with other claims, or with its ports opened. */
  readonly with: (at: B, claims: readonly Claim[], openPorts: boolean) => B | Promise<B>;
  readonly opened: (at: B) => boolean;
  /** Puts an attachment on disk; none where there is to be none. */
  readonly write: (attachment: Attachment<B> | undefined) => void;
  /** Whether it goes with its last port. */
  readonly portsOnly: boolean;
}

/**
 * Maps host ports to a VM, or to an address that tapkit did not attach, beside those it has. What
 * is mapped already stays as it is.
 *
 * @param ports each as `"8080:80"`, `"127.0.0.1:8080:80/udp"`, `"9000-9009:9000-9009"`, `"0:80"`, or a mapping
 * @returns all of its mappings
 * @throws {InputError} when one is malformed, or there is no such VM; nothing was touched
 * @throws {PortConflictError} when somebody has one of the host ports; none of them was mapped
 */
export async function mapPorts(
  target: PortTarget,
  ports: readonly Port[],
  { openFirewall = false, ...options }: MapOptions & Planning = {},
): Promise<MappedPorts> {
  const asked = parseAsked(ports);
  const add = async <B>(
    work: MapWork,
    holder: Holder<B>,
    stored: Attachment<B> | undefined,
    at: B,
  ) =>
    await choosingAgain(asked, async () => {
      const firewall = await work.host.session.firewall(holder.served(at).firewall);
      const had = holder.claims(at);
      const claimed = await claimPorts(work.host, firewall, {
        owner: holder.owner,
        by: "map",
        asked,
        had,
        addresses: holder.served(at).guests[0]!.addresses,
      });
      const own = had.filter(({ by }) => by === "map");
      const fresh = withoutPorts(claimed, own);
      const claims = fresh.length === 0 ? had : [...had, ...fresh];
      const to = await holder.with(at, claims, openFirewall || holder.opened(at));
      return await changeClaims(work, holder, stored, to, { adds: true });
    });
  if (typeof target !== "string") {
    return await changeAddress(target.to, options, async (work, holder, stored) => {
      const at = stored && sideOf(stored);
      return await add(work, holder, stored, at ?? await newAddress(work.host, target.to));
    });
  }
  return await changeVm(target, options, async (work, holder, at) => {
    return await add(work, holder, { is: "attached", at }, at);
  });
}

/**
 * What {@linkcode mapPorts}, or {@linkcode unmapPorts} with `remove`, would do, and the mappings that there
 * would be. Nothing is changed, and nothing locked.
 */
export async function planPorts(
  target: PortTarget,
  ports: readonly Port[],
  { remove = false, ...options }: MapOptions & { readonly remove?: boolean } = {},
): Promise<MappedPorts & Plan> {
  let changes: readonly Change[] = [];
  const planning = { ...options, onPlan: (all: readonly Change[]) => changes = all };
  const mapped = await (remove ? unmapPorts : mapPorts)(target, ports, planning);
  return { ...mapped, changes, tapReplaced: false };
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
  ports: readonly Port[],
  options: HostOptions & Planning = {},
): Promise<MappedPorts> {
  const asked = parseAsked(ports);
  refuseUnchosen(asked);
  const gone = boundBoth(asked);
  const drop = async <B>(work: MapWork, holder: Holder<B>, stored: Attachment<B>, at: B) => {
    const had = holder.claims(at);
    if (stored.is === "attached" && !holdsAny(had, gone)) return portsOf(had);
    const to = await holder.with(at, withoutPorts(had, gone), holder.opened(at));
    return await changeClaims(work, holder, stored, to);
  };
  if (typeof target !== "string") {
    return await changeAddress(target.to, options, async (work, holder, stored) => {
      const at = stored && sideOf(stored);
      if (at !== undefined) return await drop(work, holder, stored!, at);
      // Of a process that was killed before it had done anything.
      if (!work.host.onlyLooks) holder.write(undefined);
      return [];
    });
  }
  return await changeVm(
    target,
    options,
    async (work, holder, at) => await drop(work, holder, { is: "attached", at }, at),
  );
}

/** The mappings of one VM or address, or of all. A VM that is not there is refused. */
export function listPorts(
  target: PortTarget | undefined,
  options: HostOptions = {},
): MappedPorts[] {
  const host = hostPaths(options);
  const ofAddress = (to: string, at: AddressAttachment | undefined) => ({
    to,
    ports: portsOf(at?.claims ?? []),
  });
  if (typeof target === "object") {
    const to = validateAddress(target.to);
    const stored = readAddress(host, to);
    return [ofAddress(to, stored && sideOf(stored))];
  }
  if (target !== undefined) {
    return [{ vm: target, ports: portsOf(requireVm(host, target).spec.claims) }];
  }
  return [
    ...readVms(host).flatMap((stored) => sideOf(stored) ?? [])
      .map(({ spec }) => ({ vm: spec.id.name, ports: portsOf(spec.claims) })),
    ...readAddresses(host).flatMap((stored) => sideOf(stored) ?? []).map((at) =>
      ofAddress(at.to, at)
    ),
  ];
}

/** Compares the mappings of a VM or an address with the kernel. */
export async function checkPorts(
  target: PortTarget,
  options: HostOptions = {},
): Promise<Difference[]> {
  using host = openHost(options);
  const check = async <B>(holder: Holder<B>, at: B): Promise<Difference[]> => {
    using context = contextOf<B>(lookingAt(host), undefined);
    const found = await look(servingLayers(holder.layers), context, at);
    const firewall: Firewall = await host.session.firewall(holder.served(at).firewall);
    const ports = portsOf(holder.claims(at));
    return [...found, ...await findSecondOwners(host, firewall, holder.owner, ports)];
  };
  if (typeof target === "string") {
    return await check(vmHolder(host, target), requireVm(host, target));
  }
  const to = validateAddress(target.to);
  const stored = readAddress(host, to);
  const at = stored && sideOf(stored);
  return at === undefined ? [] : await check(addressHolder(host, to), at);
}

/**
 * Puts the rules of an address back, after a reboot say.
 *
 * @throws {TapkitError} when that fails, or the record is torn
 */
export async function restoreAddress(to: string, options: HostOptions): Promise<void> {
  await changeAddress(to, options, async (work, holder, stored) => {
    const at = stored && sideOf(stored);
    return at === undefined ? [] : await changeClaims(work, holder, stored, at);
  });
}

/**
 * Brings something from the claims that it has to others.
 *
 * @param stored what it has, or what a process that was killed left of it; absent for an address of
 * which nothing is recorded
 * @param adds whether that is refused for a VM that a reboot took
 * @returns all mappings then
 */
async function changeClaims<B>(
  work: MapWork,
  holder: Holder<B>,
  stored: Attachment<B> | undefined,
  to: B,
  { adds = false }: { readonly adds?: boolean } = {},
): Promise<readonly PortMapping[]> {
  const { claims } = holder;
  const { onPlan } = work;
  const from = stored && sideOf(stored);
  using context = contextOf(work, stored);
  // A VM may be gone, by a reboot say: what is mapped to it goes all the same.
  const whole = from === undefined || await hasNamespace(holder.layers, context, from);
  if (!whole && adds) throw notThere(holder.owner);
  const layers = whole ? holder.layers : servingLayers(holder.layers);
  const { undo } = context;
  try {
    // What is there stays; where somebody took it away, it comes back.
    const found = from !== undefined && isSame(claims(from), claims(to))
      ? await look(servingLayers(layers), context, from)
      : [];
    const isLast = from !== undefined && holder.portsOnly && claims(to).length === 0;
    if (isLast && onPlan !== undefined) return onPlan(removalsOf(layers, from)), [];
    if (isLast) {
      // What is being taken away does not come back: the same command goes on with the rest.
      holder.write({ is: "changing", from });
      await takeAway(layers, context, from);
      holder.write(undefined);
      return [];
    }
    const looked = { ...context, found };
    const course = await planCourse(layers, looked, { from, to });
    if (onPlan !== undefined) {
      onPlan(changesOf(layers, looked, course));
      return portsOf(claims(course.to));
    }
    undo.push(`the record of ${holder.owner}`, (failures) => {
      if (failures.length === 0) holder.write(stored);
    });
    const isNew = stored?.is !== "attached" || !isSame(from, course.to);
    const journal = (planned: Course<B>) =>
      holder.write({ is: "changing", ...from === undefined ? {} : { from }, to: planned.to });
    if (isNew) journal(course);
    const { at } = await bring(layers, looked, course, journal);
    await checkpoint(work.host.signal);
    if (isNew || !isSame(from, at)) holder.write({ is: "attached", at });
    return portsOf(claims(at));
  } catch (error) {
    throw await undo.fail(error);
  }
}

function vmHolder(host: Host, name: string): Holder<Both> {
  return {
    owner: name,
    layers: layersOf(host).vm,
    served: servedVm,
    claims: ({ spec }) => spec.claims,
    opened: ({ spec }) => spec.openPorts,
    with: async (at, claims, openPorts) => {
      const { spec, facts } = await withClaims(at, claims);
      return { spec: { ...spec, openPorts }, facts };
    },
    write: (attachment) => {
      if (attachment === undefined) return;
      writeVm(host, name, attachment, { durable: attachment.is === "attached" });
    },
    portsOnly: false,
  };
}

function addressHolder(host: Host, to: string): Holder<AddressAttachment> {
  return {
    owner: addressTag(to),
    layers: layersOf(host).address,
    served: servedAddress,
    claims: ({ claims }) => claims,
    opened: ({ openPorts }) => openPorts,
    with: (at, claims, openPorts) => ({ ...at, claims, openPorts }),
    write: (attachment) =>
      attachment === undefined ? deleteAddress(host, to) : writeAddress(host, to, attachment),
    portsOnly: true,
  };
}

async function changeVm(
  vm: string,
  options: HostOptions & Planning,
  act: (work: MapWork, holder: Holder<Both>, at: Both) => Promise<readonly PortMapping[]>,
): Promise<MappedPorts> {
  refuseUnknown(hostPaths(options), vm);
  const { onPlan } = options;
  const change = async (work: Work) => {
    const { host } = work;
    const at = requireVm(host, vm);
    const holder = vmHolder(host, vm);
    const located: Holder<Both> = {
      ...holder,
      with: async (from, claims, openPorts) =>
        reachableByPorts(host.session.nl, await holder.with(from, claims, openPorts)),
    };
    return { vm, ports: await act({ ...work, onPlan }, located, at) };
  };
  return await (onPlan === undefined
    ? changingVm(vm, options, change)
    : onlyLooking(options, change));
}

async function changeAddress(
  text: string,
  options: HostOptions & Planning,
  act: (
    work: MapWork,
    holder: Holder<AddressAttachment>,
    stored: Attachment<AddressAttachment> | undefined,
  ) => Promise<readonly PortMapping[]>,
): Promise<MappedPorts> {
  const to = validateAddress(text);
  const { onPlan } = options;
  return await (onPlan === undefined ? changingHost : onlyLooking)(options, async (work) => {
    const { host } = work;
    const holder = addressHolder(host, to);
    return { to, ports: await act({ ...work, onPlan }, holder, readAddress(host, to)) };
  });
}

function parseAsked(ports: readonly Port[]): PortMapping[] {
  const asked = readPorts(ports);
  if (asked.length > 0) return asked;
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

/** Mappings each bound to an address, or to all of either family. */
function boundBoth(ports: readonly PortMapping[]): PortMapping[] {
  return ports.flatMap((port) =>
    port.hostIP === "" ? [{ ...port, hostIP: "0.0.0.0" }, { ...port, hostIP: "::" }] : [port]
  );
}

/**
 * Refuses a VM that has no record, before anything is locked.
 *
 * @throws {InputError} when it has none
 */
function refuseUnknown(host: HostPaths, vm: string): void {
  validateName(vm);
  if (hasVm(host, vm)) return;
  throw new InputError(`VM "${vm}" is not attached`, { mend: "see attach-vm --list" });
}

/**
 * What is recorded of a VM that is attached.
 *
 * @throws {InputError} when there is nothing
 */
function requireVm(host: HostPaths, vm: string): Both {
  refuseUnknown(host, vm);
  const stored = readVm(host, vm);
  if (stored?.is === "attached") return stored.at;
  const state = stored === undefined ? "is not attached" : unfinished(stored);
  throw new TapkitError(`VM "${vm}" ${state}`, { mend: `run attach-vm ${vm} first` });
}

function notThere(vm: string): TapkitError {
  return new TapkitError(`VM "${vm}" is recorded, but not there`, {
    mend: `run attach-vm ${vm} first`,
  });
}
