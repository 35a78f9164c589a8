/**
 * Prefixes: which ones the host uses, which one to take.
 *
 * @module
 */

import { InputError, TapkitError } from "../errors.ts";
import { isThere } from "../files.ts";
import {
  agree,
  bigIntToIp,
  type Cidr,
  cidrsOverlap,
  ipToBytes,
  parseCidr,
  specialUse,
} from "../inet/ip.ts";
import { listAddresses } from "../netlink/address.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { getLink, listLinks } from "../netlink/link.ts";
import { type Route, type RouteType, RT_TABLE } from "../netlink/route.ts";
import { scanRoutes } from "../netlink/routing.ts";
import { listConfigFiles } from "./conflist.ts";
import { parseHostLocal } from "./plugins/host-local-config.ts";
import type { NetworkConfigList } from "./types.ts";

/** Where container engines keep network definitions, beside the directory asked about. */
const NETWORK_DIRECTORIES = ["/etc/cni/net.d", "/etc/containers/networks"];

/** The documentation's subnet; where Docker is installed, its next network would take it. */
const DOCUMENTED_SUBNET = "172.18.0.0/16";
const DOCKER_TRACES = ["/var/lib/docker", "/usr/bin/dockerd", "/usr/local/bin/dockerd"];

/**
 * The shortest prefix length of a route that counts as a use. A wider one stands for a default
 * route, as 0.0.0.0/1 with 128.0.0.0/1, or ::/1, or fc00::/7.
 */
const WIDEST_ROUTE_OF_USE = 8;

/** Types of routes by which packets arrive somewhere. The others say that there is nothing. */
const ROUTES_OF_USE: readonly RouteType[] = ["unicast", "local", "nat"];

/** A prefix in use. */
export interface UsedPrefix {
  readonly prefix: Cidr;
  /** By what, for people: `route 10.0.0.0/8 via "eth0"`. */
  readonly what: string;
}

/**
 * For each prefix, the first address or route of the host, in any table, that overlaps it.
 *
 * Default routes, the kernel's local table and routes that lead nowhere are left out: they cover
 * everything, repeat the addresses, or keep nobody from using what they cover.
 *
 * @param except the link whose own routes and addresses do not count
 */
export function usesOf(
  nl: NetlinkConnection,
  prefixes: readonly Cidr[],
  except?: string,
): (UsedPrefix | undefined)[] {
  const found = new Array<UsedPrefix | undefined>(prefixes.length).fill(undefined);
  const names = new Map(listLinks(nl).map((link) => [link.index, link.name]));
  const nameOf = (index: number) => names.get(index) ?? `link ${index}`;
  for (const family of new Set(prefixes.map((prefix) => prefix.family))) {
    const addresses = listAddresses(nl, { family })
      .filter(({ index }) => nameOf(index) !== except)
      .map(({ index, address }): UsedPrefix => {
        return { prefix: parseCidr(address), what: `address ${address} of "${nameOf(index)}"` };
      });
    const asked = prefixes.flatMap((prefix, place) => {
      if (prefix.family !== family) return [];
      found[place] = findOverlap(prefix, addresses);
      return [{ bytes: ipToBytes(prefix.network), length: prefix.prefixLength, place }];
    });
    scanRoutes(nl, family, (seen) => {
      if (seen.prefixLength < WIDEST_ROUTE_OF_USE) return;
      let route: Route | undefined;
      for (const { bytes, length, place } of asked) {
        if (found[place] !== undefined) continue;
        if (!agree(seen.dst, bytes, Math.min(length, seen.prefixLength))) continue;
        route ??= seen.read();
        if (route === undefined || !isOfUse(route)) return;
        const name = route.oif === undefined ? undefined : nameOf(route.oif);
        if (name !== undefined && name === except) return;
        const where = name === undefined ? "" : ` through "${name}"`;
        found[place] = { prefix: parseCidr(route.dst), what: `route ${route.dst}${where}` };
      }
    });
  }
  return found;
}

function isOfUse({ table, type }: Route): boolean {
  return table !== RT_TABLE.LOCAL && ROUTES_OF_USE.includes(type);
}

/** The subnets named in network definitions of CNI and Podman; unreadable files are ignored. */
export function usedByConfigurations(directory: string, except?: string): UsedPrefix[] {
  const used: UsedPrefix[] = [];
  for (const where of new Set([directory, ...NETWORK_DIRECTORIES])) {
    for (const path of filesOf(where)) {
      if (path === except) continue;
      for (const subnet of subnetsIn(path)) {
        used.push({
          prefix: subnet,
          what: `subnet ${subnet.network}/${subnet.prefixLength} of ${path}`,
        });
      }
    }
  }
  return used;
}

/** The first of `used` that shares an address with the prefix. */
export function findOverlap(prefix: Cidr, used: readonly UsedPrefix[]): UsedPrefix | undefined {
  return used.find((other) => cidrsOverlap(prefix, other.prefix));
}

function filesOf(directory: string): string[] {
  try {
    return listConfigFiles(directory);
  } catch {
    return [];
  }
}

/** Every value of a key `subnet`, however deep. */
function subnetsIn(path: string): Cidr[] {
  const found: string[] = [];
  try {
    JSON.parse(Deno.readTextFileSync(path), (key, value) => {
      if (key === "subnet" && typeof value === "string") found.push(value);
      return value;
    });
  } catch {
    // Neither readable nor JSON: it names no subnet.
  }
  return found.flatMap((text) => {
    try {
      return parseCidr(text);
    } catch {
      return [];
    }
  });
}

