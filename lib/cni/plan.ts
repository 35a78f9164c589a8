/**
 * Planning an attachment: each plugin's complete configuration, and whether it runs built in or is
 * executed. Nothing is touched.
 *
 * @module
 */

import { InputError, TapkitError } from "../errors.ts";
import { isFile } from "../files.ts";
import type { Finding } from "../finding.ts";
import { expandPorts, type PortMapping } from "../inet/ports.ts";
import { validateInterfaceName } from "./conflist.ts";
import type { BuiltinPlugin } from "./plugin.ts";
import { bridge } from "./plugins/bridge.ts";
import { firewall } from "./plugins/firewall.ts";
import { loopback } from "./plugins/loopback.ts";
import { portmap } from "./plugins/portmap.ts";
import {
  type CapabilityPortMapping,
  type NetworkConfigList,
  type PluginConfig,
  type Result,
  type RuntimeConfig,
  validateContainerId,
  validateNetworkName,
} from "./types.ts";

const BUILTIN: Readonly<Record<string, BuiltinPlugin>> = { bridge, firewall, loopback, portmap };

/** A plugin of a chain as it ran. */
export interface RecordedPlugin {
  readonly type: string;
  readonly implementation: "builtin" | "exec";
  /** Its configuration, with what the runtime injected. */
  readonly config: PluginConfig;
  /** What ADD got from the plugin before, if it differs from the result of the chain. */
  readonly prevResult?: Result;
  /** What CHECK said right after ADD. The same words later are not a difference. */
  readonly checkFailure?: string;
}

/** An interface on a network, as planned and, with a result, as made. Plain data: it is recorded. */
export interface NetworkAttachment {
  readonly network: string;
  readonly containerId: string;
  readonly ifName: string;
  readonly cniArgs: Readonly<Record<string, string>>;
  readonly plugins: readonly RecordedPlugin[];
  /** The configuration forbids CHECK. */
  readonly disableCheck?: true;
  /** In which families executed plugins masquerade: see reference-faults.ts. */
  readonly masquerade?: readonly string[];
  /** What was seen of the interface that executed plugins made. */
  readonly seen?: SeenLink;
  /** What ADD returned; absent until it succeeded. */
  readonly result?: Result;
}

/** What can be seen of an interface without its plugins. Plain data. */
export interface SeenLink {
  /** The host's end of its veth pair. */
  readonly hostEnd?: {
    readonly name: string;
    readonly mac?: string;
    /** Bytes. */
    readonly mtu: number;
    /** The link that it is a port of. */
    readonly master?: string;
    readonly hairpin?: true;
  };
  /** Its routes, except those to its own prefixes. */
  readonly routes: readonly { readonly dst: string; readonly gw?: string }[];
}

/** An attachment that has been made. */
export type MadeAttachment = NetworkAttachment & { readonly result: Result };

/** What is wanted of a network. */
export interface NetworkRequest {
  readonly list: NetworkConfigList;
  readonly containerId: string;
  /** `"eth0"`. */
  readonly ifName: string;
  /**
   * By capability. Networks that do not declare `ips` or `mac` get them by the `args` convention;
   * port mappings need a plugin that declares them.
   */
  readonly runtimeConfig?: RuntimeConfig;
  /** CNI_ARGS that are wanted. */
  readonly cniArgs?: Readonly<Record<string, string>>;
  /** Which plugins are executed; by default none. */
  readonly choice?: PluginChoice;
}

/** Which plugins are executed, and which run built in. */
export interface PluginChoice {
  /**
   * `builtin` executes none, `exec` all. `auto` takes built-in ones for tapkit's default network and
   * where a program is missing; otherwise it executes them.
   */
  readonly mode: "auto" | "builtin" | "exec";
  /** Whether the network is tapkit's default one. */
  readonly isDefault: boolean;
  readonly host: PluginHost;
}

