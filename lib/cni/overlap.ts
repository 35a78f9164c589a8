/**
 * Which prefixes the host uses already.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import { type Cidr, cidrsOverlap, parseCidr } from "../inet/ip.ts";
import { listAddresses } from "../netlink/address.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { listLinks } from "../netlink/link.ts";
import { listRoutes } from "../netlink/route.ts";
import { listConfigFiles } from "./conflist.ts";

/** `RT_TABLE_LOCAL` of linux/rtnetlink.h: the kernel's own copies of the addresses. */
const RT_TABLE_LOCAL = 255;
/** Where container engines keep network definitions, beside the directory asked about. */
const NETWORK_DIRECTORIES = ["/etc/cni/net.d", "/etc/containers/networks"];

/** A prefix in use. */
export interface UsedPrefix {
  readonly prefix: Cidr;
  /** By what, for people: `route 10.0.0.0/8 via "eth0"`. */
  readonly what: string;
}

/**
 * The prefixes of every route and address of the host.
 *
 * Default routes, the kernel's local table and multicast are left out: they cover everything, or
 * repeat the addresses.
 *
 * @param except the link whose own routes and addresses do not count
 */
export function usedByHost(nl: NetlinkConnection, except?: string): UsedPrefix[] {
  const names = new Map(listLinks(nl).map((link) => [link.index, link.name]));
  const nameOf = (index: number | undefined): string | undefined =>
    index === undefined ? undefined : names.get(index) ?? `link ${index}`;
  const used: UsedPrefix[] = [];
  for (const { index, address } of listAddresses(nl)) {
    const name = nameOf(index);
    if (name === except) continue;
    used.push({ prefix: parseCidr(address), what: `address ${address} of "${name}"` });
  }
  for (const { dst, table, oif } of listRoutes(nl)) {
    const name = nameOf(oif);
    const prefix = parseCidr(dst);
    if (table === RT_TABLE_LOCAL || prefix.prefixLength === 0) continue;
    if (except !== undefined && name === except) continue;
    const where = name === undefined ? "" : ` through "${name}"`;
    used.push({ prefix, what: `route ${dst}${where}` });
  }
  return used;
}

/** The subnets named in network definitions of CNI and Podman; unreadable files are passed over. */
export function usedByConfigurations(directory: string, except?: string): UsedPrefix[] {
  const used: UsedPrefix[] = [];
  for (const where of new Set([directory, ...NETWORK_DIRECTORIES])) {
    for (const path of filesOf(where)) {
      if (path === except) continue;
      for (const subnet of subnetsOf(path)) {
        used.push({
          prefix: subnet,
          what: `subnet ${subnet.network}/${subnet.prefixLength} of ${path}`,
        });
      }
    }
  }
  return used;
}

/** What of `used` shares an address with the prefix. */
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
function subnetsOf(path: string): Cidr[] {
  const found: Cidr[] = [];
  try {
    JSON.parse(Deno.readTextFileSync(path), (key, value) => {
      if (key === "subnet" && typeof value === "string") collect(found, value);
      return value;
    });
  } catch {
    // Neither readable nor JSON: it names no subnet.
  }
  return found;
}

function collect(found: Cidr[], text: string): void {
  try {
    found.push(parseCidr(text));
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
  }
}
