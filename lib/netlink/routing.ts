/**
 * Queries over all routes of a host.
 *
 * @module
 */

import type { Family } from "../inet/ip.ts";
import { tolerate } from "../sys/libc.ts";
import { addressFamily } from "./address.ts";
import type { NetlinkConnection } from "./connection.ts";
import { getLink, type Link } from "./link.ts";
import { RTM } from "./message.ts";
import { decodeRoute, matchRoute, type Route, RTA } from "./route.ts";
import { align, Decoder, Encoder, LITTLE_ENDIAN, NLA } from "./wire.ts";

/** `sizeof(struct rtmsg)`, and the offset of its destination length (linux/rtnetlink.h). */
const RTMSG = { SIZE: 12, DST_LEN: 1 } as const;

/** Attributes of a nexthop object, and the size of its header (linux/nexthop.h). */
const NHA = { ID: 1, GROUP: 2, OIF: 5 } as const;
const NHMSG_SIZE = 8;

/**
 * Addresses that use the default route, because nobody has them and no other route covers them:
 * reserved for future use (RFC 1112), and returned by the 6bone (RFC 3701).
 */
const ELSEWHERE = ["240.0.0.1", "3ffe::1"] as const;

/** The current route. The object is reused for the next one. */
export interface RouteInScan {
  /** 4 or 16 bytes; the first ones are the prefix. */
  readonly dst: Uint8Array;
  prefixLength: number;
  /** Reads all of the route. */
  read(): Route | undefined;
}

/**
 * Visits every route of a family, in all tables. A router has hundreds of thousands, so objects are
 * created only for routes that are read.
 */
export function scanRoutes(
  nl: NetlinkConnection,
  family: Family,
  visit: (route: RouteInScan) => void,
): void {
  const size = family === 4 ? 4 : 16;
  let payload: [DataView, offset: number, end: number];
  const route: RouteInScan = {
    dst: new Uint8Array(size),
    prefixLength: 0,
    read() {
      const [view, offset, end] = payload;
      return decodeRoute(new Uint8Array(view.buffer, view.byteOffset + offset, end - offset));
    },
  };
  const request = new Encoder(RTMSG.SIZE).u8(addressFamily(family)).zero(RTMSG.SIZE - 1).finish();
  const look = (view: DataView, offset: number, end: number) => {
    payload = [view, offset, end];
    route.prefixLength = view.getUint8(offset + RTMSG.DST_LEN);
    route.dst.fill(0);
    const dst = findAttribute(view, offset + RTMSG.SIZE, end, RTA.DST);
    for (let index = 0; dst !== undefined && index < size; index++) {
      route.dst[index] = view.getUint8(dst + index);
    }
    visit(route);
  };
  // Without IPv6 there are none.
  tolerate(
    ["EAFNOSUPPORT", "EOPNOTSUPP"],
    () => nl.scan(RTM.GETROUTE, request, { action: "list", object: "routes" }, look),
  );
}

/** The offset of an attribute's value. `end` is the end of the message. */
function findAttribute(
  view: DataView,
  offset: number,
  end: number,
  wanted: number,
): number | undefined {
  while (offset + NLA.HDRLEN <= end) {
    const length = view.getUint16(offset, LITTLE_ENDIAN);
    if (view.getUint16(offset + 2, LITTLE_ENDIAN) === wanted) return offset + NLA.HDRLEN;
    offset += Math.max(NLA.HDRLEN, align(length));
  }
  return undefined;
}

/**
 * The links of the default route, of IPv4 or else of IPv6. The kernel is asked, so that policy
 * rules, metrics, and a VPN that splits the default route are taken into account.
 *
 * @returns several links if there are several next hops; none without a default route
 */
export function linksOut(nl: NetlinkConnection): Link[] {
  for (const address of ELSEWHERE) {
    const route = matchRoute(nl, address);
    if (route?.type !== "unicast") continue;
    const indexes = route.oif !== undefined
      ? [route.oif]
      : route.hops ?? (route.nexthop === undefined ? [] : nexthopLinks(nl, route.nexthop));
    const links = [...new Set(indexes)].flatMap((index) => getLink(nl, index) ?? []);
    if (links.length > 0) return links;
  }
  return [];
}

/** The indexes of the links of a nexthop object, or of a group of them. */
function nexthopLinks(nl: NetlinkConnection, id: number): number[] {
  const request = new Encoder(16).zero(NHMSG_SIZE).attrU32(NHA.ID, id).finish();
  const subject = { action: "find", object: `nexthop ${id}` };
  const decoder = new Decoder(nl.query(RTM.GETNEXTHOP, request, subject).payload);
  decoder.skip(NHMSG_SIZE);
  const links: number[] = [];
  for (const { type, value } of decoder.attributes()) {
    if (type === NHA.OIF) links.push(value.asU32());
    // struct nexthop_grp: id, weights; groups do not nest.
    while (type === NHA.GROUP && value.remaining >= 8) {
      links.push(...nexthopLinks(nl, value.u32()));
      value.skip(4);
    }
  }
  return links;
}
