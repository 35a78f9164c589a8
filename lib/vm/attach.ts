/**
 * Attaching a VM: namespace, CNI ADD, TAP, firewall, record.
 *
 * The record is written before the first effect. Every step pushes its undo before it acts, and
 * a failure unwinds them all. Attaching again looks for what differs and mends just that.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import { tidyDefaultCni } from "../cni/default-network.ts";
import type { NetworkAttachment } from "../cni/plan.ts";
import { type Added, addNetwork, hasExecuted, mayGiveAgain } from "../cni/runtime.ts";
import { CniError, type Result } from "../cni/types.ts";
import { describe } from "../errors.ts";
import type { GuestRules } from "../firewall/model.ts";
import type { FirewallKind } from "../firewall/store.ts";
import { parseCidr } from "../inet/ip.ts";
import type { PortMapping } from "../inet/ports.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { netnsIdentity } from "../netlink/identity.ts";
import { requireLink, setLink } from "../netlink/link.ts";
import {
  createNamedNetns,
  deleteNamedNetns,
  type Netns,
  netnsPath,
  openNetns,
  withNetns,
} from "../sys/netns.ts";
import { UndoStack } from "../undo.ts";
import { changeRules, changesGuards, dropRules, putGuards, reguard, rewire } from "./change.ts";
import { checkAttachment, keptPolicies, type NetworkFinding, noteMending } from "./check.ts";
import { announce, refuseElsewhere } from "./elsewhere.ts";
import { withGiven } from "./given-netns.ts";
import { canonicalNetns, requireSuccessor } from "./netns.ts";
import {
  assertAsAsked,
  describeInterface,
  explainSecond,
  keepFailures,
  nameHolder,
  planNetworks,
} from "./networks.ts";
import {
  allPorts,
  askedPorts,
  bindToFamilies,
  choosingAgain,
  hasPorts,
  noteClosed,
  openPorts,
  ownersOf,
  portOwners,
  portsOfFirewall,
  publishedByPlugin,
  reservePorts,
  withShownPorts,
} from "./ports.ts";
import { noteUnfinished, removeAttachment, removeMade } from "./remove.ts";
import { recordedPolicy, samePolicy, withPolicy } from "./policy.ts";
import { applyRules, hasLimits, recordedLimits, withLimits } from "./limits.ts";
import { mergeRequest, validateAttach, validatePolicy } from "./request.ts";
import { currentResolvers, hostResolvers, resolversOf } from "./resolvers.ts";
import { describeTapUsers, supervised } from "./running.ts";
import { asForwarded, noteFilteredBridge } from "./host-end.ts";
import { type Host, openHost } from "./session.ts";
import { bringSettings, guardSettings, returnSettings } from "./settings.ts";
import {
  claimId,
  containerId,
  deleteRecord,
  firewallOf,
  lockHost,
  lockVm,
  netnsName,
  publicRecord,
  readRecord,
  releaseId,
  type StoredRecord,
  tidyState,
  writeRecord,
} from "./state.ts";
import type { AttachRequest, HostOptions, VmDns, VmInterface, VmRecord } from "./types.ts";
import { addWire, guardedAs, wireRequest } from "./wires.ts";

/**
 * Attaches a VM to its networks, or brings an attachment back to what is recorded and asked for.
 *
 * The end is the same however often it is called, and after a crash at any point.
 *
 * @param running for whose VMM it is attached
 * @returns the record
 * @throws {InputError} when the request is malformed; nothing was touched
 * @throws {TapkitError} when a step failed; everything before it is undone
 */
export async function attachVm(
  request: AttachRequest,
  options: HostOptions = {},
  running?: Running,
): Promise<VmRecord> {
  validateAttach(request);
  const { netns } = request;
  const asked = netns === undefined ? request : { ...request, netns: canonicalNetns(netns) };
  return (await withLocks(
    request.name,
    options,
    (host, id) => attachLocked(host, id, asked, running),
  ))!;
}

