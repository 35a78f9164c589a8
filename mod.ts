/**
 * tapkit wires virtual machines into Linux networks: each gets a TAP device, an address on a CNI
 * network, DHCP and published ports. This is what the scripts call.
 *
 * ```ts
 * import { attachVm, removeVm } from "./mod.ts";
 *
 * const { record } = await attachVm({ name: "web", ports: ["8080:80"] });
 * console.log(record.netns, record.interfaces[0]?.tap, record.interfaces[0]?.mac);
 * await removeVm("web");
 * ```
 *
 * Everything here needs root, and throws {@linkcode TapkitError}: {@linkcode InputError} when
 * nothing was touched.
 *
 * @module
 */

import type { HealOptions } from "./lib/vm/heal.ts";
import type { DefaultCniReport } from "./lib/cni/default-network.ts";
import type { PortMapping } from "./lib/inet/ports.ts";
import type { InstallOptions } from "./lib/vm/default-network.ts";
import type { ConnectOptions, ResidentClient } from "./lib/resident/client.ts";
import type { RunCommand } from "./lib/resident/commands.ts";
import type { ResidentOptions } from "./lib/resident/server.ts";
import type { HostCheck } from "./lib/doctor/examine.ts";
import type { ExamineOptions } from "./lib/doctor/host.ts";
import type { ServeOptions } from "./lib/vm/dhcp.ts";
import type {
  Attached,
  AttachRequest,
  Collected,
  Difference,
  HostOptions,
  HostSession,
  MapOptions,
  MappedPorts,
  Plan,
  PortTarget,
  Removed,
  Restored,
} from "./lib/vm/types.ts";
import type { GcOptions } from "./lib/vm/verbs/gc.ts";
import type { RemoveOptions } from "./lib/vm/verbs/remove.ts";
import type { VmmOptions } from "./lib/vm/vmm.ts";
import type { LeaveOptions } from "./lib/weave/remove.ts";
import type { WeaveRequest, WeaveState } from "./lib/weave/types.ts";

export { InputError, InterruptedError, SyscallError, TapkitError, VmmError } from "./lib/errors.ts";
export { type Finding, sentence } from "./lib/finding.ts";
export type { FirewallKind } from "./lib/firewall/store.ts";
export type { PortMapping, Protocol } from "./lib/inet/ports.ts";
export type {
  Attached,
  AttachMode,
  AttachRequest,
  Change,
  Collected,
  Difference,
  HostOptions,
  HostSession,
  LayerName,
  MapOptions,
  MappedPorts,
  NetworkPlugin,
  OutputFormat,
  Plan,
  PortTarget,
  Removed,
  Restored,
  VmAddress,
  VmDns,
  VmInterface,
  VmRecord,
  VmRoute,
} from "./lib/vm/types.ts";
export type { Caller, CommandName } from "./lib/caller.ts";
export type {
  DefaultCniOptions,
  DefaultCniReport,
  DefaultNetwork,
} from "./lib/cni/default-network.ts";
export type { PeerConnection } from "./lib/weave/report.ts";
export type { ResidentEvent } from "./lib/resident/events.ts";
export type { GcOptions, InstallOptions, RemoveOptions, ServeOptions, VmmOptions };
export type { ExamineOptions, HostCheck };
export type { HealEvent, HealMode, HealOptions } from "./lib/vm/heal.ts";
export type { RequestOptions, ResidentHealth } from "./lib/resident/client.ts";
export type { ResidentVerbs } from "./lib/resident/verbs.ts";
export type { ConnectOptions, ResidentClient, ResidentOptions, RunCommand };
export type { LeaveOptions, WeaveRequest, WeaveState };
export { ensureServed } from "./lib/vm/dhcp-start.ts";
export { type GuestLease, listLeases } from "./lib/vm/leases.ts";
export { getVm, listVms, vmNames } from "./lib/vm/verbs/list.ts";
export { summarizeVms, type VmState, type VmSummary } from "./lib/vm/verbs/overview.ts";
export { formatAttached, formatRecord } from "./lib/vm/output.ts";
export { validateAttach } from "./lib/vm/request.ts";

// A module costs start-up time whether it is used or not, so each verb loads its own.

