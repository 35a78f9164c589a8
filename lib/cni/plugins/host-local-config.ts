/**
 * The configuration of the `host-local` IPAM plugin, as the reference plugin reads it.
 *
 * @module
 */

import { asError, InputError } from "../../errors.ts";
import {
  bigIntToIp,
  BITS,
  canonicalIp,
  type Cidr,
  cidrContains,
  cidrsOverlap,
  ipToBigInt,
  isIp,
  parseCidr,
} from "../../inet/ip.ts";
import { misconfigured, type PluginConfig, type RouteConfig } from "../types.ts";

/** Where the reference plugin keeps its reservations. */
export const DEFAULT_DATA_DIR = "/var/lib/cni/networks";

/** A run of addresses of one subnet. */
export interface Range {
  readonly subnet: Cidr;
  /** First and last address given out, as numbers. */
  readonly first: bigint;
  readonly last: bigint;
  readonly gateway: string;
}

/** What the plugin works by. */
export interface HostLocalConfig {
  readonly network: string;
  /** Where the network's reservations are. */
  readonly directory: string;
  /** One address is given of each set. */
  readonly rangeSets: readonly (readonly Range[])[];
  readonly routes: readonly RouteConfig[];
  readonly resolvConf?: string;
  /** Addresses asked for. */
  readonly requested: readonly string[];
}

const KEYS = [
  "type",
  "subnet",
  "rangeStart",
  "rangeEnd",
  "gateway",
  "ranges",
  "routes",
  "dataDir",
  "resolvConf",
];
const RANGE_KEYS = ["subnet", "rangeStart", "rangeEnd", "gateway"];
const ROUTE_KEYS = ["dst", "gw", "mtu", "priority"];

/** True, or which key of `ipam` is not known. */
export function supportsHostLocal(conf: PluginConfig): true | string {
  const ipam = conf.ipam ?? {};
  const unknown = Object.keys(ipam).find((key) => !KEYS.includes(key));
  if (unknown !== undefined) return `ipam.${unknown}`;
  for (const range of list(ipam.ranges).flatMap(list)) {
    const key = Object.keys(record(range)).find((key) => !RANGE_KEYS.includes(key));
    if (key !== undefined) return `ipam.ranges.${key}`;
  }
  for (const route of list(ipam.routes)) {
    const key = Object.keys(record(route)).find((key) => !ROUTE_KEYS.includes(key));
    if (key !== undefined) return `ipam.routes.${key}`;
  }
  return true;
}

/**
 * Reads a plugin's `ipam` section, with the addresses asked for in CNI_ARGS (`IP`), `args.cni.ips`
 * and `runtimeConfig.ips`, and the ranges in `runtimeConfig.ipRanges`.
 *
 * @throws {CniError} for a malformed configuration
 * @throws {InputError} for a requested address that no range gives out
 */
export function parseHostLocal(
  conf: PluginConfig,
  cniArgs: Readonly<Record<string, string>>,
): HostLocalConfig {
  const ipam = conf.ipam ?? {};
  const network = conf.name ?? "";
  const sets = [
    ...list(conf.runtimeConfig?.ipRanges),
    ...(ipam.subnet === undefined ? [] : [[ipam]]),
    ...list(ipam.ranges),
  ];
  if (sets.length === 0) return fail(network, `no "subnet" and no "ranges"`);
  const rangeSets = sets.map((set) => parseSet(network, set));
  refuseOverlaps(network, rangeSets.flat());
  const requested = [
    ...(cniArgs.IP === undefined ? [] : [cniArgs.IP]),
    ...list(conf.args?.cni?.ips),
    ...list(conf.runtimeConfig?.ips),
  ].map((ip) => requestedIp(network, ip, rangeSets));
  return {
    network,
    directory: `${text(network, "dataDir", ipam.dataDir) ?? DEFAULT_DATA_DIR}/${network}`,
    rangeSets,
    routes: list(ipam.routes).map((route) => parseRoute(network, record(route))),
    ...optional("resolvConf", text(network, "resolvConf", ipam.resolvConf)),
    requested: [...new Set(requested)],
  };
}

/** The range of a set that gives out the address. */
export function rangeOf(set: readonly Range[], ip: string): Range | undefined {
  const value = ipToBigInt(ip);
  return set.find((range) =>
    range.subnet.family === isIp(ip) && value >= range.first && value <= range.last
  );
}

/** A range for people: `172.18.0.1-172.18.255.254`. */
export function formatRange({ subnet, first, last }: Range): string {
  return `${bigIntToIp(first, subnet.family)}-${bigIntToIp(last, subnet.family)}`;
}

