/**
 * Taking an attachment away: everything that is there of it, whatever is not.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import { listConfigFiles, readConfigFile } from "../cni/conflist.ts";
import { DEFAULT_NETWORK, tidyDefaultCni } from "../cni/default-network.ts";
import { type NetworkAttachment, planNetwork, type PluginChoice } from "../cni/plan.ts";
import { delNetwork, hasExecuted, mayGiveAgain } from "../cni/runtime.ts";
import { LINK_GROUP } from "../cni/plugins/veth.ts";
import { asError, describe, TapkitError } from "../errors.ts";
import { isThere } from "../files.ts";
import { deleteLinkGroup } from "../netlink/link.ts";
import type { Firewall } from "../firewall/firewall.ts";
import { Journal } from "../firewall/journal.ts";
import { deleteNamedNetns, netnsPath } from "../sys/netns.ts";
import { holderElsewhere } from "./elsewhere.ts";
import { leadsElsewhere, openVm } from "./netns.ts";
import { describeTapUsers, pidInWords, supervised } from "./running.ts";
import { type Host, openHost } from "./session.ts";
import { returnSettings } from "./settings.ts";
import { containerId, type HostPaths, netnsName, recordNames, validateName } from "./host-paths.ts";
import { lockHost, lockVm, tidyState } from "./locks.ts";
import {
  deleteRecord,
  firewallOf,
  markRemoving,
  readRecord,
  releaseId,
  type StoredRecord,
} from "./state.ts";
import type { HostOptions } from "./types.ts";
import { removeWire, type WantedMode } from "./wires.ts";

/** How to remove. */
export interface RemoveOptions extends HostOptions {
  /** Also from under a VMM that `-- VMM` runs. */
  readonly force?: boolean | undefined;
}

/**
 * Takes a VM off its networks. Of a VM whose record is lost, all that bears its name or its
 * container id goes.
 *
 * @returns whether there was anything to take away
 * @throws {InputError} when the name is malformed
 * @throws {TapkitError} while a VMM of `-- VMM` runs, unless `force`: nothing was touched; else
 * naming everything that could not be taken away: the rest is gone
 */
export async function removeVm(name: string, options: RemoveOptions = {}): Promise<boolean> {
  validateName(name);
  return await withLocks(name, options, async (host) => {
    const running = supervised(host, name);
    if (options.force !== true) refuseRunning(name, running);
    const record = readUsableRecord(host, name);
    if (record === undefined) {
      const holder = holderElsewhere(host, name);
      if (holder === undefined) return await removeLost(host, name);
      host.note(`the VM "${name}" of ${holder} stays: write --state-dir ${holder} to remove it`);
      return false;
    }
    await removeForGood(host, record);
    return true;
  });
}

/** Takes away what a call of `-- VMM` attached, unless it is another's, or nobody's, by now. */
export async function removeRun(name: string, run: string, options: HostOptions): Promise<void> {
  await withLocks(name, options, async (host) => {
    const record = readRecord(host, name);
    if (record?.made.run === run) await removeForGood(host, record);
  });
}

async function withLocks<T>(
  name: string,
  options: HostOptions,
  act: (host: Host) => Promise<T>,
): Promise<T> {
  using host = openHost(options);
  try {
    await checkpoint(host.signal);
    using _vm = await lockVm(host, name);
    using _host = await lockHost(host);
    return await act(host);
  } finally {
    tidyState(host);
    tidyDefaultCni(host.confDir);
  }
}

function refuseRunning(name: string, running: { readonly pid?: number } | undefined): void {
  if (running === undefined) return;
  throw new TapkitError(`it is running${pidInWords(running.pid)}, by attach-vm ${name} -- …`, {
    mend: "end that, and it is removed; or use --force, which leaves it without a network",
  });
}

/** Who runs the guest has to know that it loses its network. */
async function noteTapUsers(host: Host, vm: Removable): Promise<void> {
  const users = await describeTapUsers(vm);
  if (users === undefined) return;
  host.note(`warning: ${users} has the TAP of "${vm.vm}" open, and loses its network`);
}

