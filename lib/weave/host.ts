/**
 * What of a host keeps Weave Net from working there, as far as that can be seen before it starts.
 *
 * @module
 */

import { formatPrefix, usesOf } from "../cni/subnets.ts";
import { InputError, TapkitError } from "../errors.ts";
import { isThere, readIfThere } from "../files.ts";
import { type Cidr, cidrsOverlap, parseCidr } from "../inet/ip.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { getLink, listLinks } from "../netlink/link.ts";
import { listRoutes, RT_TABLE } from "../netlink/route.ts";

/** The bridge that Weave Net makes. */
export const WEAVE_BRIDGE = "weave";

/** What Weave Net gives addresses from unless it is told otherwise. */
export const DEFAULT_RANGE = "10.32.0.0/12";

/** The longest prefix that has room for an address a host and for guests. */
const LONGEST_RANGE = 29;

/**
 * Refuses a range of addresses that the host has a route to: Weave Net's router would end at once,
 * again and again. Its own bridge does not count.
 *
 * @throws {InputError} when the range is malformed
 * @throws {TapkitError} naming the route or the address
 */
export function refuseOverlap(nl: NetlinkConnection, range: string): void {
  const prefix = parseRange(range);
  const use = routeOver(nl, prefix) ?? usesOf(nl, [prefix], WEAVE_BRIDGE)[0]?.what;
  if (use === undefined) return;
  throw new TapkitError(`Weave Net's range ${formatPrefix(prefix)} overlaps the ${use}`, {
    mend: "give another one, the same on all hosts, as --ipalloc-range 10.96.0.0/12",
  });
}

/**
 * Parses a range.
 *
 * @throws {InputError} when it is malformed, too small, or of IPv6
 */
export function parseRange(range: string): Cidr {
  const prefix = parseCidr(range);
  const mend = "write one as 10.32.0.0/12";
  if (prefix.family !== 4) throw new InputError(`${range} is not an IPv4 range`, { mend });
  if (prefix.prefixLength > LONGEST_RANGE) {
    throw new InputError(`${range} has no room for several hosts`, { mend });
  }
  if (prefix.address === prefix.network) return prefix;
  throw new InputError(`${range} has host bits`, { mend: `write ${formatPrefix(prefix)}` });
}

/** A route that Weave Net's own check refuses: of any width but the default route's. */
function routeOver(nl: NetlinkConnection, prefix: Cidr): string | undefined {
  const own = getLink(nl, WEAVE_BRIDGE)?.index;
  const route = listRoutes(nl, { table: RT_TABLE.MAIN }).find(({ family, dst, oif }) =>
    family === 4 && oif !== undefined && oif !== own && dst !== "0.0.0.0/0" &&
    cidrsOverlap(parseCidr(dst), prefix)
  );
  if (route === undefined) return undefined;
  const link = listLinks(nl).find(({ index }) => index === route.oif);
  return `route ${route.dst}${link === undefined ? "" : ` through "${link.name}"`}`;
}

const MACHINE_IDS = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
const PRODUCT_IDS = ["/sys/class/dmi/id/product_uuid", "/sys/hypervisor/uuid"];

/**
 * What is wrong with that which Weave Net makes the host's name in the network of: the MAC of a bridge
 * that is there, else the machine's id together with that of its board.
 *
 * @returns a sentence with its mend; undefined where nothing is seen to be wrong. That two hosts have
 * the same is seen when they meet: see {@linkcode findCollision}
 */
export function machineIdFault(nl: NetlinkConnection): string | undefined {
  if (getLink(nl, WEAVE_BRIDGE) !== undefined) return undefined;
  const path = MACHINE_IDS.find(isThere);
  const id = path === undefined ? "" : readIfThere(path)?.trim() ?? "";
  if (/^[0-9a-f]{32}$/.test(id)) return undefined;
  const what = path === undefined
    ? "/etc/machine-id is missing"
    : id === ""
    ? `${path} is empty`
    : `${path} holds no machine id`;
  const board = PRODUCT_IDS.some((path) => (readIfThere(path)?.trim() ?? "") !== "");
  const consequence = board
    ? "the host's name in the network depends on its board alone, which clones may share"
    : "the host gets another name in the network whenever its bridge is made anew";
  return `${what}: ${consequence}: run systemd-machine-id-setup`;
}

/** A connection to a peer as the router reports it. */
export interface TriedConnection {
  readonly peer: string;
  /** Why it failed, in Weave Net's words. */
  readonly info: string;
}

/**
 * Says which peers have this host's own name, as machines do that were cloned with their machine id.
 *
 * @param connections of the router's report
 * @returns a sentence with its mend; undefined where there are none
 */
export function findCollision(connections: readonly TriedConnection[]): string | undefined {
  const peers = connections.filter(({ info }) => /peer names collision/i.test(info))
    .map(({ peer }) => peer);
  if (peers.length === 0) return undefined;
  return `${
    peers.join(", ")
  } has the same name in the network as this host: one is a clone of the ` +
    "other: on one of them run setup-weave --remove --purge, then rm /etc/machine-id " +
    "/var/lib/dbus/machine-id, then systemd-machine-id-setup, then setup-weave";
}