/** How many addresses a set gives out, its gateways apart. */
export function capacity(set: readonly Range[]): bigint {
  let count = 0n;
  for (const range of set) {
    const gateway = ipToBigInt(range.gateway);
    count += range.last - range.first + 1n;
    if (gateway >= range.first && gateway <= range.last) count--;
  }
  return count;
}

function parseSet(network: string, set: unknown): Range[] {
  const ranges = list(set).map((range) => parseRange(network, record(range)));
  if (ranges.length === 0) return fail(network, "an empty range set");
  if (ranges.some((range) => range.subnet.family !== ranges[0]!.subnet.family)) {
    return fail(network, "a range set that mixes address families");
  }
  return ranges;
}

function parseRange(network: string, raw: Record<string, unknown>): Range {
  const where = text(network, "subnet", raw.subnet);
  if (where === undefined) return fail(network, `a range without "subnet"`);
  const subnet = parsed(network, () => parseCidr(where));
  const bits = BITS[subnet.family];
  if (subnet.prefixLength > bits - 2) {
    return fail(network, `the subnet ${where}, which is too small to give out addresses`);
  }
  if (subnet.address !== subnet.network) {
    return fail(network, `the subnet ${where}, whose first address is ${subnet.network}`);
  }
  const address = (key: string): string | undefined => {
    const ip = text(network, key, raw[key]);
    if (ip === undefined) return undefined;
    if (!cidrContains(subnet, ip)) fail(network, `${key} ${ip}, which is not in ${where}`);
    return canonicalIp(ip);
  };
  const start = address("rangeStart");
  const end = address("rangeEnd");
  // The network's own address is never given out, nor IPv4's broadcast address; IPv6 has none.
  const first = start === undefined ? ipToBigInt(subnet.network) + 1n : ipToBigInt(start);
  const broadcast = ipToBigInt(subnet.broadcast);
  const last = end !== undefined ? ipToBigInt(end) : broadcast - (subnet.family === 4 ? 1n : 0n);
  if (last < first) return fail(network, `rangeEnd ${end} before rangeStart`);
  const gateway = address("gateway") ??
    bigIntToIp(ipToBigInt(subnet.network) + 1n, subnet.family);
  return { subnet, first, last, gateway };
}

function refuseOverlaps(network: string, ranges: readonly Range[]): void {
  ranges.forEach((one, index) => {
    for (const other of ranges.slice(index + 1)) {
      const apart = one.last < other.first || other.last < one.first;
      if (cidrsOverlap(one.subnet, other.subnet) && !apart) {
        fail(network, `the ranges ${formatRange(one)} and ${formatRange(other)}, which overlap`);
      }
    }
  });
}

function parseRoute(network: string, raw: Record<string, unknown>): RouteConfig {
  const dst = text(network, "dst", raw.dst);
  if (dst === undefined) return fail(network, `a route without "dst"`);
  parsed(network, () => parseCidr(dst));
  const gw = text(network, "gw", raw.gw);
  if (gw !== undefined && isIp(gw) === 0) return fail(network, `the gateway "${gw}"`);
  return {
    dst,
    ...optional("gw", gw),
    ...(typeof raw.mtu === "number" ? { mtu: raw.mtu } : {}),
    ...(typeof raw.priority === "number" ? { priority: raw.priority } : {}),
  };
}

/** The spec permits a prefix length after a requested address. */
function requestedIp(network: string, raw: unknown, sets: readonly (readonly Range[])[]): string {
  const given = String(raw);
  const ip = canonicalIp(given.split("/")[0]!);
  const range = sets.map((set) => rangeOf(set, ip)).find((range) => range !== undefined);
  if (range === undefined) {
    throw new InputError(`address ${ip} is outside network "${network}"`, {
      mend: `choose one of ${sets.flat().map(formatRange).join(", ")}`,
    });
  }
  if (ip === range.gateway) {
    throw new InputError(`address ${ip} is the gateway of network "${network}"`, {
      mend: `choose another of ${formatRange(range)}`,
    });
  }
  return ip;
}

function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

function record(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? value as Record<string, unknown> : {};
}

function text(network: string, key: string, value: unknown): string | undefined {
  if (value === undefined || value === "") return undefined;
  return typeof value === "string" ? value : fail(network, `"${key}" that is not text`);
}

function optional<K extends string>(key: K, value: string | undefined): { [P in K]?: string } {
  return value === undefined ? {} : { [key]: value } as { [P in K]?: string };
}

function parsed<T>(network: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    return fail(network, asError(error).message);
  }
}

function fail(network: string, what: string): never {
  throw misconfigured("host-local", `network "${network}" has in "ipam" ${what}`);
}
