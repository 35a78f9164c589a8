/**
 * Chained plugins that are executed, run again by themselves: DEL with what the whole chain gave, ADD
 * with what the plugin before gave. The interface, which the first plugin made, is left alone.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { writeCache } from "./cache.ts";
import { addExecuted } from "./executed.ts";
import { canRerun } from "./plan.ts";
import type {
  MadeAttachment,
  NetworkAttachment,
  Outside,
  PluginHost,
  RecordedPlugin,
} from "./plan.ts";
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
  /** Executes each plugin without the caller's locks. */
  readonly outside?: Outside;
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
  { host, netns, also = [], outside = (act) => act() }: RerunEnvironment,
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
      const made = { attachment, plugin: version, host, netns };
      await outside(() => delTwice(made, result));
    }
    const added = { ...plugin, config };
    now.push(added);
    const before = last;
    last = await outside(() => addExecuted({ attachment, plugin: added, host, netns }, before));
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

/** Of a result what the guest is told. */
function ofGuest({ interfaces, ips, routes, dns }: Result): unknown {
  return [interfaces.filter(({ sandbox = "" }) => sandbox !== ""), ips, routes, dns];
}

function isSame(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