/** The record, unless it is lost: one that cannot be read is as good as none here. */
function readUsableRecord(host: HostPaths, name: string): StoredRecord | undefined {
  try {
    return readRecord(host, name);
  } catch (error) {
    if (!(error instanceof TapkitError)) throw error;
    host.note(`${error.message}: removing what bears the name of "${name}"`);
    return undefined;
  }
}

/** What has to be known of an attachment to take it away. */
type Removable =
  & Pick<StoredRecord, "vm" | "id" | "netns">
  & {
    readonly interfaces?: StoredRecord["interfaces"];
    readonly made:
      & Pick<
        StoredRecord["made"],
        "phase" | "netnsGiven" | "netnsIs" | "firewall" | "rulesInDoubt" | "networks" | "guests"
      >
      & { readonly request?: Pick<StoredRecord["made"]["request"], "mode"> };
  };

/**
 * Takes an attachment away as {@linkcode removeAttachment} does; where that fails, what is left is not
 * brought back by anything but attaching it anew.
 */
export async function removeForGood(host: Host, record: StoredRecord): Promise<void> {
  await noteTapUsers(host, record);
  await removeAttachment(host, record, {
    begins: () => {
      try {
        markRemoving(host, record);
      } catch (error) {
        // On a full disk it goes all the same.
        host.note(`warning: ${describe(error)}`);
      }
    },
  });
}

/** Says that a removal goes on which was cut off, or failed, before. */
export function noteUnfinished(host: Host, name: string): void {
  host.note(`"${name}" was left half removed: removing what is left of it`);
}

/**
 * Takes an attachment away, past failures; the record goes last.
 *
 * @throws {TapkitError} naming everything that failed; the record stays then
 */
export async function removeAttachment(
  host: Host,
  record: Removable,
  options: Pick<Taking, "begins"> = {},
): Promise<void> {
  await removeMade(host, record, { ...options, forGood: true });
  releaseId(host, record.id, record.vm);
  deleteRecord(host, record.vm);
}

/** How an attachment is taken away. */
interface Taking {
  /** Whether plugins that may give the same address again are left to keep it. */
  readonly keepLeases?: boolean;
  /** Whether it is not to be made again at once: then settings of the kernel go back. */
  readonly forGood?: boolean;
  /** Called before the first effect. */
  readonly begins?: () => void;
}

/** Takes away everything of an attachment but its record, as {@linkcode removeAttachment} does. */
export async function removeMade(
  host: Host,
  record: Removable,
  { keepLeases = false, forGood = false, begins }: Taking = {},
): Promise<void> {
  const failures: unknown[] = [];
  const step = (action: () => void) => {
    try {
      action();
    } catch (error) {
      failures.push(error);
    }
  };
  using stack = new DisposableStack();
  const hostNl = host.session.nl;
  const vmNl = openVm(stack, record);
  begins?.();
  const { made, netns } = record;
  // Almost all there is; what is left by another version, or half made, goes by its name.
  const links = vmNl && deleteLinkGroup(vmNl, LINK_GROUP).catch((error) => failures.push(error));

  try {
    for (const firewall of await host.session.firewalls(firewallOf(made))) {
      step(() => removeRules(firewall, record));
    }
  } catch (error) {
    failures.push(error);
  }
  await links;
  if (vmNl !== undefined) {
    for (const { ifName } of made.networks) {
      step(() => removeWire(vmNl, ifName, modeOf(record, ifName)));
    }
  }
  const environment = {
    netnsPath: netns,
    hostNl,
    ...vmNl === undefined ? {} : { vmNl },
    plugins: host,
    note: host.note,
  };
  for (const network of made.networks.toReversed()) {
    const keepsLease = keepLeases && mayGiveAgain(network);
    failures.push(...await delNetwork(network, { ...environment, keepsLease }));
  }
  step(() => {
    // By now the name may be another's.
    if (!made.netnsGiven && !leadsElsewhere(record)) deleteNamedNetns(netnsName(record.vm));
  });
  try {
    if (forGood) await leaveSettings(host, record);
    if (recordNames(host).every((name) => name === record.vm)) {
      const firewalls = await host.session.firewalls(firewallOf(made));
      for (const firewall of firewalls) step(() => firewall.removeIfUnused());
      step(() => new Journal().tidy());
    }
  } catch (error) {
    failures.push(error);
  }
  if (failures.length > 0) throw leftBehind(failures);
}