/**
 * Brings a recorded VM back to its record: what a reboot took is made again, with the recorded
 * addresses, MACs and ports; one that was left half attached is attached as was asked for, and of
 * one that was left half removed the rest is removed.
 *
 * @returns the record, or `undefined` when there is none of that name any more
 * @throws {TapkitError} when a step failed, or the record is torn; the record stays
 */
export async function restoreVm(
  name: string,
  options: HostOptions = {},
): Promise<VmRecord | undefined> {
  return await withLocks(name, options, async (host, id) => {
    const record = readRecord(host, name);
    if (record?.made.phase !== "removing") {
      return record && await attachLocked(host, id, record.made.request, record.made);
    }
    noteUnfinished(host, name);
    await removeAttachment(host, record);
    return undefined;
  });
}

async function withLocks(
  name: string,
  options: HostOptions,
  act: (host: Host, id: string) => Promise<StoredRecord | undefined>,
): Promise<VmRecord | undefined> {
  using host = openHost(options);
  const id = await containerId(name);
  let attached = false;
  try {
    using _vm = await lockVm(host, name);
    using _host = await lockHost(host);
    const record = await act(host, id);
    attached = record !== undefined;
    return record && publicRecord(record);
  } finally {
    if (!attached) {
      tidyState(host);
      tidyDefaultCni(host.confDir);
    }
  }
}

/** The `-- VMM` call that an attachment is for, and goes with; none where it is to stay. */
type Running = Pick<StoredRecord["made"], "run">;

async function attachLocked(
  host: Host,
  id: string,
  request: AttachRequest,
  running?: Running,
): Promise<StoredRecord> {
  const old = readRecord(host, request.name);
  if (old === undefined) refuseElsewhere(host, request.name);
  announce(host);
  if (old === undefined) return await attachAnew(host, id, request, undefined, running);
  if (old.made.phase === "attached") {
    const again = await attachAgain(host, withCurrentResolvers(host, old), request);
    return handOver(host, again, running);
  }
  if (old.made.phase === "removing") {
    noteUnfinished(host, old.vm);
    await removeAttachment(host, old);
    return await attachAnew(host, id, request, undefined, running);
  }
  host.note(`"${request.name}" was left half attached: beginning again`);
  // With interfaces it was attached before, and is to get its address and MAC again.
  if (old.interfaces.length > 0) {
    return handOver(host, await attachOver(host, old, mergeRequest(old, request)), running);
  }
  await removeAttachment(host, old);
  return await attachAnew(host, id, request, undefined, running);
}

/** What a call of `-- VMM` attached, and could not take away, is the next one's, or stays. */
function handOver(host: Host, record: StoredRecord, running?: Running): StoredRecord {
  const { run, ...made } = record.made;
  if (run === undefined) return record;
  const { run: heir } = running ?? (supervised(host, record.vm) ? record.made : {});
  if (heir === run) return record;
  const handed = { ...record, made: { ...made, ...heir === undefined ? {} : { run: heir } } };
  writeRecord(host, handed);
  return handed;
}

/** The host's resolvers may have changed since, or have come. */
function withCurrentResolvers(host: Host, old: StoredRecord): StoredRecord {
  const dns = currentResolvers(old, hostResolvers());
  if (JSON.stringify(dns) === JSON.stringify(old.dns)) return old;
  const record = { ...old, dns };
  writeRecord(host, record);
  return record;
}

/** Mends what differs from the record, and changes what may change. */
async function attachAgain(
  host: Host,
  old: StoredRecord,
  request: AttachRequest,
): Promise<StoredRecord> {
  const wanted = mergeRequest(old, request);
  validatePolicy(wanted);
  if (old.made.rulesInDoubt) await dropRules(host, old);
  const differences = await checkAttachment(old, host);
  noteMending(host, old.vm, differences);
  const networked = await mendNetworks(host, old, wanted, differences.network);
  if (networked.over) return networked.record;
  const whole = networked.record;
  const undo = new UndoStack();
  try {
    if (differences.wire.length > 0) await noteTapUsers(host, whole);
    const record = differences.wire.length > 0
      ? await rewire(host, whole, wanted)
      : differences.guards.length > 0 || changesGuards(whole, wanted)
      ? await reguard(host, whole, wanted, undo)
      : whole;
    const opening = (old.made.request.openFirewall ?? false) !== (wanted.openFirewall ?? false);
    const same = hasPorts(record, wanted) && samePolicy(record.made.request, wanted) && !opening &&
      hasLimits(record.made.guests, wanted, host.session.nl) && !record.made.rulesInDoubt;
    await checkpoint(host.signal);
    if (differences.firewall.length === 0 && same) {
      // A process that was killed may have left this for later.
      const firewall = await host.session.firewall(firewallOf(record.made));
      for (const guest of record.made.guests) firewall.endStaleFlows(guest);
      return record;
    }
    return await choosingAgain(askedPorts(wanted), () => changeRules(host, record, wanted));
  } catch (error) {
    throw await undo.fail(error);
  }
}