/** What executing plugins needs of the host. */
export interface PluginHost {
  /** The directories that are searched for programs, in this order. */
  readonly binDirs: readonly string[];
  /** The state directory; results are kept there: see cache.ts. */
  readonly stateDir: string;
  /** How long one may take, in milliseconds. */
  readonly timeoutMs?: number;
  /** Ends a plugin when it is raised; DEL gets some seconds more. */
  readonly signal?: AbortSignal;
  /** Gets a line when a plugin is slow. */
  note?(text: string): void;
  /** Gets the full text of a message that was shortened. */
  detail?(text: string): void;
}

/** What CHECK of a chain found. */
export interface ChainFinding extends Finding {
  /** The place in the chain of the executed plugin that found it. */
  readonly executed?: number;
  /** It is about masquerading, which no plugin checks: see reference-faults.ts. */
  readonly masquerade?: true;
  /** The built-in plugin can bring it back while the guest runs. */
  readonly live?: true;
  /** The plugin said so right after ADD: it is not a difference. */
  readonly ignored?: true;
}

/** Does what runs a program of others without the locks that are held. */
export type Outside = <T>(act: () => Promise<T>) => Promise<T>;

/** The path of a plugin's program in the first directory that has it. */
export function findPlugin(type: string, binDirs: readonly string[]): string | undefined {
  // A type must not lead out of the directories.
  if (type === "" || type.includes("/") || type === "..") return undefined;
  return binDirs.map((directory) => `${directory}/${type}`).find(isFile);
}

/** The first plugin that is not built in, or the key that its built-in version lacks. */
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
 * @throws {TapkitError} for a plugin that can neither run built in nor be executed, or is
 * misconfigured
 */
export function planNetwork(request: NetworkRequest): NetworkAttachment {
  const { list, containerId, ifName, runtimeConfig = {} } = request;
  validateContainerId(containerId);
  validateNetworkName(list.name);
  validateInterfaceName(ifName);
  const executed = chooseExecuted(list, request.choice);
  if ((runtimeConfig.portMappings?.length ?? 0) > 0 && !declares(list, "portMappings")) {
    throw new InputError(`network "${list.name}" cannot publish ports`, {
      mend: `add {"type": "portmap", "capabilities": {"portMappings": true}} to ` +
        `${list.path ?? "its configuration"}, or leave the ports out`,
    });
  }
  const undeclared: Record<string, unknown> = {};
  for (const key of ["ips", "mac"]) {
    const wanted = runtimeConfig[key];
    if (wanted === undefined || (Array.isArray(wanted) && wanted.length === 0)) continue;
    if (!declares(list, key)) undeclared[key] = wanted;
  }
  const cniArgs = argsOf(executed.includes(true) ? undeclared : {}, request.cniArgs);
  const plugins = list.plugins.map((conf, index): RecordedPlugin => {
    const config = inject(list, conf, runtimeConfig, index === 0 ? undeclared : {});
    if (executed[index]) return { type: conf.type, implementation: "exec", config };
    builtinPlugin(conf.type)!.validate(config, cniArgs);
    return { type: conf.type, implementation: "builtin", config };
  });
  const disableCheck = list.disableCheck ? { disableCheck: true as const } : {};
  return { network: list.name, containerId, ifName, cniArgs, plugins, ...disableCheck };
}

/**
 * For each plugin of a list, whether it is executed.
 *
 * @throws {TapkitError} for one that can neither run built in nor be executed
 */
