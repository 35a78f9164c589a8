/**
 * Attaching to a network: its chain of plugins, run forward for ADD and backward for DEL.
 *
 * Planning is separate from doing: a plan is validated and complete before the first effect, so that
 * the caller can record what is about to be made. What the record keeps is all that DEL and CHECK
 * need: they go by the configuration that ran, not by what the file says by then.
 *
 * @module
 */

import { InputError, TapkitError } from "../errors.ts";
import type { GuestRules } from "../firewall/model.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import type { Netns } from "../sys/netns.ts";
import type { UndoStack } from "../undo.ts";
import { validateContainerId, validateInterfaceName, validateNetworkName } from "./conflist.ts";
import type { BuiltinPlugin, GuestContribution } from "./plugin.ts";
import { bridge } from "./plugins/bridge.ts";
import { firewall } from "./plugins/firewall.ts";
import { loopback } from "./plugins/loopback.ts";
import { portmap } from "./plugins/portmap.ts";
import type { NetworkConfigList, PluginConfig, Result, RuntimeConfig } from "./types.ts";

const BUILTIN: Readonly<Record<string, BuiltinPlugin>> = { bridge, firewall, loopback, portmap };

/** A plugin of a chain as it ran. */
export interface RecordedPlugin {
  readonly type: string;
  readonly implementation: "builtin";
  /** Its configuration, with what the runtime injected. */
  readonly config: PluginConfig;
}

/** An interface on a network, as planned and, with a result, as made. Plain data: it is recorded. */
export interface NetworkAttachment {
  readonly network: string;
  readonly containerId: string;
  readonly ifName: string;
  readonly cniArgs: Readonly<Record<string, string>>;
  readonly plugins: readonly RecordedPlugin[];
  /** What ADD gave; absent until it succeeded. */
  readonly result?: Result;
}

/** What is wanted of a network. */
export interface NetworkRequest {
  readonly list: NetworkConfigList;
  readonly containerId: string;
  /** `"eth0"`. */
  readonly ifName: string;
  /**
   * By capability. Wanted `ips` and a `mac` reach networks that declare no such capability too, by
   * the `args` convention; port mappings need a plugin that declares them.
   */
  readonly runtimeConfig?: RuntimeConfig;
  readonly cniArgs?: Readonly<Record<string, string>>;
}

/** Where an attachment is made. */
export interface AddEnvironment {
  readonly netns: Netns;
  /** The namespace's path as results name it. */
  readonly netnsPath: string;
  /** Whether the namespace is tapkit's own, so that its settings may be changed. */
  readonly ownNetns: boolean;
  /** A connection of the calling thread's namespace, the host's. */
  readonly hostNl: NetlinkConnection;
  /** A connection of the VM's namespace. */
  readonly vmNl: NetlinkConnection;
  /** Gets the undo of every step; the caller unwinds it when anything fails. */
  readonly undo: UndoStack;
  /** Tag of the firewall rules: `"web/eth0"`. */
  readonly owner: string;
  /** In bytes; wins over the configuration. */
  readonly mtu?: number;
  /** Nothing of this attachment exists: its address is not looked for in the pool first. */
  readonly fresh?: boolean;
  note(text: string): void;
}

/** What DEL and CHECK work with; the namespace may be gone. */
export interface AttachmentEnvironment {
  readonly netnsPath: string;
  readonly hostNl: NetlinkConnection;
  readonly vmNl?: NetlinkConnection;
  note(text: string): void;
}

/** What ADD gives. */
export interface Added {
  /** To be recorded. */
  readonly attachment: NetworkAttachment & { readonly result: Result };
  readonly result: Result;
  /** What the firewall has to do for the guest; absent where the chain asks nothing of it. */
  readonly guest?: GuestRules;
}

/** Which plugin of a network, and which key of it, has no built-in implementation; else undefined. */
export function findUnsupported(
  list: NetworkConfigList,
): { readonly type: string; readonly key?: string } | undefined {
  for (const conf of list.plugins) {
    const { type } = conf;
    const plugin = builtinPlugin(type);
    if (plugin === undefined) return { type };
    const key = plugin.supports(conf);
    if (key !== true) return { type, key };
  }
  return undefined;
}

/**
 * Validates a request and completes the configuration of every plugin. Nothing is touched.
 *
 * @throws {InputError} for a name, an address or a port that cannot be honoured
 * @throws {TapkitError} for a chain that has no built-in implementation, or is misconfigured
 */
export function planNetwork(request: NetworkRequest): NetworkAttachment {
  const { list, containerId, ifName, runtimeConfig = {}, cniArgs = {} } = request;
  validateContainerId(containerId);
  validateNetworkName(list.name);
  validateInterfaceName(ifName);
  const unsupported = findUnsupported(list);
  if (unsupported !== undefined) {
    const { type, key } = unsupported;
    const what = key === undefined ? `plugin "${type}"` : `key "${key}" of plugin "${type}"`;
    throw new TapkitError(`network "${list.name}" needs the ${what}, which is not built in`, {
      mend: `change ${list.path ?? "its configuration"}, or choose another network`,
    });
  }
  const declares = (capability: string): boolean =>
    list.plugins.some(({ capabilities }) => capabilities?.[capability] === true);
  if ((runtimeConfig.portMappings?.length ?? 0) > 0 && !declares("portMappings")) {
    throw new InputError(`network "${list.name}" cannot publish ports`, {
      mend: `add {"type": "portmap", "capabilities": {"portMappings": true}} to ` +
        `${list.path ?? "its configuration"}, or leave the ports out`,
    });
  }
  const undeclared: Record<string, unknown> = {};
  for (const key of ["ips", "mac"]) {
    if (runtimeConfig[key] !== undefined && !declares(key)) undeclared[key] = runtimeConfig[key];
  }
  const plugins = list.plugins.map((conf, index): RecordedPlugin => {
    const config = inject(list, conf, runtimeConfig, index === 0 ? undeclared : {});
    builtinPlugin(conf.type)!.validate(config, cniArgs);
    return { type: conf.type, implementation: "builtin", config };
  });
  return { network: list.name, containerId, ifName, cniArgs, plugins };
}