/**
 * Attaches a VM to its networks, or brings an attachment back to what is recorded and asked for.
 *
 * The end is the same however often it is called, and after a crash at any point.
 *
 * @returns the record, what was changed, and whether the VMM has to open its TAP again
 * @throws {InputError} when the request is malformed; nothing was touched
 * @throws {TapkitError} when a step failed; everything before it is undone
 */
export async function attachVm(
  request: AttachRequest,
  options: HostOptions = {},
): Promise<Attached> {
  return await (await import("./lib/vm/verbs/attach.ts")).attachVm(request, options);
}

/**
 * Attaches a VM to a bridge network of Docker's: {@linkcode attachVm} with the network plugin
 * `docker-bridge`, which is deprecated.
 *
 * @throws {InputError} for what Docker's networks cannot do; nothing was touched
 * @throws {TapkitError} when a step failed; everything before it is undone
 */
export async function attachDockerContainer(
  request: AttachRequest,
  options: HostOptions = {},
): Promise<Attached> {
  return await attachVm({ ...request, networkPlugin: "docker-bridge" }, options);
}

/**
 * Takes a VM off its networks. Of a VM whose record is lost, all that bears its name or its
 * container id goes.
 *
 * @returns whether there was anything to take away
 * @throws {InputError} when the name is malformed
 * @throws {ConflictError} while a VMM of `-- VMM` runs, unless `force`: nothing was touched
 * @throws {TapkitError} naming everything that could not be taken away: the rest is gone
 */
export async function removeVm(name: string, options: RemoveOptions = {}): Promise<boolean> {
  return await (await import("./lib/vm/verbs/remove.ts")).removeVm(name, options);
}

/**
 * Takes several VMs off their networks, each a transaction of its own, past failures. Their links are deleted
 * together, which takes a fraction of the time.
 *
 * @returns each VM, with whether there was anything to take away, or the error
 */
export async function* removeVms(
  names: Iterable<string>,
  options: RemoveOptions = {},
): AsyncGenerator<Removed> {
  yield* (await import("./lib/vm/verbs/remove.ts")).removeVms(names, options);
}

/**
 * Runs `act`, which removes VMs with {@linkcode removeVm} and the session of `options`. Their links are deleted
 * together, when it has ended.
 */
export async function removeTogether<T>(options: HostOptions, act: () => Promise<T>): Promise<T> {
  if (!options.session?.batch) return await act();
  const { removingTogether } = await import("./lib/vm/verbs/take-away.ts");
  await using _together = removingTogether({ ...options, session: options.session });
  return await act();
}

/**
 * Compares a VM's record with the kernel and the address pool. Changes nothing.
 *
 * @returns what differs; one difference for a VM that is not attached
 * @throws {InputError} when the name is malformed
 */
export async function checkVm(name: string, options: HostOptions = {}): Promise<Difference[]> {
  return await (await import("./lib/vm/verbs/check.ts")).checkVm(name, options);
}

/**
 * What {@linkcode attachVm} would do: nothing is changed, and nothing locked. Plugins are asked to CHECK a VM
 * that is attached.
 *
 * @throws {TapkitError} for what it would refuse, as far as that is known before anything is made
 */
export async function planAttach(
  request: AttachRequest,
  options: HostOptions = {},
): Promise<Plan> {
  return await (await import("./lib/vm/verbs/attach.ts")).planAttach(request, options);
}

/** What {@linkcode removeVm} would take away: nothing is changed, and nothing locked. */
export async function planRemove(name: string, options: RemoveOptions = {}): Promise<Plan> {
  return await (await import("./lib/vm/verbs/remove.ts")).planRemove(name, options);
}

/**
 * What {@linkcode mapPorts}, or {@linkcode unmapPorts} with `remove`, would do, and the mappings that there
 * would be: nothing is changed, and nothing locked.
 */
export async function planPorts(
  target: PortTarget,
  ports: readonly (string | PortMapping)[],
  options: MapOptions & { readonly remove?: boolean } = {},
): Promise<MappedPorts & Plan> {
  return await (await import("./lib/vm/verbs/map-ports.ts")).planPorts(target, ports, options);
}

/**
 * Maps host ports to a VM while it runs, or to an address that tapkit did not attach, beside those
 * it has; what is mapped already stays as it is. attach-vm's own ports and these are kept apart.
 *
 * @param ports each as `"8080:80"`, `"127.0.0.1:8080:80/udp"`, `"9000-9009:9000-9009"`, `"0:80"`
 * @returns all of its mappings
 * @throws {InputError} when one is malformed, or there is no such VM; nothing was touched
 * @throws {TapkitError} when somebody has one of the host ports; none of them was mapped
 */
