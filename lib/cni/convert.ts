/**
 * Results of the specification's versions, to and from the one shape the rest of tapkit knows.
 *
 * | versions     | shape                                                                       |
 * | ------------ | --------------------------------------------------------------------------- |
 * | 0.1.0, 0.2.0 | one address of each family, with its routes: `ip4`, `ip6`                    |
 * | 0.3.0–0.4.0  | lists; each address says its family: `"version": "4"`                        |
 * | 1.0.0, 1.1.0 | the same without `version`; 1.1 adds keys to interfaces and routes           |
 *
 * @module
 */

import { isIp, parseCidr } from "../inet/ip.ts";
import {
  CNI_VERSIONS,
  type Dns,
  type Interface,
  type IpConfig,
  type Result,
  type RouteConfig,
} from "./types.ts";

type Json = Readonly<Record<string, unknown>>;

/** Whether version `a` is `b` or newer; one that is not known is older than all. */
export function isAtLeast(a: string, b: string): boolean {
  return CNI_VERSIONS.indexOf(a) >= CNI_VERSIONS.indexOf(b);
}

/**
 * Reads what a plugin printed for ADD.
 *
 * @param version of the configuration, for a result that names none
 * @throws {TypeError} naming the part that is malformed
 */
export function parseResult(raw: unknown, version: string): Result {
  const value = object(raw, "the result");
  const cniVersion = value.cniVersion === undefined || value.cniVersion === ""
    ? version
    : text(value.cniVersion, `"cniVersion"`);
  if (!CNI_VERSIONS.includes(cniVersion)) {
    throw new TypeError(`the result has the unknown cniVersion "${cniVersion}"`);
  }
  const dns = parseDns(value.dns);
  if (!isAtLeast(cniVersion, "0.3.0")) return { cniVersion, ...parseFamilies(value), dns };
  return {
    cniVersion,
    interfaces: list(value.interfaces, `"interfaces"`).map((raw): Interface => {
      const link = object(raw, "an interface");
      return { ...link, name: text(link.name, `an interface's "name"`) };
    }),
    ips: list(value.ips, `"ips"`).map((raw): IpConfig => {
      const { version: _, ...ip } = object(raw, "an address");
      const { interface: index } = ip;
      if (index !== undefined && index !== null && !Number.isInteger(index)) {
        throw new TypeError(`an address's "interface" is not a number`);
      }
      return {
        address: cidr(ip.address, "an address"),
        ...gateway(ip.gateway),
        ...typeof index === "number" ? { interface: index } : {},
      };
    }),
    routes: list(value.routes, `"routes"`).map(parseRoute),
    dns,
  };
}

/**
 * A result in the shape that plugins of a version read as `prevResult`.
 *
 * Versions before 0.3.0 have room for the first address of each family, and for no interfaces.
 */
export function formatResult(result: Result, version: string): Json {
  const { interfaces, ips, routes, dns } = result;
  if (!isAtLeast(version, "0.3.0")) return formatFamilies(result, version);
  const withFamily = !isAtLeast(version, "1.0.0");
  return {
    cniVersion: version,
    ...interfaces.length === 0 ? {} : { interfaces },
    ...ips.length === 0 ? {} : {
      ips: ips.map((ip) => withFamily ? { version: `${parseCidr(ip.address).family}`, ...ip } : ip),
    },
    ...routes.length === 0 ? {} : { routes },
    dns,
  };
}

function parseFamilies(value: Json): Pick<Result, "interfaces" | "ips" | "routes"> {
  const ips: IpConfig[] = [];
  const routes: RouteConfig[] = [];
  for (const key of ["ip4", "ip6"]) {
    if (value[key] === undefined || value[key] === null) continue;
    const family = object(value[key], `"${key}"`);
    ips.push({ address: cidr(family.ip, `"${key}"`), ...gateway(family.gateway) });
    routes.push(...list(family.routes, `the routes of "${key}"`).map(parseRoute));
  }
  return { interfaces: [], ips, routes };
}

function formatFamilies({ ips, routes, dns }: Result, cniVersion: string): Json {
  const part = (family: number) => {
    const first = ips.find(({ address }) => parseCidr(address).family === family);
    if (first === undefined) return undefined;
    const own = routes.filter(({ dst }) => parseCidr(dst).family === family)
      .map(({ dst, gw }) => ({ dst, ...gw === undefined ? {} : { gw } }));
    return {
      ip: first.address,
      ...first.gateway === undefined ? {} : { gateway: first.gateway },
      ...own.length === 0 ? {} : { routes: own },
    };
  };
  const [ip4, ip6] = [part(4), part(6)];
  return {
    cniVersion,
    ...ip4 === undefined ? {} : { ip4 },
    ...ip6 === undefined ? {} : { ip6 },
    dns,
  };
}

function parseRoute(raw: unknown): RouteConfig {
  const { gw, ...route } = object(raw, "a route");
  const hop = gateway(gw, "a route's gateway").gateway;
  return { ...route, dst: cidr(route.dst, "a route"), ...hop === undefined ? {} : { gw: hop } };
}

function parseDns(raw: unknown): Dns {
  if (raw === undefined || raw === null) return {};
  const dns = object(raw, `"dns"`);
  const words = (key: string) => {
    const values = list(dns[key], `"dns.${key}"`).map((value) => text(value, `"dns.${key}"`));
    return values.length === 0 ? {} : { [key]: values };
  };
  return {
    ...words("nameservers"),
    ...dns.domain === undefined || dns.domain === ""
      ? {}
      : { domain: text(dns.domain, `"dns.domain"`) },
    ...words("search"),
    ...words("options"),
  };
}

function gateway(value: unknown, what = "a gateway"): { gateway?: string } {
  if (value === undefined || value === null || value === "") return {};
  const address = text(value, what);
  if (isIp(address) === 0) throw new TypeError(`${what} is "${address}", which is not an address`);
  return { gateway: address };
}

function cidr(value: unknown, what: string): string {
  const address = text(value, what);
  try {
    parseCidr(address);
  } catch {
    throw new TypeError(`${what} is "${address}", which is not an address with a prefix length`);
  }
  return address;
}

function object(value: unknown, what: string): Json {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return { ...value };
  throw new TypeError(`${what} is not a JSON object`);
}

/** Go writes an empty list as null. */
function list(value: unknown, what: string): readonly unknown[] {
  if (value === undefined || value === null) return [];
  if (Array.isArray(value)) return value;
  throw new TypeError(`${what} is not a list`);
}

function text(value: unknown, what: string): string {
  if (typeof value === "string") return value;
  throw new TypeError(`${what} is not text`);
}
