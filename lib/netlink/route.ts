/**
 * Routes: `struct rtmsg`, RTA attributes, and `ip route`.
 *
 * @module
 */

import { canonicalIp, ipToBytes, isIp, parseCidr } from "../inet/ip.ts";
import { failedWith, tolerate } from "../sys/libc.ts";
import { addressFamily, decodeIp, ipFamily, RT_SCOPE, type Scope, scopeOf } from "./address.ts";
import type { NetlinkConnection } from "./connection.ts";
import type { Change } from "./requests.ts";
import { DecodeError, type Subject } from "./errors.ts";
import { getLink } from "./link.ts";
import { NLM_F, RTM } from "./message.ts";
import { align, Decoder, Encoder, type Mutable } from "./wire.ts";

/** Route attributes (linux/rtnetlink.h). */
export const RTA = {
  DST: 1,
  OIF: 4,
  GATEWAY: 5,
  PRIORITY: 6,
  PREFSRC: 7,
  METRICS: 8,
  MULTIPATH: 9,
  TABLE: 15,
  VIA: 18,
  NH_ID: 30,
} as const;

/** Metrics within RTA_METRICS (linux/rtnetlink.h). */
const RTAX = { MTU: 2 } as const;

/** Tables that every namespace has (linux/rtnetlink.h). */
export const RT_TABLE = { UNSPEC: 0, DEFAULT: 253, MAIN: 254, LOCAL: 255 } as const;

/** Route types (linux/rtnetlink.h), by their names in `ip`, in the order of their numbers. */
const ROUTE_TYPES = [
  "none",
  "unicast",
  "local",
  "broadcast",
  "anycast",
  "multicast",
  "blackhole",
  "unreachable",
  "prohibit",
  "throw",
  "nat",
  "xresolve",
] as const;

/** The type of a route. */
export type RouteType = typeof ROUTE_TYPES[number];

/** The origins of routes (linux/rtnetlink.h), by their names in `ip`. */
const RTPROT = {
  unspec: 0,
  redirect: 1,
  kernel: 2,
  boot: 3,
  static: 4,
  ra: 9,
  dhcp: 16,
} as const;

/** Nexthop flags (linux/rtnetlink.h). */
const RTNH_F = { ONLINK: 4 } as const;

/** The answer names the table it was found in, or is the route as it was made (linux/rtnetlink.h). */
const RTM_F = { LOOKUP_TABLE: 0x1000, FIB_MATCH: 0x2000 } as const;

/** IPv6 routes without a metric get this one (`IP6_RT_PRIO_USER`, net/ipv6_route.h). */
const IP6_RT_PRIO_USER = 1024;

/** A route. */
export interface Route {
  readonly family: 4 | 6;
  /** With its prefix length; the default route is `"0.0.0.0/0"` or `"::/0"`. */
  readonly dst: string;
  /** Of the destination's family, or IPv6 for an IPv4 destination. */
  readonly gateway?: string;
  /** Index of the outgoing link; absent with several next hops. */
  readonly oif?: number;
  /** With several next hops, the indexes of their links. */
  readonly hops?: readonly number[];
  /** The ID of its nexthop object, if it has one. */
  readonly nexthop?: number;
  /** The preferred source address. */
  readonly src?: string;
  readonly table: number;
  readonly scope: Scope;
  readonly type: RouteType;
  /** A key of {@linkcode RTPROT}, or the number as text. */
  readonly protocol: string;
  /** The lowest metric wins. If absent, it is 0 in IPv4. */
  readonly metric?: number;
  readonly mtu?: number;
  /** The gateway is on the link, whatever the link's prefixes are. */
  readonly onlink?: boolean;
}

