/**
 * Chained plugins that are executed, run again by themselves: DEL with what the whole chain gave, ADD
 * with what the plugin before gave. The interface, which the first plugin made, is left alone.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { writeCache } from "./cache.ts";
import { addExecuted } from "./executed.ts";
import type { MadeAttachment, NetworkAttachment, PluginHost, RecordedPlugin } from "./plan.ts";
import { delTwice } from "./reference-faults.ts";
import { versionsAt, withResults } from "./runtime.ts";
import type { PluginConfig, Result } from "./types.ts";

export { rememberFailures } from "./reference-faults.ts";

/** Where plugins are run again. */
export interface RerunEnvironment {
  readonly host: PluginHost;
  /** The namespace's path. */
  readonly netns: string;
  /**
   * Other versions of the attachment that may be there, where a change was cut off: DEL gets the
   * configurations of their plugins too.
   */
  readonly also?: readonly Pick<NetworkAttachment, "plugins">[];
}

/** Whether a plugin can be run again by itself: the first one makes the interface. */
export function canRerun({ plugins }: Pick<MadeAttachment, "plugins">, index: number): boolean {
  return index > 0 && plugins[index]?.implementation === "exec";
}

/**
 * Runs plugins of a chain again, with the configuration that each is to have. If one returns another
 * result than before, those after it are run again with that.
 *
 * @param configs by the plugins' places in the chain
 * @returns the attachment as it is now
 * @throws {CniError} when a plugin fails
 * @throws {TapkitError} when the guest's addresses, MAC or routes would be others now
 */
export async function replace(
  attachment: MadeAttachment,
  configs: ReadonlyMap<number, PluginConfig>,
  { host, netns, also = [] }: RerunEnvironment,
): Promise<MadeAttachment> {
  const { plugins, result } = attachment;
  const recorded = (index: number) => plugins[index]?.prevResult ?? result;
  const got: (Result | undefined)[] = [];
  const now: RecordedPlugin[] = [];
  let last: Result | undefined;
  for (const [index, plugin] of plugins.entries()) {
    got.push(last);
    const isChanged = last !== undefined && !isSame(last, recorded(index));
    const config = configs.get(index) ?? (isChanged ? plugin.config : undefined);
    if (config === undefined) {
      now.push(plugin);
      last = recorded(index + 1);
      continue;
    }
    if (!canRerun(attachment, index)) {
      throw new TapkitError(`plugin "${plugin.type}" cannot be run again by itself`);
    }
    for (const version of versionsAt(index, [...also, attachment])) {
      await delTwice({ attachment, plugin: version, host, netns }, result);
    }
    const { inDoubt: _, ...settled } = plugin;
    const added = { ...settled, config };
    now.push(added);
    last = await addExecuted({ attachment, plugin: added, host, netns }, last);
  }
  if (last === undefined || !isSame(ofGuest(last), ofGuest(result))) {
    throw new TapkitError(
      `network "${attachment.network}" now gives another address, MAC or route`,
    );
  }
  const made = withResults({ ...attachment, plugins: now, result: last }, got);
  writeCache(host.stateDir, made, netns);
  return made;
}

/** What one plugin's being run again is. */
export interface Rerun {
  /** The configurations that it may have run with, each for a DEL. */
  readonly del: readonly PluginConfig[];
  /** The one it is to have. */
  readonly add: PluginConfig;
}

/** {@linkcode replace}, with the configurations for DEL given plugin by plugin. */
export function rerunPlugins(
  attachment: MadeAttachment,
  reruns: ReadonlyMap<number, Rerun>,
  environment: Omit<RerunEnvironment, "also">,
): Promise<MadeAttachment> {
  const also = [...reruns].flatMap(([place, { del }]) =>
    del.map((config) => ({
      plugins: attachment.plugins.map((plugin, at) =>
        at === place ? { ...plugin, config } : plugin
      ),
    }))
  );
  const configs = new Map([...reruns].map(([place, { add }]) => [place, add]));
  return replace(attachment, configs, { ...environment, also });
}

/** Of a result what the guest is told. */
function ofGuest({ interfaces, ips, routes, dns }: Result): unknown {
  return [interfaces.filter(({ sandbox = "" }) => sandbox !== ""), ips, routes, dns];
}

function isSame(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
