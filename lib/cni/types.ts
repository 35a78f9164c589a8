/**
 * The words of the CNI specification: network configurations, results, errors.
 *
 * Results have the shape of spec 1.0.0 throughout; conversion belongs to the edge where an executed
 * plugin of another version is spoken to.
 *
 * @see https://www.cni.dev/docs/spec/
 * @module
 */

import { InputError, TapkitError, type TapkitErrorOptions } from "../errors.ts";

/** The specification versions understood, oldest first. */
export const CNI_VERSIONS: readonly string[] = [
  "0.1.0",
  "0.2.0",
  "0.3.0",
  "0.3.1",
  "0.4.0",
  "1.0.0",
  "1.1.0",
];

/** The grammar of network names and container ids. */
export const IDENTIFIER = /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/;
export const IDENTIFIER_MEND =
  "start with a letter or digit, then use letters, digits, '_', '.' and '-'";

/** Checks a container id by the specification's grammar. */
export function validateContainerId(id: string): void {
  validateIdentifier("container id", id);
}

/** Checks a network's name by the specification's grammar. */
export function validateNetworkName(name: string): void {
  validateIdentifier("network name", name);
}

function validateIdentifier(what: string, text: string): void {
  if (IDENTIFIER.test(text)) return;
  throw new InputError(`${what} "${text}" is malformed`, { mend: IDENTIFIER_MEND });
}

/** DNS settings for the interface's user. */
export interface Dns {
  readonly nameservers?: readonly string[];
  readonly domain?: string;
  readonly search?: readonly string[];
  readonly options?: readonly string[];
}

/** A route of a result or of an IPAM configuration. */
export interface RouteConfig {
  /** Destination with prefix length: `"0.0.0.0/0"`. */
  readonly dst: string;
  /** Next hop; without one the interface's gateway of the family is taken. */
  readonly gw?: string;
  /** Path MTU in bytes (spec 1.1). */
  readonly mtu?: number;
  /** Metric, lower wins (spec 1.1). */
  readonly priority?: number;
}

/** An address of a result. */
export interface IpConfig {
  /** `"172.18.0.2/16"`. */
  readonly address: string;
  readonly gateway?: string;
  /** Index into the result's interfaces. */
  readonly interface?: number;
}

/** A link of a result, in the host or, with a sandbox, in the namespace. */
export interface Interface {
  readonly name: string;
  readonly mac?: string;
  readonly sandbox?: string;
}

/** What ADD gives, in the shape of spec 1.0.0. */
export interface Result {
  readonly cniVersion: string;
  readonly interfaces: readonly Interface[];
  readonly ips: readonly IpConfig[];
  readonly routes: readonly RouteConfig[];
  readonly dns: Dns;
}

/** One port mapping as the `portMappings` capability carries it. */
export interface CapabilityPortMapping {
  readonly hostPort: number;
  readonly containerPort: number;
  readonly protocol?: string;
  readonly hostIP?: string;
}

/** What the runtime passes to plugins that declare the capability of the same name. */
export interface RuntimeConfig {
  readonly portMappings?: readonly CapabilityPortMapping[];
  /** Wanted addresses, with or without prefix length. */
  readonly ips?: readonly string[];
  readonly mac?: string;
  readonly [capability: string]: unknown;
}

/** The IPAM part of a plugin's configuration. */
export interface IpamConfig {
  readonly type?: string;
  readonly [key: string]: unknown;
}

/** One plugin's configuration, as written plus what the runtime injects. */
export interface PluginConfig {
  readonly type: string;
  readonly name?: string;
  readonly cniVersion?: string;
  readonly capabilities?: Readonly<Record<string, boolean>>;
  readonly runtimeConfig?: RuntimeConfig;
  readonly args?: { readonly cni?: Readonly<Record<string, unknown>> };
  readonly ipam?: IpamConfig;
  readonly dns?: Dns;
  readonly prevResult?: Result;
  readonly [key: string]: unknown;
}

/** A network: the chain of plugins of one configuration file. */
export interface NetworkConfigList {
  readonly name: string;
  readonly cniVersion: string;
  readonly plugins: readonly PluginConfig[];
  readonly disableCheck: boolean;
  readonly disableGC: boolean;
  /** The file it came from. */
  readonly path?: string;
  /** tapkit's own key: the subnet was installed with `--force` over something it overlaps. */
  readonly allowOverlap?: boolean;
}

/** Error codes of the specification, and those the reference plugins add. */
export const CniCode = {
  INCOMPATIBLE_CNI_VERSION: 1,
  UNSUPPORTED_FIELD: 2,
  UNKNOWN_CONTAINER: 3,
  INVALID_ENVIRONMENT_VARIABLES: 4,
  IO_FAILURE: 5,
  DECODING_FAILURE: 6,
  INVALID_NETWORK_CONFIG: 7,
  TRY_AGAIN_LATER: 11,
  PLUGIN_NOT_AVAILABLE: 50,
  PLUGIN_NOT_AVAILABLE_LIMITED_CONNECTIVITY: 51,
  INTERNAL: 999,
} as const;

/** What identifies a plugin's failure. */
export interface CniFailure {
  /** The plugin's type: `"host-local"`. */
  readonly plugin: string;
  /** A value of {@linkcode CniCode}, or a plugin's own from 100 on. */
  readonly code: number;
  /** Whether the plugin ended by itself and said so; unless it is, it was killed or never ran. */
  readonly refused?: boolean;
  /** Whether something of the attachment is there already, so that only DEL makes room for ADD. */
  readonly taken?: boolean;
}

/** A plugin of a chain failed. */
export class CniError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "CniError";
  /** The plugin's type: `"host-local"`. */
  readonly plugin: string;
  /** An error code of the CNI specification, or a plugin's own from 100 on. */
  readonly code: number;
  /** Whether the plugin ended by itself and said so; unless it did, it was killed or never ran. */
  readonly refused: boolean;
  /** Whether something of the attachment is there already, so that only DEL makes room for ADD. */
  readonly taken: boolean;

  /** An error whose message names the plugin first. */
  constructor(message: string, failure: CniFailure, options: TapkitErrorOptions = {}) {
    super(`${failure.plugin}: ${message}`, options);
    this.plugin = failure.plugin;
    this.code = failure.code;
    this.refused = failure.refused ?? false;
    this.taken = failure.taken ?? false;
  }
}

/** A requested address, or the attachment itself, has its address already. */
export class AddressHeldError extends CniError {
  /** The class's name. */
  override readonly name: string = "AddressHeldError";
  /** The address, without a prefix length. */
  readonly address: string;
  /** Who has it: a container's id, and the interface, `""` if it is not known. */
  readonly holder: { readonly containerId: string; readonly ifName: string };

  /** An error of the plugin `host-local`. */
  constructor(message: string, address: string, holder: AddressHeldError["holder"], mend: string) {
    super(message, { plugin: "host-local", code: CniCode.INVALID_NETWORK_CONFIG }, { mend });
    this.address = address;
    this.holder = holder;
  }
}

/** The error for a configuration that a built-in plugin cannot work with. */
export function misconfigured(
  plugin: string,
  message: string,
  mend = "correct the network's configuration file",
): CniError {
  return new CniError(message, { plugin, code: CniCode.INVALID_NETWORK_CONFIG }, { mend });
}
