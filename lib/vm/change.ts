/**
 * Changing what is attached while its guest runs: TAP, guards, rules, each by itself.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import { TapkitError } from "../errors.ts";
import type { GuestRules } from "../firewall/model.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { openNetns, withNetns } from "../sys/netns.ts";
import { UndoStack } from "../undo.ts";
import { keptPolicies } from "./check.ts";
import type { GuardPolicy } from "./guard.ts";
import { applyRules, recordedLimits, withLimits } from "./limits.ts";
import { recordedPolicy, samePolicy, withPolicy } from "./policy.ts";
import {
  allPorts,
  bindToFamilies,
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
import type { Host } from "./session.ts";
import { bringSettings, guardSettings, returnSettings } from "./settings.ts";
import { firewallOf, readRecord, type StoredRecord, writeRecord } from "./state.ts";
import type { AttachRequest } from "./types.ts";
import { addWire, guardedAs, removeWire, setGuards, wireRequest } from "./wires.ts";

/** What is tagged with the VM: a change of its rules was cut off. */
export async function dropRules({ session }: Host, { made }: StoredRecord): Promise<void> {
  for (const firewall of await session.firewalls(firewallOf(made))) {
    for (const { owner } of made.guests) firewall.removeOwner(owner);
  }
}

/**
 * The TAP and what joins it anew, on the interface that is there. When that fails, what it made is
 * gone: a half made wire is worse than none, which `--check` names.
 */
export async function rewire(
  host: Host,
  record: StoredRecord,
  wanted: AttachRequest,
): Promise<StoredRecord> {
  const undo = new UndoStack();
  using netns = openNetns(record.netns);
  using nl = withNetns(netns, () => NetlinkConnection.open());
  try {
    const kept = await keptPolicies(host, record, { fixing: true });
    const interfaces = record.interfaces.map((link, index) => {
      removeWire(nl, link.name, link.mode);
      const { dhcpGuard: _, ...unwired } = link;
      const request = wireRequest(record.made.request, { netns, nl, undo, note: host.note });
      const { mode } = link;
      return addWire({ ...request, mode, policy: kept[index] }, guardedAs(unwired, wanted));
    });
    const request = { ...record.made.request, ...identityOf(wanted) };
    const rewired = { ...record, interfaces, made: { ...record.made, request } };
    writeRecord(host, rewired);
    return rewired;
  } catch (error) {
    throw await undo.fail(error);
  }
}

/**
 * The guards that the record or the request wants, in place of those there are.
 *
 * @param undo gets what brings the recorded ones back
 */
export async function reguard(
  host: Host,
  record: StoredRecord,
  wanted: AttachRequest,
  undo: UndoStack,
): Promise<StoredRecord> {
  const kept = await keptPolicies(host, record, { fixing: true });
  const interfaces = record.interfaces.map((link) => guardedAs(link, wanted));
  const request = { ...record.made.request, ...identityOf(wanted) };
  const reguarded = { ...record, interfaces, made: { ...record.made, request } };
  undo.push(`record of "${record.vm}"`, () => {
    // What failed later may have left other parts of it in doubt.
    const now = readRecord(host, record.vm) ?? record;
    const made = { ...now.made, request: record.made.request };
    writeRecord(host, { ...now, interfaces: record.interfaces, made });
  });
  writeRecord(host, reguarded);
  undo.push(`the guards of "${record.vm}"`, () => putGuards(record, kept));
  putGuards(reguarded, kept);
  return reguarded;
}

/** Puts the guards of a record's interfaces in the place of those there are. */
export function putGuards(
  { netns: path, interfaces }: Pick<StoredRecord, "netns" | "interfaces">,
  kept: readonly (GuardPolicy | undefined)[],
): void {
  using netns = openNetns(path);
  using nl = withNetns(netns, () => NetlinkConnection.open());
  for (const [index, link] of interfaces.entries()) {
    if (link.dhcpGuard === false || setGuards(nl, link, kept[index])) continue;
    throw new TapkitError(`this kernel cannot guard "${link.name}" any more`, {
      mend: "use a kernel with CONFIG_NET_CLS_BPF",
    });
  }
}

/**
 * Guards that keep the policy and answer from the ports of another record of the same VM.
 *
 * @param undo gets what brings those of the first back
 */
export async function changeKept(
  host: Host,
  before: StoredRecord,
  after: StoredRecord,
  undo: UndoStack,
): Promise<void> {
  const had = await keptPolicies(host, before);
  const kept = await keptPolicies(host, after, { fixing: true });
  if (JSON.stringify(had) === JSON.stringify(kept)) return;
  undo.push(`the guards of "${before.vm}"`, () => putGuards(before, had));
  putGuards(after, kept);
}

