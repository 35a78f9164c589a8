/**
 * The verbs of plugins that are executed, on an attachment's recorded configuration.
 *
 * They are given what libcni gives: the configuration with name, version, capability arguments and
 * the previous result, in the version of the list.
 *
 * @module
 */

import { asError, describe, TapkitError } from "../errors.ts";
import type { Finding } from "../finding.ts";
import { listAddresses } from "../netlink/address.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { getLink } from "../netlink/link.ts";
import { formatResult, isAtLeast, parseResult } from "./convert.ts";
import { callPlugin, type PluginCall } from "./exec.ts";
import type { NetworkAttachment, PluginHost, RecordedPlugin } from "./plan.ts";
import {
  CNI_VERSIONS,
  CniCode,
  CniError,
  type NetworkConfigList,
  type PluginConfig,
  type Result,
} from "./types.ts";

/** A plugin of an attachment, and where it is executed. */
export interface ExecutedPlugin {
  readonly attachment: NetworkAttachment;
  readonly plugin: RecordedPlugin;
  readonly host: PluginHost;
  /** The namespace's path; empty when it is gone. */
  readonly netns: string;
}

/**
 * Runs ADD and returns the result in the shape of spec 1.0.0.
 *
 * @throws {CniError} when the plugin fails, or prints something else than a result
 */
export async function addExecuted(executed: ExecutedPlugin, prevResult?: Result): Promise<Result> {
  const { plugin } = executed;
  const printed = await call(executed, "ADD", prevResult).catch(async (error) => {
    throw await withKnownVersions(executed, error);
  });
  try {
    return parseResult(JSON.parse(printed), versionOf(plugin.config));
  } catch (cause) {
    const reason = cause instanceof TypeError
      ? cause.message
      : `what it printed is not JSON: ${printed.trim().slice(0, 200) || "nothing"}`;
    throw new CniError(`ADD gave no usable result: ${reason}`, {
      plugin: plugin.type,
      code: CniCode.DECODING_FAILURE,
    }, { mend: "install a plugin that keeps to the CNI specification", cause });
  }
}

/** How Weave Net's plugin refuses DEL where nothing is there any more, in some of its versions. */
const NOTHING_THERE = /Delete: no addresses for /;

/**
 * Runs DEL, without the previous result in spec versions before 0.4.0.
 */
export async function delExecuted(executed: ExecutedPlugin, prevResult?: Result): Promise<void> {
  const isKnown = isAtLeast(versionOf(executed.plugin.config), "0.4.0");
  try {
    await call(executed, "DEL", isKnown ? prevResult : undefined);
  } catch (error) {
    if (!(error instanceof CniError) || !NOTHING_THERE.test(error.message)) throw error;
  }
}

/** A result made from the interface in the namespace; undefined if there is none. */
export function seenResult(
  ifName: string,
  { vmNl, netnsPath }: { readonly vmNl: NetlinkConnection; readonly netnsPath: string },
): Result | undefined {
  const link = getLink(vmNl, ifName);
  if (link === undefined) return undefined;
  const { name, index, mac } = link;
  return {
    cniVersion: CNI_VERSIONS.at(-1)!,
    interfaces: [{ name, ...mac === undefined ? {} : { mac }, sandbox: netnsPath }],
    ips: listAddresses(vmNl, { index }).filter(({ scope }) => scope === "global")
      .map(({ address }) => ({ address, interface: 0 })),
    routes: [],
    dns: {},
  };
}

/** Whether a plugin has CHECK, which came with spec version 0.4.0. */
export function hasCheck(
  { disableCheck = false }: { readonly disableCheck?: boolean },
  { config }: Pick<RecordedPlugin, "config">,
): boolean {
  return !disableCheck && isAtLeast(versionOf(config), "0.4.0");
}

/** Runs CHECK, if the plugin has it; returns what it finds. */
export async function checkExecuted(
  executed: ExecutedPlugin,
  result: Result,
): Promise<Finding | undefined> {
  if (!hasCheck(executed.attachment, executed.plugin)) return undefined;
  try {
    await call(executed, "CHECK", result);
    return undefined;
  } catch (error) {
    if (!(error instanceof CniError)) throw error;
    const object = `${error.plugin}:`;
    return { object, problem: error.message.slice(`${object} `.length) };
  }
}

/** An attachment that is not to be collected. */
export interface ValidAttachment {
  readonly containerID: string;
  readonly ifname: string;
}

/** Runs GC of a network's plugins (spec 1.1), which removes all but these attachments. */
export async function gcNetwork(
  list: NetworkConfigList,
  host: PluginHost,
  valid: readonly ValidAttachment[],
): Promise<Error[]> {
  if (list.disableGC || !isAtLeast(list.cniVersion, "1.1.0")) return [];
  const failures: Error[] = [];
  for (const conf of list.plugins) {
    const { name, cniVersion } = list;
    // libcni gives both names; an older text of the specification had the second.
    const attachments = { "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid };
    const config = { ...conf, name, cniVersion, ...attachments };
    try {
      await callPlugin({ verb: "GC", type: conf.type, config, host });
    } catch (error) {
      failures.push(asError(error));
    }
  }
  return failures;
}

/**
 * Asks a network's plugins whether they can add an attachment (STATUS of spec 1.1).
 *
 * @throws {TapkitError} when one says that it cannot
 */
export async function requireReady(
  { network, plugins }: NetworkAttachment,
  host: PluginHost,
): Promise<void> {
  for (const { type, config, implementation } of plugins) {
    if (implementation !== "exec" || !isAtLeast(versionOf(config), "1.1.0")) continue;
    const { runtimeConfig: _, ...status } = config;
    try {
      await callPlugin({ verb: "STATUS", type, config: status, host });
    } catch (error) {
      const limited = error instanceof CniError &&
        error.code === CniCode.PLUGIN_NOT_AVAILABLE_LIMITED_CONNECTIVITY;
      if (limited) continue;
      throw new TapkitError(`network "${network}" is not ready: ${describe(error)}`, {
        mend: "try again when it is",
        cause: error,
      });
    }
  }
}

function call(
  { attachment, plugin, host, netns }: ExecutedPlugin,
  verb: PluginCall["verb"],
  prevResult?: Result,
): Promise<string> {
  const { containerId, ifName, cniArgs } = attachment;
  const { type, config } = plugin;
  return callPlugin({
    verb,
    type,
    config: {
      ...config,
      ...prevResult === undefined
        ? {}
        : { prevResult: formatResult(prevResult, versionOf(config)) },
    },
    host,
    containerId,
    netns,
    ifName,
    cniArgs,
  });
}

function versionOf({ cniVersion }: PluginConfig): string {
  return cniVersion ?? "0.1.0";
}

/** Adds to the refusal of a configuration's version which versions the plugin knows. */
async function withKnownVersions({ plugin, host }: ExecutedPlugin, error: unknown) {
  if (!(error instanceof CniError) || error.code !== CniCode.INCOMPATIBLE_CNI_VERSION) return error;
  const { type, config } = plugin;
  try {
    const version = { cniVersion: versionOf(config) };
    const printed = await callPlugin({ verb: "VERSION", type, config: version, host });
    const { supportedVersions } = JSON.parse(printed);
    return new CniError(error.message.slice(`${type}: `.length), error, {
      mend: `write one of ${supportedVersions.join(", ")} as cniVersion into the configuration, ` +
        "or install a newer plugin",
      cause: error,
    });
  } catch {
    return error;
  }
}