/** A route to add. */
export interface RouteRequest
  extends Pick<Route, "dst" | "gateway" | "oif" | "src" | "metric" | "mtu" | "onlink"> {
  /** `RT_TABLE.MAIN` unless given. */
  readonly table?: number;
  /** By default as in `ip route`: link for IPv4 without a gateway, otherwise global. */
  readonly scope?: Scope;
  /** `"unicast"` unless given. */
  readonly type?: RouteType;
  /** `"boot"` unless given, as in `ip route`. */
  readonly protocol?: keyof typeof RTPROT;
}

function routeScope(request: RouteRequest): Scope {
  if (request.type === "local") return "host";
  if (parseCidr(request.dst).family === 6 || request.gateway !== undefined) return "global";
  return request.type === undefined || request.type === "unicast" ? "link" : "global";
}

/** The payload of RTM_NEWROUTE. */
function encodeRoute(request: RouteRequest): Uint8Array<ArrayBuffer> {
  const { gateway, src, table = RT_TABLE.MAIN, metric, mtu, oif } = request;
  const { type = "unicast", scope = routeScope(request), protocol = "boot" } = request;
  const { network, prefixLength, family } = parseCidr(request.dst);
  // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
  const encoder = new Encoder(96).u8(addressFamily(family)).u8(prefixLength).zero(2)
    .u8(table <= 0xff ? table : RT_TABLE.UNSPEC).u8(RTPROT[protocol]).u8(RT_SCOPE[scope])
    .u8(ROUTE_TYPES.indexOf(type)).u32(request.onlink ? RTNH_F.ONLINK : 0);
  if (prefixLength > 0) encoder.attrBytes(RTA.DST, ipToBytes(network));
  if (gateway !== undefined) encodeGateway(encoder, gateway, family);
  if (src !== undefined) encoder.attrBytes(RTA.PREFSRC, ipToBytes(src));
  if (metric !== undefined) encoder.attrU32(RTA.PRIORITY, metric);
  if (table > 0xff) encoder.attrU32(RTA.TABLE, table);
  if (oif !== undefined) encoder.attrU32(RTA.OIF, oif);
  if (mtu !== undefined) {
    encoder.attrNested(RTA.METRICS, (metrics) => metrics.attrU32(RTAX.MTU, mtu));
  }
  return encoder.finish();
}

function encodeGateway(encoder: Encoder, gateway: string, family: 4 | 6): void {
  const bytes = ipToBytes(gateway);
  const gatewayFamily = isIp(gateway);
  if (gatewayFamily === family) {
    encoder.attrBytes(RTA.GATEWAY, bytes);
  } else {
    // struct rtvia: the family before the address.
    encoder.attrNested(RTA.VIA, (via) => via.u16(addressFamily(gatewayFamily || 4)).bytes(bytes));
  }
}

/**
 * Reads the payload of RTM_NEWROUTE.
 *
 * @returns undefined for a family other than IPv4 and IPv6
 * @throws {DecodeError} when it is malformed
 */
export function decodeRoute(payload: Uint8Array): Route | undefined {
  const decoder = new Decoder(payload);
  const family = ipFamily(decoder.u8());
  const dstLength = decoder.u8();
  decoder.skip(2);
  let table = decoder.u8();
  const protocol = decoder.u8();
  const scope = scopeOf(decoder.u8());
  const type = ROUTE_TYPES[decoder.u8()] ?? "none";
  const flags = decoder.u32();
  if (family === undefined) return undefined;
  let dst = family === 4 ? "0.0.0.0" : "::";
  const more: Partial<Mutable<Route>> = {};
  for (const { type: attribute, value } of decoder.attributes()) {
    if (attribute === RTA.DST) dst = decodeIp(value, family);
    else if (attribute === RTA.GATEWAY) more.gateway = decodeIp(value, family);
    else if (attribute === RTA.VIA) more.gateway = decodeVia(value);
    else if (attribute === RTA.OIF) more.oif = value.asU32();
    else if (attribute === RTA.MULTIPATH) more.hops = decodeHops(value);
    else if (attribute === RTA.NH_ID) more.nexthop = value.asU32();
    else if (attribute === RTA.PREFSRC) more.src = decodeIp(value, family);
    else if (attribute === RTA.PRIORITY) more.metric = value.asU32();
    else if (attribute === RTA.TABLE) table = value.asU32();
    else if (attribute === RTA.METRICS) {
      for (const metric of value.attributes()) {
        if (metric.type === RTAX.MTU) more.mtu = metric.value.asU32();
      }
    }
  }
  return {
    family,
    dst: `${dst}/${dstLength}`,
    ...more,
    table,
    scope,
    type,
    protocol: ROUTE_PROTOCOLS.get(protocol) ?? `${protocol}`,
    ...((flags & RTNH_F.ONLINK) === 0 ? {} : { onlink: true }),
  };
}