/** The mode an interface has, or was to have when it was left half made. */
function modeOf({ interfaces = [], made }: Removable, ifName: string): WantedMode {
  const recorded = made.phase === "attached" ? interfaces : [];
  return recorded.find(({ name }) => name === ifName)?.mode ?? made.request?.mode ?? "auto";
}

/** The rules of the record, or what is tagged with the VM where they may be others. */
function removeRules(firewall: Firewall, record: Removable): void {
  const { made, vm } = record;
  if (isSettled(record)) {
    for (const guest of made.guests) firewall.remove(guest);
  } else {
    for (const { ifName } of made.networks) firewall.removeOwner(`${vm}/${ifName}`);
  }
}

function isSettled({ made }: Removable): boolean {
  return made.phase === "attached" && !made.rulesInDoubt;
}

/** Settings that this VM was the last to need; while the rules that close what they open are there. */
async function leaveSettings(host: Host, record: Removable): Promise<void> {
  const { vm, made } = record;
  await returnSettings(host, {
    leaves: (owner) => owner.startsWith(`${vm}/`),
    // What plugins of others opened, rules need not say.
    ...isSettled(record) && !made.networks.some(hasExecuted) ? { gone: made.guests } : {},
    firewall: firewallOf(made),
  });
}

function leftBehind(failures: readonly unknown[]): TapkitError {
  const reasons = new Set(failures.map((error) => asError(error).message));
  const mend = failures.map((error) => error instanceof TapkitError ? error.mend : undefined)
    .find((mend) => mend !== undefined);
  return new TapkitError(`not everything could be taken away: ${[...reasons].join("; ")}`, {
    mend: mend === undefined
      ? "run the command again when the causes are gone"
      : `${mend}, then run the command again`,
    cause: failures[0],
  });
}

/** Takes away what an attachment without a record would have made, on every network there is. */
async function removeLost(host: Host, name: string): Promise<boolean> {
  const id = await containerId(name);
  const netns = netnsPath(netnsName(name));
  const cached = await cachedNetworks(host, id);
  const found = recordNames(host).includes(name) || isThere(netns) || cached.length > 0;
  const names = cached.map(({ network }) => network);
  // A plugin of another maker is asked to take away only what there is a sign of.
  const known = knownNetworks(host, id, found ? "auto" : "builtin")
    .filter(({ network }) => !names.includes(network));
  const lost: Removable = {
    vm: name,
    id,
    netns,
    made: {
      phase: "attaching",
      netnsGiven: false,
      networks: [...cached, ...known],
      guests: [],
    },
  };
  await noteTapUsers(host, lost);
  await removeAttachment(host, lost);
  return found;
}

/** eth0 on each network of the directory; one that is broken is passed over. */
function knownNetworks(
  host: HostPaths,
  containerId: string,
  mode: PluginChoice["mode"],
): NetworkAttachment[] {
  return listConfigFiles(host.confDir).flatMap((path) => {
    try {
      const list = readConfigFile(path);
      const choice = { mode, isDefault: list.name === DEFAULT_NETWORK, host };
      return planNetwork({ list, containerId, ifName: "eth0", choice });
    } catch (error) {
      if (error instanceof TapkitError) return [];
      throw error;
    }
  });
}

/** What the cache of executed networks has of a VM. */
async function cachedNetworks(host: HostPaths, containerId: string): Promise<NetworkAttachment[]> {
  if (!isThere(`${host.stateDir}/cni`)) return [];
  const { readCache } = await import("../cni/cache.ts");
  return readCache(host.stateDir, containerId).flatMap(({ list, ifName, result, ...entry }) => {
    const choice = { mode: "auto", isDefault: list.name === DEFAULT_NETWORK, host } as const;
    try {
      const { capabilityArgs: runtimeConfig, cniArgs } = entry;
      const plan = planNetwork({ list, containerId, ifName, runtimeConfig, choice });
      return { ...plan, cniArgs, ...result === undefined ? {} : { result } };
    } catch (error) {
      if (error instanceof TapkitError) return [];
      throw error;
    }
  });
}