/** What of a request says who a guest is. */
function identityOf(
  { antispoof, linkLocal }: AttachRequest,
): Pick<AttachRequest, "antispoof" | "linkLocal"> {
  return {
    ...antispoof === undefined ? {} : { antispoof },
    ...linkLocal === undefined ? {} : { linkLocal },
  };
}

/** Whether a request wants other guards than the interfaces have. */
export function changesGuards({ interfaces }: StoredRecord, wanted: AttachRequest): boolean {
  return interfaces.some((link) => {
    const { antispoof, linkLocal } = guardedAs(link, wanted);
    return link.antispoof !== antispoof || link.linkLocal !== linkLocal;
  });
}

/** Puts the firewall's rules back, with the ports that are wanted now. */
export async function changeRules(
  host: Host,
  old: StoredRecord,
  wanted: AttachRequest,
): Promise<StoredRecord> {
  const [rules] = old.made.guests;
  const firewall = await host.session.firewall(firewallOf(old.made));
  const owners = portOwners(old);
  const chosen = hasPorts(old, wanted)
    ? undefined
    : await reservePorts(host, firewall, wanted, old);
  const attach = chosen === undefined
    ? owners.attach
    : bindToFamilies(chosen, rules?.addresses ?? []);
  const republishing = chosen !== undefined && publishedByPlugin(old.made.networks)
    ? (await import("./rerun.ts")).planRepublishing(host, old, chosen, attach)
    : undefined;
  const ports = allPorts({ ...owners, attach });
  const own = portsOfFirewall(old.made.networks, ports, old);
  const mapped = old.made.guests.map((guest, index) => ({
    ...guest,
    ...index === 0 ? { ports: own } : {},
    ...openPorts(wanted),
  }));
  const policed = samePolicy(old.made.request, wanted)
    ? mapped
    : policedGuests(host, old, mapped, wanted);
  const limited = policed.map((guest, index) =>
    withLimits(guest, old.interfaces[index]!, wanted, host.session.nl)
  );
  const { rulesInDoubt: _, ...made } = old.made;
  const record: StoredRecord = {
    ...withoutPolicy(old),
    ports,
    ...recordedPolicy(wanted),
    ...recordedLimits(wanted),
    made: { ...made, ...ownersOf(old, attach), request: wanted },
  };
  const undo = new UndoStack();
  const firewallKind = firewallOf(old.made);
  try {
    undo.push("settings of the kernel", () => returnSettings(host, { firewall: firewallKind }));
    const { doubtful = old, isSettled = () => true } = republishing ?? {};
    const changing = { ...doubtful, made: { ...doubtful.made, rulesInDoubt: true as const } };
    undo.push(
      `record of "${old.vm}"`,
      () => writeRecord(host, isSettled() ? old : changing),
    );
    writeRecord(host, changing);
    const networks = republishing === undefined
      ? old.made.networks
      : await guardSettings(host, { firewall, publishes: true }, () => republishing.run(undo));
    const guests = limited.map((guest, index) => {
      const before = old.made.guests[index]!;
      undo.push(`the rules of ${guest.owner}`, () => firewall.replace(guest, before));
      return applyRules(firewall, { old: before, wanted: guest, request: wanted, note: host.note });
    });
    const changed = { ...record, made: { ...record.made, networks, guests } };
    await changeKept(host, old, changed, undo);
    const shown = publishedByPlugin(networks) ? ports : undefined;
    await bringSettings(host, guests, { firewall, request: wanted, shown });
    await returnSettings(host, {
      leaves: (owner) => guests.some((guest) => guest.owner === owner),
      gone: withShownPorts(old.made.guests, old.ports),
      kept: withShownPorts(guests, ports),
      firewall: firewallKind,
    });
    noteClosed(host, firewall, withShownPorts(guests, ports), `attach-vm ${old.vm}`);
    // A plugin ends no connections.
    if (republishing !== undefined && rules !== undefined) {
      firewall.endStaleFlows({ ...rules, ports }, owners.attach);
    }
    await checkpoint(host.signal);
    writeRecord(host, changed);
    return changed;
  } catch (error) {
    throw await undo.fail(error);
  }
}

/** An attached VM's rules with another policy. */
function policedGuests(
  { session, note }: Host,
  { netns: path, interfaces }: StoredRecord,
  guests: readonly GuestRules[],
  wanted: AttachRequest,
): GuestRules[] {
  using netns = openNetns(path);
  using vmNl = withNetns(netns, () => NetlinkConnection.open());
  const ends = { hostNl: session.nl, vmNl, note };
  return guests.map((guest, index) => withPolicy(guest, interfaces[index]!, wanted, ends));
}

function withoutPolicy(record: StoredRecord): StoredRecord {
  const { isolated: _, denyEgress: __, allowEgress: ___, ...others } = record;
  const { reachableFrom: _a, maxConnections: _b, newConnections: _c, ...rest } = others;
  return rest;
}
