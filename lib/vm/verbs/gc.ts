/**
 * Collecting what is dead: tapkit's own attachments, and, where it is asked for, what plugins have
 * beside the living ones.
 *
 * @module
 */

import { listConfigFiles, readConfigFile } from "../../cni/conflist.ts";
import { DEFAULT_NETWORK } from "../../cni/default-network.ts";
import { gcNetwork } from "../../cni/executed.ts";
import { chooseExecuted, type NetworkAttachment } from "../../cni/plan.ts";
import type { NetworkConfigList } from "../../cni/types.ts";
import { describe, TapkitError } from "../../errors.ts";
import { inTurns } from "../../turns.ts";
import { hasNamespace } from "../layers/bring.ts";
import { layersOf } from "../layers/kinds.ts";
import type { Attachment } from "../record/attachment.ts";
import { elsewhere } from "../record/elsewhere.ts";
import { sweepLocks, tidyState } from "../record/locks.ts";
import { type HostPaths, recordNames } from "../record/paths.ts";
import { attachedSide, readVm, readVms, sidesOf } from "../record/store.ts";
import { supervised } from "../running.ts";
import { openHost } from "../session.ts";
import type { Collected, HostOptions } from "../types.ts";
import { removeForGood, removingTogether } from "./take-away.ts";
import { changingVm, contextOf, type VmWork } from "./work.ts";

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
    await using _together = removingTogether({ ...options, session: host.session });
    const tryToCollect = async (
      name: string,
      waits: () => void,
    ): Promise<Collected | undefined> => {
      try {
        const { session } = host;
        return await collect(name, { ...options, session, waits }) ? { name } : undefined;
      } catch (error) {
        return { name, error };
      }
    };
    for await (const { result } of inTurns(recordNames(host), tryToCollect, options.signal)) {
      if (result !== undefined) yield result;
    }
    if (options.exclusive === true) await collectNetworks(host);
  } finally {
    sweepLocks(host);
    tidyState(host);
  }
}

async function collect(name: string, options: HostOptions): Promise<boolean> {
  return await changingVm(name, options, async (work) => {
    const stored = readVm(work.host, name);
    if (stored === undefined || supervised(work.host, name)) return false;
    if (!await isDead(work, stored)) return false;
    await removeForGood(work, stored);
    return true;
  });
}

/** With the VM's lock held, nobody is making what is half made. */
async function isDead(work: VmWork, stored: Attachment): Promise<boolean> {
  const at = attachedSide(stored);
  // Nobody is left to take away what was to go with its VMM.
  if (at === undefined || at.spec.run !== undefined) return true;
  using context = contextOf(work, stored);
  return !await hasNamespace(layersOf(work.host).vm, context, at);
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
  const attachments = [host, ...elsewhere(host)].flatMap((each) => readVms(each))
    .flatMap(sidesOf).flatMap(({ facts }) => facts.networks.map(({ attachment }) => attachment));
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