/**
 * Brings what CNI made back: chained plugins of other makers by themselves where that does, else
 * everything over.
 *
 * @returns the record, and whether it has all that is wanted
 */
async function mendNetworks(
  host: Host,
  old: StoredRecord,
  wanted: AttachRequest,
  findings: readonly NetworkFinding[],
): Promise<{ record: StoredRecord; over?: true }> {
  const left = findings.some(({ seen }) => seen)
    ? (await import("./rerun.ts")).mendVisible(host, old, findings)
    : findings;
  if (left.length === 0) return { record: old };
  if (left.every(({ executed, masquerade }) => executed === undefined && !masquerade)) {
    return { record: await attachOver(host, old, wanted), over: true };
  }
  const { checkAdded, rerunFailed } = await import("./rerun.ts");
  const record = await rerunFailed(host, old, left);
  if (record !== undefined) return { record };
  return { record: await checkAdded(host, await attachOver(host, old, wanted)), over: true };
}

/** Who runs the guest has to know that its TAP becomes another one. */
async function noteTapUsers(host: Host, record: StoredRecord): Promise<void> {
  const users = await describeTapUsers(record);
  if (users === undefined) return;
  host.note(`warning: the TAP that ${users} has open is made anew, and has to be opened again`);
}

/**
 * ADD where the network may have kept the address; else, and where that is refused, DEL, then ADD
 * that asks for the addresses and the MACs that are recorded.
 */
async function attachOver(
  host: Host,
  old: StoredRecord,
  wanted: AttachRequest,
): Promise<StoredRecord> {
  // One that was given and is gone is not made here: then all else stays as it is.
  requireSuccessor(old.vm, old);
  await noteTapUsers(host, old);
  const addressed = old.interfaces.some(({ addresses }) => addresses.length > 0);
  if (addressed && old.made.networks.some(mayGiveAgain)) {
    await removeMade(host, old, { keepLeases: true });
    try {
      return await attachAnew(host, old.id, wanted, old, { keepLeases: true });
    } catch (error) {
      if (!saysTaken(error)) throw error;
      host.note(`making room by DEL: ${describe(error)}`);
    }
  }
  await removeMade(host, old);
  return await attachAnew(host, old.id, wanted, old);
}

/** Whether an error says, or came of a plugin's saying, that something is there already. */
function saysTaken(error: unknown): boolean {
  if (error instanceof CniError) return error.taken;
  return error instanceof Error && saysTaken(error.cause);
}

/**
 * Attaches a VM of which nothing is there.
 *
 * @param old what is recorded of it, where it is to be the same again
 */
async function attachAnew(
  host: Host,
  id: string,
  request: AttachRequest,
  old?: StoredRecord,
  options: NewOptions = {},
): Promise<StoredRecord> {
  return await choosingAgain(
    askedPorts(request),
    () => attachOnce(host, id, request, old, options),
  );
}

interface NewOptions extends Running {
  /** Whether undoing leaves the addresses to the networks that may give them again. */
  readonly keepLeases?: boolean;
}

