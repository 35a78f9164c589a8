/**
 * The configuration of the `bridge` plugin.
 *
 * @module
 */

import { specialUse } from "../../inet/ip.ts";
import { formatMac, parseMac } from "../../inet/mac.ts";
import { linkNameProblem, malformedLinkName } from "../conflist.ts";
import { unknownKey } from "../plugin.ts";
import { misconfigured, type PluginConfig } from "../types.ts";
import { type HostLocalConfig, parseHostLocal, supportsHostLocal } from "./host-local-config.ts";

const DEFAULT_BRIDGE = "cni0";
const KEYS = [
  "bridge",
  "isGateway",
  "isDefaultGateway",
  "forceAddress",
  "ipMasq",
  "ipMasqBackend",
  "mtu",
  "hairpinMode",
  "promiscMode",
  "vlan",
  "vlanTrunk",
  "preserveDefaultVlan",
  "macspoofchk",
  "enabledad",
  "disableContainerInterface",
  "portIsolation",
  "ipam",
];

/** The plugin's configuration, parsed. */
export interface BridgeConfig {
  readonly bridge: string;
  /** The bridge carries the gateway's address. Implied by `isDefaultGateway`. */
  readonly isGateway: boolean;
  readonly isDefaultGateway: boolean;
  readonly forceAddress: boolean;
  readonly ipMasq: boolean;
  /** In bytes; if absent, that of the host's default route. */
  readonly mtu?: number;
  readonly promiscMode: boolean;
  readonly enabledad: boolean;
  readonly disableContainerInterface: boolean;
  readonly portIsolation: boolean;
  /** The MAC asked for. */
  readonly mac?: string;
  /** Absent for a network of layer 2 only. */
  readonly ipam?: HostLocalConfig;
}

/** True, or which key the built-in plugin cannot honour. */
export function supportsBridge(conf: PluginConfig): true | string {
  const unknown = unknownKey(conf, KEYS);
  if (unknown !== undefined) return unknown;
  if (typeof conf.vlan === "number" && conf.vlan !== 0) return "vlan";
  if (Array.isArray(conf.vlanTrunk) && conf.vlanTrunk.length > 0) return "vlanTrunk";
  if (conf.macspoofchk === true) return "macspoofchk";
  if (conf.ipMasqBackend === "iptables") return "ipMasqBackend";
  const type = conf.ipam?.type ?? "";
  if (type === "") return true;
  return type === "host-local" ? supportsHostLocal(conf) : "ipam.type";
}

/**
 * Reads the configuration, with the MAC of CNI_ARGS (`MAC`), `args.cni.mac` or `runtimeConfig.mac`,
 * the later winning.
 *
 * @throws {CniError} for a malformed configuration
 * @throws {InputError} for a MAC or an address that cannot be honoured
 */
export function parseBridge(
  conf: PluginConfig,
  cniArgs: Readonly<Record<string, string>>,
): BridgeConfig {
  const flag = (key: string): boolean => {
    const value = conf[key];
    if (value === undefined || typeof value === "boolean") return value ?? false;
    return fail(conf, `"${key}" that is neither true nor false`);
  };
  const bridge = conf.bridge ?? DEFAULT_BRIDGE;
  if (typeof bridge !== "string") return fail(conf, `"bridge" that is not a name`);
  const malformed = malformedLinkName(bridge);
  if (malformed !== undefined) {
    return fail(conf, `the bridge "${bridge}", a name that ${malformed}`);
  }
  const { mtu = 0 } = conf;
  if (typeof mtu !== "number" || !Number.isInteger(mtu) || mtu < 0) {
    return fail(conf, `"mtu" ${JSON.stringify(mtu)}`);
  }
  const ipam = layer3Ipam(conf, cniArgs);
  if (mtu !== 0 && mtu < leastMtu(ipam)) {
    return fail(conf, `"mtu" ${mtu}, which is too small for its IPv6 range`);
  }
  if (flag("hairpinMode") && flag("promiscMode")) {
    return fail(conf, `both "hairpinMode" and "promiscMode", which exclude each other`);
  }
  const disableContainerInterface = flag("disableContainerInterface");
  if (ipam !== undefined && disableContainerInterface) {
    return fail(conf, `"disableContainerInterface" and "ipam", which exclude each other`);
  }
  const mac = conf.runtimeConfig?.mac || conf.args?.cni?.mac || cniArgs.MAC;
  return {
    bridge,
    isGateway: flag("isGateway") || flag("isDefaultGateway"),
    isDefaultGateway: flag("isDefaultGateway"),
    forceAddress: flag("forceAddress"),
    ipMasq: flag("ipMasq"),
    promiscMode: flag("promiscMode"),
    enabledad: flag("enabledad"),
    disableContainerInterface,
    portIsolation: flag("portIsolation"),
    ...(mtu === 0 ? {} : { mtu }),
    ...(mac ? { mac: formatMac(parseMac(String(mac))) } : {}),
    ...(ipam === undefined ? {} : { ipam }),
  };
}

/**
 * Refuses a configuration that can be read but not used. It is not called for what is attached
 * already, which has to be removed all the same.
 *
 * @throws {CniError} naming it
 */
export function refuseUnusable(conf: PluginConfig, { bridge, ipam }: BridgeConfig): void {
  const problem = linkNameProblem(bridge);
  if (problem !== undefined) fail(conf, `the bridge "${bridge}", a name that ${problem}`);
  for (const { subnet } of ipam?.rangeSets.flat() ?? []) {
    const special = specialUse(subnet);
    if (special === undefined) continue;
    fail(conf, `the subnet ${subnet.network}/${subnet.prefixLength}, which has ${special}`);
  }
}

function layer3Ipam(conf: PluginConfig, cniArgs: Readonly<Record<string, string>>) {
  return (conf.ipam?.type ?? "") === "" ? undefined : parseHostLocal(conf, cniArgs);
}

/** Whether the network has IPv6. */
export function hasIpv6(ipam: HostLocalConfig | undefined): boolean {
  return ipam?.rangeSets.some((set) => set[0]!.subnet.family === 6) ?? false;
}

/** The smallest MTU that the network's families work with (RFC 791, RFC 8200). */
export function leastMtu(ipam: HostLocalConfig | undefined): number {
  return hasIpv6(ipam) ? 1280 : 68;
}

function fail(conf: PluginConfig, what: string): never {
  throw misconfigured("bridge", `network "${conf.name}" has ${what}`);
}