export async function mapPorts(
  target: PortTarget,
  ports: readonly (string | PortMapping)[],
  options: MapOptions = {},
): Promise<MappedPorts> {
  return await (await import("./lib/vm/verbs/map-ports.ts")).mapPorts(target, ports, options);
}

/**
 * Takes mappings from a VM or an address, its other connections left alone. What is not there is passed over.
 *
 * @returns the mappings that are left
 * @throws {InputError} when one is malformed, or there is no such VM; nothing was touched
 */
export async function unmapPorts(
  target: PortTarget,
  ports: readonly (string | PortMapping)[],
  options: HostOptions = {},
): Promise<MappedPorts> {
  return await (await import("./lib/vm/verbs/map-ports.ts")).unmapPorts(target, ports, options);
}

/**
 * The mappings of one VM or address, or of everything that has any.
 *
 * @throws {InputError} when there is no such VM
 */
export async function listPorts(
  target: PortTarget | undefined,
  options: HostOptions = {},
): Promise<MappedPorts[]> {
  return (await import("./lib/vm/verbs/map-ports.ts")).listPorts(target, options);
}

/**
 * Compares the mappings of a VM or an address with the kernel. Changes nothing.
 *
 * @returns what differs
 * @throws {InputError} when there is no such VM
 */
export async function checkPorts(
  target: PortTarget,
  options: HostOptions = {},
): Promise<Difference[]> {
  return (await import("./lib/vm/verbs/map-ports.ts")).checkPorts(target, options);
}

/**
 * Brings every recorded VM back to its record, after a reboot say: with its addresses, MACs and
 * ports. Each is a transaction of its own; a failure does not keep the others from being restored.
 *
 * ```ts
 * for await (const { name, record, error } of restoreVms()) console.log(name, record ?? error);
 * ```
 */
export async function* restoreVms(options: HostOptions = {}): AsyncGenerator<Restored> {
  yield* (await import("./lib/vm/verbs/restore.ts")).restoreVms(options);
}

/**
 * Repairs what others take away of attached VMs, as the kernel tells of it, until `options.signal` is
 * raised. What the VMM would have to open again is told, and repaired only in mode `recreate`.
 *
 * @throws {SyscallError} when the kernel tells nothing of changes
 */
export async function healVms(options: HealOptions = {}): Promise<void> {
  await (await import("./lib/vm/heal.ts")).healVms(options);
}

/**
 * Opens what calls for many VMs share, to be given to each of them among its options and disposed
 * of after the last. Until then some connections of clients may go on to who had a port before.
 *
 * @param vms about how many VMs it is for
 *
 * ```ts
 * using session = await openSession(3);
 * for (const name of ["a", "b", "c"]) await attachVm({ name }, { session });
 * ```
 */
export async function openSession(vms: number): Promise<HostSession> {
  return new (await import("./lib/vm/session.ts")).OpenSession({ batch: vms > 1 });
}

/**
 * Removes attachments whose namespace is gone or that were left half made, each a transaction of its
 * own; nobody else's. With `exclusive` the plugins' own GC is called too.
 */
export async function* collectVms(options: GcOptions = {}): AsyncGenerator<Collected> {
  yield* (await import("./lib/vm/verbs/gc.ts")).collectVms(options);
}

/**
 * Attaches a VM, runs the VMM in its namespace on this process's stdio, passes signals on, and
 * when the VMM ends, removes what it attached: what was attached before stays, or all, if it is to
 * be kept.
 *
 * @param argv the program and its arguments, in which `{tap}`, `{mac}`, `{ip}`, … are replaced
 * @returns the VMM's exit code, 128+n when signal n ended it
 * @throws {VmmError} when it did not start
 */
export async function runVmm(
  request: AttachRequest,
  argv: readonly string[],
  options: VmmOptions = {},
): Promise<number> {
  return await (await import("./lib/vm/vmm.ts")).runVmm(request, argv, options);
}