async function attachOnce(
  host: Host,
  id: string,
  request: AttachRequest,
  old: StoredRecord | undefined,
  { keepLeases = false, run }: NewOptions,
): Promise<StoredRecord> {
  validatePolicy(request);
  const { name } = request;
  const undo = new UndoStack();
  using stack = new DisposableStack();
  try {
    const { nl: hostNl } = host.session;
    const kind = request.firewall ?? (old && firewallOf(old.made));
    const firewall = await host.session.firewall(kind);
    const ports = await reservePorts(host, firewall, request, old);
    const before = old?.interfaces ?? [];
    const networks = keepFailures(
      await planNetworks(host, hostNl, id, request, ports, before),
      old?.made.networks,
    );
    const given = withGiven(plannedRecord(id, request, firewall.kind, networks, ports, old));
    const owner = old === undefined ? run : old.made.run;
    const planned = owner === undefined ? given : { ...given, made: { ...given.made, run: owner } };
    undo.push("settings of the kernel", async () => {
      await returnSettings(host, { firewall: firewall.kind });
      firewall.removeIfUnused();
    });
    undo.push(
      `record of "${name}"`,
      () => old === undefined ? forget(host, id, name) : writeRecord(host, old),
    );
    claimId(host, id, name);
    writeRecord(host, planned);

    const netns = stack.use(enterableNetns(request, undo));
    const vmNl = stack.use(withNetns(netns, () => NetlinkConnection.open()));
    if (request.netns === undefined) bringLoopbackUp(vmNl);
    const added: Added[] = [];
    for (const [index, network] of networks.entries()) {
      const had = before[index];
      const mtu = had?.mtu ?? request.mtu;
      const mac = had?.mac ?? (index === 0 ? request.mac : undefined);
      const environment = {
        netns,
        netnsPath: planned.netns,
        ownNetns: request.netns === undefined,
        hostNl,
        vmNl,
        undo,
        owner: `${name}/${network.ifName}`,
        fresh: old === undefined,
        keepsLease: keepLeases && mayGiveAgain(network),
        plugins: host,
        note: host.note,
        ...mtu === undefined ? {} : { mtu },
      };
      const add = () =>
        addNetwork(network, environment).catch((error) => {
          throw explainSecond(error, network.network, networks.slice(0, index));
        });
      const publishes = index === 0 && ports.length > 0 && publishedByPlugin(networks);
      const one =
        await (hasExecuted(network) ? guardSettings(host, { firewall, publishes }, add) : add());
      added.push(
        hasExecuted(network)
          ? await (await import("./executed-link.ts")).settleLink(one, {
            ...environment,
            ...had === undefined ? {} : { had },
            ...mac === undefined ? {} : { mac },
          })
          : one,
      );
    }
    const wiring = wireRequest(request, { netns, nl: vmNl, undo, note: host.note });
    const interfaces: VmInterface[] = [];
    for (const [index, { attachment, result }] of added.entries()) {
      const link = describeInterface(vmNl, attachment, result, interfaces);
      assertAsAsked(link, index === 0 ? request : { name }, before[index], host.note);
      interfaces.push(addWire(wiring, guardedAs(link, request)));
    }

    const attach = bindToFamilies(ports, addressesOf(interfaces[0]));
    const bound = old === undefined ? attach : allPorts({ ...portOwners(old), attach });
    const mapped = portsOfFirewall(networks, bound, old);
    // map-port's, where the network says nothing of how the guest is reached.
    const locate = mapped.length > 0 && !added[0]?.guest?.link
      ? (await import("./addresses.ts")).locateVm
      : undefined;
    const wanted = added.map(({ guest }, index): GuestRules => {
      const link = interfaces[index]!;
      const ends = { hostNl, vmNl, note: host.note };
      const plain = asForwarded(guest ?? plainRules(`${name}/${link.name}`, link), link, ends);
      noteFilteredBridge(firewall, plain, link, ends);
      const own = index === 0 ? mapped : [];
      const rules = own.length > 0 ? locate?.(hostNl, plain, link) ?? plain : plain;
      const mine = { ...rules, ports: own, ...openPorts(request) };
      return withLimits(withPolicy(mine, link, request, ends), link, request, hostNl);
    });
    if (networks.some(hasExecuted)) {
      const { refuseHeld } = await import("./same-address.ts");
      refuseHeld(host, { vm: name, interfaces, guests: wanted });
    }
    const guests = wanted.map((guest) => {
      undo.push(`the rules of ${guest.owner}`, () => firewall.remove(guest));
      return applyRules(firewall, { wanted: guest, request, note: host.note });
    });
    const policed = { interfaces, ports: bound, made: { guests } };
    const kept = await keptPolicies(host, policed, { fixing: true });
    if (kept.length > 0) putGuards({ ...planned, interfaces }, kept);
    const shown = publishedByPlugin(networks) ? bound : undefined;
    await bringSettings(host, guests, { firewall, request, fresh: old === undefined, shown });
    noteClosed(host, firewall, withShownPorts(guests, bound), `attach-vm ${name}`);

    const dns = guestDns(host, added.map(({ result }) => result), old);
    const record: StoredRecord = {
      ...planned,
      interfaces,
      dns,
      ports: bound,
      made: {
        ...planned.made,
        ...ownersOf(old, attach),
        phase: "attached",
        netnsIs: netnsIdentity(netns, vmNl),
        networks: added.map(({ attachment }) => attachment),
        guests,
      },
    };
    await checkpoint(host.signal);
    writeRecord(host, record);
    return record;
  } catch (error) {
    throw await undo.fail(nameHolder(host, error));
  }
}