const ROUTE_PROTOCOLS = new Map<number, string>(
  Object.entries(RTPROT).map(([name, value]) => [value, name]),
);

function decodeVia(value: Decoder): string {
  const offset = value.offset;
  const family = ipFamily(value.u16());
  if (family === undefined) throw new DecodeError("a gateway of unknown family", offset);
  return decodeIp(value, family);
}

/** struct rtnexthop: length, flags, weight, link; then attributes, and the next one aligned. */
function decodeHops(value: Decoder): number[] {
  const links: number[] = [];
  while (value.remaining > 0) {
    const length = value.u16();
    value.skip(2);
    links.push(value.i32());
    value.skip(Math.max(0, Math.min(value.remaining, align(length) - 8)));
  }
  return links;
}

/**
 * The routes of all tables, or those of one family, table or link.
 *
 * Equivalent to: `ip route show table all|TABLE [dev NAME]`, both families
 */
export function listRoutes(
  nl: NetlinkConnection,
  filter: { readonly family?: 4 | 6; readonly table?: number; readonly oif?: number } = {},
): Route[] {
  // One dump for each family: AF_UNSPEC would include the tables of multicast routing and MPLS.
  const families = filter.family === undefined ? [4, 6] as const : [filter.family];
  return families.flatMap((family) => listFamily(nl, family, filter));
}

function listFamily(
  nl: NetlinkConnection,
  family: 4 | 6,
  filter: { readonly table?: number; readonly oif?: number },
): Route[] {
  const { table = RT_TABLE.UNSPEC, oif } = filter;
  const encoder = new Encoder(32).u8(addressFamily(family)).zero(3)
    .u8(table <= 0xff ? table : RT_TABLE.UNSPEC).zero(7);
  if (table > 0xff) encoder.attrU32(RTA.TABLE, table);
  if (oif !== undefined) encoder.attrU32(RTA.OIF, oif);
  const routes: Route[] = [];
  // ENOENT: no such table. ENODEV: no such link. The others: no IPv6.
  const found = tolerate(
    ["ENOENT", "ENODEV", "EAFNOSUPPORT", "EOPNOTSUPP"],
    () => nl.dump(RTM.GETROUTE, encoder.finish(), { action: "list", object: "routes" }),
  );
  for (const message of found ?? []) {
    if (message.type !== RTM.NEWROUTE) continue;
    const route = decodeRoute(message.payload);
    if (route === undefined || route.family !== family) continue;
    if (filter.table !== undefined && route.table !== filter.table) continue;
    if (oif !== undefined && route.oif !== oif) continue;
    routes.push(route);
  }
  return routes;
}

/**
 * Adds a route.
 *
 * Equivalent to: `ip route add DST [via GATEWAY] [dev NAME] [src ADDRESS] [metric N] [table N]
 * [scope SCOPE] [mtu N] [onlink]`
 *
 * @returns false if the same route exists already
 * @throws {InputError} when an address is malformed
 * @throws {NetlinkError} EEXIST when another route has its destination, metric and table
 */
export function addRoute(nl: NetlinkConnection, request: RouteRequest): boolean {
  return nl.change(routeAddition(nl, request));
}