/**
 * Writes `10-ignite.conflist` unless the directory holds a CNI configuration already; or prints,
 * checks or removes it, as the options say.
 *
 * @throws {InputError} for a malformed or overlapping prefix, a bridge's name, an MTU
 * @throws {TapkitError} when no subnet is free, the directory cannot be written, or the file to
 * remove was edited or has VMs on its network
 */
export async function installDefaultCni(options: InstallOptions = {}): Promise<DefaultCniReport> {
  return await (await import("./lib/vm/default-network.ts")).installDefaultCni(options);
}

/**
 * Answers DHCP on the TAP of every attached VM until `options.signal` is raised, or with
 * `exitWhenIdle` until no VM is attached. One process serves a host.
 *
 * @throws {TapkitError} when another process serves already, unless `exitWhenIdle`
 */
export async function serveDhcp(options: ServeOptions = {}): Promise<void> {
  await (await import("./lib/vm/dhcp.ts")).serveDhcp(options);
}

/**
 * The host's resident: answers DHCP as {@linkcode serveDhcp} does, and takes these same calls as
 * requests on a Unix socket, until `options.signal` is aborted. Requests that are under way are
 * undone then.
 *
 * @throws {TapkitError} when another process serves already, or answers at the socket
 */
export async function serve(options: ResidentOptions = {}): Promise<void> {
  await (await import("./lib/resident/server.ts")).serve(options);
}

/**
 * Examines the host: whether it has what tapkit needs, what keeps guests' traffic from passing, and
 * what earlier calls left. Changes nothing, unless `fix` is given: then what can be repaired without
 * harm to a guest that runs is repaired.
 *
 * The kernel's features are tried in network namespaces of their own. The kernel may load modules
 * for that.
 *
 * @returns a result for each check, in a fixed order
 *
 * ```ts
 * for await (const { name, ok, detail, mend } of examineHost()) {
 *   if (!ok) console.log(`${name}: ${detail}: ${mend}`);
 * }
 * ```
 */
export async function* examineHost(options: ExamineOptions = {}): AsyncGenerator<HostCheck> {
  yield* (await import("./lib/doctor/examine.ts")).examineHost(options);
}

/**
 * The same calls through the socket of the host's resident, which needs no rights but those to open
 * it. Dispose of it after the last call.
 *
 * ```ts
 * using resident = await connect();
 * const { record } = await resident.attachVm({ name: "web" });
 * ```
 */
export async function connect(options: ConnectOptions = {}): Promise<ResidentClient> {
  return new (await import("./lib/resident/client.ts")).ResidentClient(options);
}

/**
 * Starts Weave Net's router on this host, or changes the one that runs, and waits until it gives out
 * addresses: VMs that are attached then are on one network with those of its peers.
 *
 * @throws {InputError} when the request is malformed
 * @throws {TapkitError} when a step failed; what was begun is undone. Where only peers are missing, it
 * goes on
 */
export async function setupWeave(
  request: WeaveRequest = {},
  options: HostOptions = {},
): Promise<WeaveState> {
  return await (await import("./lib/vm/verbs/weave.ts")).setupWeave(request, options);
}

/** Looks whether Weave Net is as it is wanted, and at its connections. Changes nothing. */
export async function checkWeave(
  request: WeaveRequest = {},
  options: HostOptions = {},
): Promise<WeaveState> {
  return await (await import("./lib/vm/verbs/weave.ts")).checkWeave(request, options);
}

/** The `docker run` command by which Weave Net would be started, as text for a shell. */
export async function weaveCommand(
  request: WeaveRequest = {},
  options: HostOptions = {},
): Promise<string> {
  return await (await import("./lib/vm/verbs/weave.ts")).weaveCommand(request, options);
}

/**
 * Leaves Weave Net's network.
 *
 * @returns whether there was anything to remove
 * @throws {TapkitError} while VMs are on it; nothing was touched
 */
export async function removeWeave(options: HostOptions & LeaveOptions = {}): Promise<boolean> {
  return await (await import("./lib/vm/verbs/weave.ts")).removeWeave(options);
}

// The other errors that it throws.
export { AddressHeldError, CniError } from "./lib/cni/types.ts";
export {
  ConflictError,
  DockerError,
  LimitsError,
  NftablesError,
  UndoError,
  WeaveError,
  XtablesError,
} from "./lib/errors.ts";
export { PortConflictError } from "./lib/inet/ports.ts";
export { DecodeError, NetlinkError } from "./lib/netlink/errors.ts";