/** The record of what is about to be made: enough to take any part of it away. */
function plannedRecord(
  id: string,
  request: AttachRequest,
  firewall: FirewallKind,
  networks: readonly NetworkAttachment[],
  ports: readonly PortMapping[],
  old?: StoredRecord,
): StoredRecord {
  // After a crash they are asked for again.
  const interfaces = old?.interfaces ?? [];
  const attach = old === undefined ? [] : bindToFamilies(ports, addressesOf(interfaces[0]));
  return {
    version: 1,
    vm: request.name,
    id,
    networkPlugin: "cni",
    netns: request.netns ?? netnsPath(netnsName(request.name)),
    interfaces,
    dns: old?.dns ?? { nameservers: [], search: [] },
    ports: old === undefined ? [] : allPorts({ ...portOwners(old), attach }),
    ...recordedPolicy(request),
    ...recordedLimits(request),
    made: {
      phase: "attaching",
      netnsGiven: request.netns !== undefined,
      ...ownersOf(old, attach),
      firewall,
      request,
      networks,
      guests: [],
    },
  };
}

function forget(host: Host, id: string, name: string): void {
  releaseId(host, id, name);
  deleteRecord(host, name);
}

/** The namespace that was named, or a new one of the VM's own. */
function enterableNetns({ name, netns }: AttachRequest, undo: UndoStack): Netns {
  if (netns !== undefined) return openNetns(netns);
  let made = false;
  undo.push(`network namespace "${netnsName(name)}"`, () => {
    if (made) deleteNamedNetns(netnsName(name));
  });
  const created = createNamedNetns(netnsName(name));
  made = true;
  return created;
}

function bringLoopbackUp(vmNl: NetlinkConnection): void {
  setLink(vmNl, requireLink(vmNl, "lo").index, { up: true });
}

function addressesOf(link: VmInterface | undefined): string[] {
  return (link?.addresses ?? []).map(({ address }) => parseCidr(address).address);
}

/** The rules of a guest whose network asks nothing of the firewall. */
function plainRules(owner: string, link: VmInterface): GuestRules {
  return {
    owner,
    link: "",
    addresses: addressesOf(link),
    masquerade: false,
    forward: false,
    ports: [],
  };
}

/** What the networks say of name resolution, else what the host has, or had. */
function guestDns(host: Host, results: readonly Result[], old?: StoredRecord): VmDns {
  const now = hostResolvers();
  const known = now.nameservers.length === 0 && old !== undefined ? old.dns : now;
  const dns = resolversOf(results.map((result) => result.dns), known);
  if (dns.nameservers.length === 0) {
    host.note(
      "warning: no name server for the guest: neither its network nor the host names one that it can " +
        "reach; once /etc/resolv.conf does, DHCP tells it",
    );
  }
  return dns;
}