export function chooseExecuted(list: NetworkConfigList, choice?: PluginChoice): boolean[] {
  const { plugins } = list;
  const unsupported = findUnsupported(list);
  if (choice === undefined || choice.mode === "builtin") {
    if (unsupported === undefined) return plugins.map(() => false);
    const { type, key } = unsupported;
    const what = key === undefined ? `plugin "${type}"` : `key "${key}" of plugin "${type}"`;
    throw new TapkitError(`network "${list.name}" needs the ${what}, which is not built in`, {
      mend: `change ${list.path ?? "its configuration"}, or choose another network` +
        (choice === undefined ? "" : ", or leave out --plugins builtin"),
    });
  }
  const { mode, isDefault, host } = choice;
  const missing = (conf: PluginConfig) =>
    [conf.type, conf.ipam?.type].find((type) =>
      typeof type === "string" && type !== "" && findPlugin(type, host.binDirs) === undefined
    );
  if (mode === "auto" && unsupported === undefined) {
    // tapkit's own network needs no search for programs.
    if (isDefault || plugins.some((conf) => missing(conf) !== undefined)) {
      return plugins.map(() => false);
    }
  }
  return plugins.map((conf) => {
    const type = missing(conf);
    if (type === undefined) return true;
    if (mode === "auto" && builtinPlugin(conf.type)?.supports(conf) === true) return false;
    throw new TapkitError(
      `network "${list.name}" needs the plugin "${type}", which is in none of ` +
        host.binDirs.join(", "),
      { mend: "install it there, or say where it is with --cni-bin-dir" },
    );
  });
}

/** Whether a plugin of the network declares a capability. */
export function declares({ plugins }: NetworkConfigList, capability: string): boolean {
  return plugins.some(({ capabilities }) => capabilities?.[capability] === true);
}

/** Who publishes the ports of an attachment: tapkit's firewall, or a plugin that is executed. */
export function publisherOf(attachment: Pick<NetworkAttachment, "plugins">): "tapkit" | "plugin" {
  return attachment.plugins.some(isPublisher) ? "plugin" : "tapkit";
}

/** Whether a plugin is executed and publishes ports. */
function isPublisher({ implementation, config }: RecordedPlugin): boolean {
  return implementation === "exec" && config.capabilities?.portMappings === true;
}

/**
 * The attachment with other ports in the configuration of the plugins that publish them. Where
 * tapkit publishes, it is the same attachment.
 */
export function withPorts(
  attachment: NetworkAttachment,
  ports: readonly PortMapping[],
): NetworkAttachment {
  if (publisherOf(attachment) === "tapkit") return attachment;
  const plugins = attachment.plugins.map((plugin): RecordedPlugin => {
    if (!isPublisher(plugin)) return plugin;
    const { runtimeConfig: had, ...config } = plugin.config;
    const { portMappings: _, ...others } = had ?? {};
    const runtimeConfig = ports.length === 0
      ? others
      : { ...had, portMappings: portMappings(ports) };
    if (Object.keys(runtimeConfig).length === 0) return { ...plugin, config };
    return { ...plugin, config: { ...plugin.config, runtimeConfig } };
  });
  return { ...attachment, plugins };
}

/** Whether a plugin can be run again by itself: the first one makes the interface. */
export function canRerun({ plugins }: Pick<NetworkAttachment, "plugins">, index: number): boolean {
  return index > 0 && plugins[index]?.implementation === "exec";
}

/** Ports as the `portMappings` capability carries them: it has no ranges. */
export function portMappings(ports: readonly PortMapping[]): CapabilityPortMapping[] {
  return ports.flatMap(expandPorts).map(({ hostIP, hostPort, vmPort, protocol }) => ({
    hostPort,
    containerPort: vmPort,
    protocol,
    ...hostIP === "" ? {} : { hostIP },
  }));
}

/** CNI_ARGS: what is wanted, and the address and MAC for plugins that know no other way. */
function argsOf(
  { ips, mac }: Readonly<Record<string, unknown>>,
  wanted: Readonly<Record<string, string>> = {},
): Record<string, string> {
  const args = {
    ...wanted,
    ...Array.isArray(ips) && ips.length > 0 ? { IP: String(ips[0]).split("/", 1)[0]! } : {},
    ...typeof mac === "string" ? { MAC: mac } : {},
  };
  return Object.keys(args).length === 0 ? {} : { IgnoreUnknown: "1", ...args };
}

/** The built-in plugin of that name. */
export function builtinPlugin(type: string): BuiltinPlugin | undefined {
  return Object.hasOwn(BUILTIN, type) ? BUILTIN[type] : undefined;
}

/** Injects what libcni does: the list's name and version, and the declared capabilities. */
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