/**
 * Attaches: runs the chain's ADD. On a failure the caller unwinds the undo stack.
 *
 * The caller holds the host's lock, and applies the firewall rules that are returned. A chain that
 * is built in altogether has run when this returns; so it is with DEL and CHECK.
 */
// deno-lint-ignore require-await -- executed plugins need it.
export async function addNetwork(
  attachment: NetworkAttachment,
  environment: AddEnvironment,
): Promise<Added> {
  const { owner, fresh = false, ...rest } = environment;
  const { containerId, ifName, cniArgs, network } = attachment;
  let result: Result | undefined;
  let guest: GuestContribution = {};
  for (const { type, config } of attachment.plugins) {
    const outcome = requirePlugin(type).add({
      ...rest,
      note: (text) => environment.note(text),
      containerId,
      ifName,
      cniArgs,
      fresh,
      conf: config,
      ...(result === undefined ? {} : { prevResult: result }),
    });
    result = outcome.result;
    guest = { ...guest, ...outcome.guest };
  }
  if (result === undefined) throw new TapkitError(`network "${network}" has no plugins`);
  const rules = completeRules(owner, guest);
  return {
    attachment: { ...attachment, result },
    result,
    ...(rules === undefined ? {} : { guest: rules }),
  };
}

/**
 * Detaches: runs the chain's DEL backward, past failures. What is not there is no failure.
 *
 * @returns what failed
 */
// deno-lint-ignore require-await -- executed plugins need it.
export async function delNetwork(
  attachment: NetworkAttachment,
  environment: AttachmentEnvironment,
): Promise<Error[]> {
  const failures: Error[] = [];
  for (const { type, config } of attachment.plugins.toReversed()) {
    try {
      requirePlugin(type).del(contextOf(attachment, environment, config));
    } catch (error) {
      failures.push(error instanceof Error ? error : new Error(String(error)));
    }
  }
  return failures;
}

/** What CHECK works with. */
export interface CheckEnvironment extends AttachmentEnvironment {
  /**
   * Whether address, MAC and routes of the interface were moved to the guest since: then they are
   * not looked for there.
   */
  readonly identityMoved?: boolean;
}

/** Compares what ADD made with what is there; returns the differences as sentences. */
// deno-lint-ignore require-await -- executed plugins need it.
export async function checkNetwork(
  attachment: NetworkAttachment,
  environment: CheckEnvironment,
): Promise<string[]> {
  const { result, network, ifName, plugins } = attachment;
  if (result === undefined) return [`"${ifName}" was never completely attached to "${network}"`];
  return plugins.flatMap(({ type, config }) =>
    requirePlugin(type).check({
      ...contextOf(attachment, environment, config),
      prevResult: result,
    })
  );
}

function builtinPlugin(type: string): BuiltinPlugin | undefined {
  return Object.hasOwn(BUILTIN, type) ? BUILTIN[type] : undefined;
}

function requirePlugin(type: string): BuiltinPlugin {
  const plugin = builtinPlugin(type);
  if (plugin !== undefined) return plugin;
  throw new TapkitError(`plugin "${type}" is not built in`, {
    mend: "use the version of tapkit that made the attachment",
  });
}

/** What libcni injects: the list's name and version, and what the plugin declares capable of. */
function inject(
  list: NetworkConfigList,
  conf: PluginConfig,
  runtimeConfig: RuntimeConfig,
  undeclared: Readonly<Record<string, unknown>>,
): PluginConfig {
  const declared = Object.fromEntries(
    Object.entries(runtimeConfig).filter(([key, value]) =>
      value !== undefined && conf.capabilities?.[key] === true
    ),
  );
  return {
    ...conf,
    name: list.name,
    cniVersion: list.cniVersion,
    ...(Object.keys(declared).length === 0 ? {} : { runtimeConfig: declared }),
    ...(Object.keys(undeclared).length === 0
      ? {}
      : { args: { ...conf.args, cni: { ...conf.args?.cni, ...undeclared } } }),
  };
}

function contextOf(
  attachment: NetworkAttachment,
  environment: AttachmentEnvironment,
  conf: PluginConfig,
) {
  const { containerId, ifName, cniArgs, result } = attachment;
  return {
    ...environment,
    note: (text: string) => environment.note(text),
    containerId,
    ifName,
    cniArgs,
    conf,
    ...(result === undefined ? {} : { prevResult: result }),
  };
}

function completeRules(owner: string, guest: GuestContribution): GuestRules | undefined {
  const { link = "", addresses = [], masquerade = false, forward = false, ports = [] } = guest;
  if (!masquerade && !forward && ports.length === 0) return undefined;
  return { owner, link, addresses, masquerade, forward, ports };
}