/**
 * Refuses a network whose subnets the host now uses elsewhere. Nothing is checked if its bridge is
 * there, or if the overlap was accepted when it was installed.
 *
 * @throws {TapkitError} naming what overlaps
 */
export function assertNoOverlap(list: NetworkConfigList, nl: NetlinkConnection): void {
  const bridged = list.plugins.some(({ bridge }) =>
    typeof bridge === "string" && getLink(nl, bridge) !== undefined
  );
  const found = bridged || list.allowOverlap ? undefined : networkOverlap(list, nl);
  if (found === undefined) return;
  throw new TapkitError(
    `subnet ${
      formatPrefix(found.subnet)
    } of network "${list.name}" overlaps the ${found.used.what}`,
    { mend: `change the subnet in ${list.path ?? "its configuration"}` },
  );
}

/** What overlaps a network's subnets, except its own bridge. */
export function networkOverlap(
  list: NetworkConfigList,
  nl: NetlinkConnection,
): { subnet: Cidr; used: UsedPrefix } | undefined {
  for (const conf of list.plugins) {
    if (conf.type !== "bridge" || conf.ipam?.type !== "host-local") continue;
    const { rangeSets } = parseHostLocal({ ...conf, name: list.name }, {});
    const subnets = rangeSets.flat().map(({ subnet }) => subnet);
    const uses = usesOf(nl, subnets, String(conf.bridge));
    const place = uses.findIndex((use) => use !== undefined);
    if (place >= 0) return { subnet: subnets[place]!, used: uses[place]! };
  }
  return undefined;
}

/** Prefixes that guests could use, but that hardly anyone means. */
const ODD = ["169.254.0.0/16", "240.0.0.0/4"];

/**
 * Parses a prefix for guests.
 *
 * @throws {InputError} when it has host bits, no room, or is of the other family or no unicast
 */
export function parsePrefix(text: string, family: 4 | 6): Cidr {
  const prefix = parseCidr(text);
  if (prefix.family !== family) {
    throw new InputError(`subnet ${text} is not IPv${family}`, {
      mend: family === 4 ? "give it as --ipv6" : "give it as --subnet",
    });
  }
  if (prefix.address !== prefix.network) {
    throw new InputError(`subnet ${text} has host bits`, { mend: `write ${formatPrefix(prefix)}` });
  }
  const longest = family === 4 ? 30 : 126;
  if (prefix.prefixLength > longest) {
    throw new InputError(`subnet ${text} has no room for a gateway and a VM`, {
      mend: `choose a prefix length of ${longest} or less`,
    });
  }
  const special = specialUse(prefix) ??
    ODD.find((other) => cidrsOverlap(parseCidr(other), prefix));
  if (special !== undefined) {
    throw new InputError(
      `subnet ${text} has addresses of ${special}, where guests cannot be`,
      {
        mend: family === 4 ? "choose one as 10.61.0.0/16" : "choose one as fd00:61::/64, or auto",
      },
    );
  }
  return prefix;
}

/** Where a network may be put. */
export interface Place {
  /** The network's bridge; what it uses is free. */
  readonly bridge: string;
  /** The prefixes of a bridge that is there: its guests have addresses of them. */
  readonly present: readonly Cidr[];
  /** What other networks are configured with. */
  readonly promised: readonly UsedPrefix[];
}

/** The first candidate for the default network that nothing uses. */
export function chooseSubnet(
  nl: NetlinkConnection,
  { bridge, present, promised }: Place,
): string {
  const candidates = [
    ...present.filter(({ prefixLength }) => prefixLength <= 30).map(formatPrefix),
    ...(isDockerInstalled(nl) ? [] : [DOCUMENTED_SUBNET]),
    ...range(61, 255).map((second) => `10.${second}.0.0/16`),
    // Docker takes the lowest for its next networks.
    ...range(16, 31).reverse().map((second) => `172.${second}.0.0/16`),
    ...range(1, 15).reverse().map((part) => `192.168.${16 * part}.0/20`),
    // Shared with carriers and with overlays of others (RFC 6598).
    ...range(64, 127).reverse().map((second) => `100.${second}.0.0/16`),
  ].map(parseCidr).filter((prefix) => findOverlap(prefix, promised) === undefined);
  const uses = usesOf(nl, candidates, bridge);
  const free = candidates.find((_, index) => uses[index] === undefined);
  if (free !== undefined) return formatPrefix(free);
  throw new TapkitError("every candidate for the default network's subnet is in use", {
    mend: "give a free one with --subnet",
  });
}

/** A random /64 of a random /48 of fd00::/8 (RFC 4193). */
export function chooseIpv6(nl: NetlinkConnection, { bridge, promised }: Place): string {
  while (true) {
    const bytes = crypto.getRandomValues(new Uint8Array(16)).fill(0, 8);
    bytes[0] = 0xfd;
    const value = bytes.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
    const prefix = parseCidr(`${bigIntToIp(value, 6)}/64`);
    if (findOverlap(prefix, promised) !== undefined) continue;
    if (usesOf(nl, [prefix], bridge)[0] === undefined) return formatPrefix(prefix);
  }
}

function range(first: number, last: number): number[] {
  return Array.from({ length: last - first + 1 }, (_, index) => first + index);
}

function isDockerInstalled(nl: NetlinkConnection): boolean {
  return getLink(nl, "docker0") !== undefined || DOCKER_TRACES.some(isThere);
}

/** A prefix as text. */
export function formatPrefix({ network, prefixLength }: Cidr): string {
  return `${network}/${prefixLength}`;
}