/** What {@linkcode addRoute} asks for. */
export function routeAddition(nl: NetlinkConnection, request: RouteRequest): Change {
  return {
    type: RTM.NEWROUTE,
    flags: NLM_F.CREATE | NLM_F.EXCL,
    payload: encodeRoute(request),
    subject: subjectOf(request),
    refused: (error) => {
      // The kernel compares destination, metric and table only.
      if (!failedWith(error, "EEXIST") || !isPresent(nl, request)) throw error;
    },
  };
}

function isPresent(nl: NetlinkConnection, request: RouteRequest): boolean {
  const { network, prefixLength, family } = parseCidr(request.dst);
  const { table = RT_TABLE.MAIN, gateway, oif, src } = request;
  const metric = request.metric || (family === 6 ? IP6_RT_PRIO_USER : 0);
  const same = (wanted: string | undefined, found: string | undefined) =>
    wanted === undefined
      ? found === undefined
      : found !== undefined && canonicalIp(wanted) === canonicalIp(found);
  return listRoutes(nl, { family, table }).some((route) =>
    route.dst === `${network}/${prefixLength}` && (route.metric ?? 0) === metric &&
    same(gateway, route.gateway) && (oif === undefined || oif === route.oif) &&
    (src === undefined || same(src, route.src)) &&
    (request.mtu === undefined || request.mtu === route.mtu) &&
    route.type === (request.type ?? "unicast")
  );
}

/**
 * The route of a packet to an address.
 *
 * Equivalent to: `ip route get ADDRESS`
 *
 * @returns the route to that one address; undefined if it cannot be reached
 * @throws {InputError} when the address is malformed
 */
export function getRoute(nl: NetlinkConnection, destination: string): Route | undefined {
  return askRoute(nl, destination, 0);
}

/**
 * The route of packets to an address as it was added, with its prefix and all its next hops.
 *
 * Equivalent to: `ip route get ADDRESS fibmatch`
 */
export function matchRoute(nl: NetlinkConnection, destination: string): Route | undefined {
  return askRoute(nl, destination, RTM_F.FIB_MATCH);
}

/** No route, a route that refuses (EACCES: prohibit, EINVAL: blackhole), or no IPv6. */
const UNREACHABLE = [
  "ENETUNREACH",
  "EHOSTUNREACH",
  "EACCES",
  "EINVAL",
  "EAFNOSUPPORT",
  "EOPNOTSUPP",
] as const;

function askRoute(nl: NetlinkConnection, destination: string, match: number): Route | undefined {
  const bytes = ipToBytes(destination);
  const family = bytes.length === 4 ? 4 : 6;
  // IPv6 always answers with the table, and refuses a request for it.
  const flags = match | (family === 4 ? RTM_F.LOOKUP_TABLE : 0);
  const payload = new Encoder(32).u8(addressFamily(family)).u8(8 * bytes.length).zero(6)
    .u32(flags).attrBytes(RTA.DST, bytes).finish();
  const subject = { action: "find", object: `route to ${destination}` };
  const [found] = nl.ask([{ type: RTM.GETROUTE, payload, subject, absent: UNREACHABLE }]);
  return found && decodeRoute(found.payload);
}

/**
 * The name of the outgoing link for an address.
 *
 * @returns `""` for an address of the host; undefined if it cannot be reached
 * @throws {InputError} when the address is malformed
 */
export function linkTowards(nl: NetlinkConnection, address: string): string | undefined {
  const route = getRoute(nl, address);
  if (route?.oif === undefined) return undefined;
  return route.type === "local" ? "" : getLink(nl, route.oif)?.name;
}

function subjectOf({ dst, gateway }: RouteRequest): Subject {
  const via = gateway === undefined ? "" : ` via ${gateway}`;
  return { action: "add", object: `route to ${dst}${via}` };
}
