/**
 * Chained plugins that are executed, run again by themselves: DEL with what the whole chain gave, ADD
 * with what the plugin before gave. The interface, which the first plugin made, is left alone.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { writeCache } from "./cache.ts";
import { addExecuted, delExecuted } from "./executed.ts";
import type { MadeAttachment, PluginHost, RecordedPlugin } from "./plan.ts";
import { type Finding, withResults } from "./runtime.ts";
import type { PluginConfig, Result } from "./types.ts";

/** What one plugin's being run again is. */
export interface Rerun {
  /** The configurations that it may have run with, each for a DEL. */
  readonly del: readonly PluginConfig[];
  /** The one it is to have. */
  readonly add: PluginConfig;
}

/** Where plugins are run again. */
export interface RerunEnvironment {
  readonly host: PluginHost;
  /** The namespace's path. */
  readonly netns: string;
}

/** Whether a plugin can be run again by itself: the first one makes the interface. */
export function canRerun({ plugins }: Pick<MadeAttachment, "plugins">, index: number): boolean {
  return index > 0 && plugins[index]?.implementation === "exec";
}

/**
 * Runs plugins of a chain again. One that gives something else than it did has those behind it run
 * again too, with that.
 *
 * @param reruns by their places in the chain
 * @returns the attachment as it is now
 * @throws {CniError} when a plugin fails
 * @throws {TapkitError} when the guest's addresses, MAC or routes would be others now
 */
export async function rerunPlugins(
  attachment: MadeAttachment,
  reruns: ReadonlyMap<number, Rerun>,
  { host, netns }: RerunEnvironment,
): Promise<MadeAttachment> {
  const { plugins, result } = attachment;
  const recorded = (index: number) => plugins[index]?.prevResult ?? result;
  const got: (Result | undefined)[] = [];
  const now: RecordedPlugin[] = [];
  let last: Result | undefined;
  for (const [index, plugin] of plugins.entries()) {
    const { inDoubt: _, ...settled } = plugin;
    got.push(last);
    const rerun = reruns.get(index) ??
      (last === undefined || isSame(last, recorded(index))
        ? undefined
        : { del: [plugin.config], add: plugin.config });
    if (rerun === undefined) {
      now.push(plugin);
      last = recorded(index + 1);
      continue;
    }
    if (!canRerun(attachment, index)) {
      throw new TapkitError(`plugin "${plugin.type}" cannot be run again by itself`);
    }
    const executed = { attachment, plugin, host, netns };
    for (const config of rerun.del) {
      await delExecuted({ ...executed, plugin: { ...plugin, config } }, result);
    }
    now.push({ ...settled, config: rerun.add });
    last = await addExecuted({ ...executed, plugin: { ...plugin, config: rerun.add } }, last);
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

/**
 * Remembers of plugins that were just added what CHECK says of them: that tells nothing from then
 * on. Where that is news, `note` gets it.
 *
 * @param places of the plugins in the chain
 */
export function rememberFailures<Attachment extends Pick<MadeAttachment, "plugins" | "network">>(
  attachment: Attachment,
  places: Iterable<number>,
  findings: readonly Finding[],
  note: (text: string) => void,
): Attachment {
  const plugins = [...attachment.plugins];
  for (const place of places) {
    const { checkFailure: before, ...plugin } = plugins[place]!;
    const found = findings.find(({ executed }) => executed === place)?.problem;
    plugins[place] = found === undefined ? plugin : { ...plugin, checkFailure: found };
    if (found === undefined || before !== undefined) continue;
    note(
      `warning: ${found}: it says so right after its ADD, so that counts for nothing from now on: ` +
        `set "disableCheck": true in network "${attachment.network}" to have it not asked at all`,
    );
  }
  return { ...attachment, plugins };
}

/** Of a result what the guest is told. */
function ofGuest({ interfaces, ips, routes, dns }: Result): unknown {
  return [interfaces.filter(({ sandbox = "" }) => sandbox !== ""), ips, routes, dns];
}

function isSame(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
