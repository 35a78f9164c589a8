/**
 * Collecting what is dead: tapkit's own attachments, and, where it is asked for, what plugins have
 * beside the living ones.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import { listConfigFiles, readConfigFile } from "../cni/conflist.ts";
import { DEFAULT_NETWORK } from "../cni/default-network.ts";
import { gcNetwork } from "../cni/executed.ts";
import { chooseExecuted, type NetworkAttachment } from "../cni/plan.ts";
import type { NetworkConfigList } from "../cni/types.ts";
import { describe, TapkitError } from "../errors.ts";
import { isThere } from "../files.ts";
import { elsewhere } from "./elsewhere.ts";
import { leadsElsewhere } from "./netns.ts";
import { removeForGood } from "./remove.ts";
import { supervised } from "./running.ts";
import { type Host, openHost } from "./session.ts";
import { type HostPaths, recordNames } from "./host-paths.ts";
import { lockHost, lockVm, sweepLocks, tidyState } from "./locks.ts";
import { readRecord, readRecords, type StoredRecord } from "./state.ts";
import type { Collected, HostOptions } from "./types.ts";

/** How to collect. */
export interface GcOptions extends HostOptions {
  /**
   * Nobody else attaches to this host's networks: the plugins' own GC is called, which takes
   * everything but tapkit's attachments.
   */
  readonly exclusive?: boolean;
}

/**
 * Removes attachments whose namespace is gone, or that were left half made, each a transaction of
 * its own, past failures. What others attached is not touched, unless `exclusive` is given.
 */
export async function* collectVms(options: GcOptions = {}): AsyncGenerator<Collected> {
  using host = openHost(options);
  try {
    for (const name of recordNames(host)) {
      try {
        if (await collect(host, name)) yield { name };
      } catch (error) {
        yield { name, error };
      }
    }
    if (options.exclusive === true) await collectNetworks(host);
  } finally {
    sweepLocks(host);
    tidyState(host);
  }
}

async function collect(host: Host, name: string): Promise<boolean> {
  await checkpoint(host.signal);
  using _vm = await lockVm(host, name);
  using _host = await lockHost(host);
  const record = readRecord(host, name);
  if (record === undefined || supervised(host, name) || !isDead(record)) return false;
  await removeForGood(host, record);
  return true;
}

/** With the VM's lock held, nobody is making what is half made. */
function isDead(record: StoredRecord): boolean {
  const { phase, run } = record.made;
  // Nobody is left to take away what was to go with its VMM.
  const orphaned = run !== undefined;
  return phase !== "attached" || orphaned || !isThere(record.netns) || leadsElsewhere(record);
}

/** What attaching executes: of the built-in plugins nothing is left that is not collected here. */
function executedPlugins(
  list: NetworkConfigList,
  own: readonly NetworkAttachment[],
  host: HostPaths,
): NetworkConfigList["plugins"] {
  if (own.length === 0) {
    const isDefault = list.name === DEFAULT_NETWORK;
    const executes = chooseExecuted(list, { mode: "auto", isDefault, host });
    return list.plugins.filter((_, index) => executes[index]);
  }
  const ran = own.flatMap(({ plugins }) => plugins)
    .filter(({ implementation }) => implementation === "exec");
  return list.plugins.filter(({ type }) => ran.some((plugin) => plugin.type === type));
}

/** Calls GC of every configured network that has it (spec 1.1). */
async function collectNetworks(host: HostPaths): Promise<void> {
  using _host = await lockHost(host);
  const attachments = [host, ...elsewhere(host)].flatMap((each) => readRecords(each))
    .flatMap(({ made }) => made.networks);
  const failures: string[] = [];
  for (const path of listConfigFiles(host.confDir)) {
    try {
      const list = readConfigFile(path);
      const own = attachments.filter(({ network }) => network === list.name);
      const valid = own.map(({ containerId, ifName }) => ({
        containerID: containerId,
        ifname: ifName,
      }));
      const executed = { ...list, plugins: executedPlugins(list, own, host) };
      failures.push(...(await gcNetwork(executed, host, valid)).map(describe));
    } catch (error) {
      if (!(error instanceof TapkitError)) throw error;
      failures.push(describe(error));
    }
  }
  if (failures.length > 0) throw new TapkitError(failures.join("; "));
}
