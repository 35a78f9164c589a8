/**
 * Neighbours: `struct ndmsg` and NDA attributes, and `ip neighbour` upon them.
 *
 * @module
 */

import { bytesToIp, ipToBytes } from "../inet/ip.ts";
import { ETH_ALEN, formatMac, parseMac } from "../inet/mac.ts";
import { Errno } from "../sys/libc.ts";
import { addressFamily, decodeIp, ipFamily } from "./address.ts";
import type { NetlinkConnection } from "./connection.ts";
import { NetlinkError, type Subject } from "./errors.ts";
import { linkLabel } from "./link.ts";
import { NLM_F, RTM } from "./message.ts";
import { Decoder, Encoder } from "./wire.ts";

/** Neighbour attributes (linux/neighbour.h). */
export const NDA = { DST: 1, LLADDR: 2, IFINDEX: 8 } as const;

/** Neighbour states (linux/neighbour.h), by the names `ip` uses. */
export const NUD = {
  incomplete: 0x01,
  reachable: 0x02,
  stale: 0x04,
  delay: 0x08,
  probe: 0x10,
  failed: 0x20,
  noarp: 0x40,
  permanent: 0x80,
} as const;

/** What the kernel thinks of a neighbour. */
export type NeighbourState = keyof typeof NUD | "none";

/** Neighbour flags (linux/neighbour.h). */
export const NTF = { PROXY: 0x08, ROUTER: 0x80 } as const;

const STATES = new Map<number, NeighbourState>(
  Object.entries(NUD).map(([name, value]) => [value, name as NeighbourState]),
);

/** A neighbour of a link. */
export interface Neighbour {
  /** The link's index. */
  readonly index: number;
  readonly family: 4 | 6;
  readonly address: string;
  readonly mac?: string;
  readonly state: NeighbourState;
  readonly router: boolean;
}

/** A neighbour to be entered. */
export interface NeighbourRequest {
  readonly index: number;
  readonly address: string;
  readonly mac: string;
  /** `"permanent"` unless given. */
  readonly state?: keyof typeof NUD;
}

/** The payload of RTM_NEWNEIGH, and without a MAC that of RTM_DELNEIGH. */
export function encodeNeighbour(
  request: Omit<NeighbourRequest, "mac"> & { readonly mac?: string },
): Uint8Array<ArrayBuffer> {
  const bytes = ipToBytes(request.address);
  // struct ndmsg: family, padding, index, state, flags, type.
  const encoder = new Encoder(48).u8(addressFamily(bytes.length === 4 ? 4 : 6)).zero(3)
    .i32(request.index).u16(NUD[request.state ?? "permanent"]).u8(0).u8(0).attrBytes(
      NDA.DST,
      bytes,
    );
  if (request.mac !== undefined) encoder.attrBytes(NDA.LLADDR, parseMac(request.mac));
  return encoder.finish();
}

/**
 * Reads the payload of RTM_NEWNEIGH.
 *
 * @returns nothing for a family that is none of IP (a bridge's forwarding table)
 * @throws {DecodeError} when it is malformed
 */
export function decodeNeighbour(payload: Uint8Array): Neighbour | undefined {
  const decoder = new Decoder(payload);
  const family = ipFamily(decoder.u8());
  const index = decoder.skip(3).i32();
  const state = STATES.get(decoder.u16()) ?? "none";
  const flags = decoder.u8();
  decoder.skip(1);
  if (family === undefined) return undefined;
  let address = bytesToIp(new Uint8Array(family === 4 ? 4 : 16));
  let mac: string | undefined;
  for (const { type, value } of decoder.attributes()) {
    if (type === NDA.DST) address = decodeIp(value, family);
    else if (type === NDA.LLADDR && value.remaining === ETH_ALEN) mac = formatMac(value.asBytes());
  }
  const router = (flags & NTF.ROUTER) !== 0;
  return { index, family, address, ...(mac === undefined ? {} : { mac }), state, router };
}

/**
 * The neighbours that are known, of all links or of one.
 *
 * Equivalent to: `ip [-4|-6] neighbour show nud all [dev NAME]`
 */
export function listNeighbours(
  nl: NetlinkConnection,
  filter: { readonly index?: number; readonly family?: 4 | 6 } = {},
): Neighbour[] {
  const encoder = new Encoder(32).u8(addressFamily(filter.family)).zero(11);
  if (filter.index !== undefined) encoder.attrU32(NDA.IFINDEX, filter.index);
  const subject = { action: "list", object: "neighbours" };
  const neighbours: Neighbour[] = [];
  for (const message of nl.dump(RTM.GETNEIGH, encoder.finish(), subject)) {
    if (message.type !== RTM.NEWNEIGH) continue;
    const neighbour = decodeNeighbour(message.payload);
    if (neighbour === undefined) continue;
    if (filter.index !== undefined && neighbour.index !== filter.index) continue;
    if (filter.family !== undefined && neighbour.family !== filter.family) continue;
    neighbours.push(neighbour);
  }
  return neighbours;
}

/**
 * Enters a neighbour.
 *
 * Equivalent to: `ip neighbour add ADDRESS lladdr MAC dev NAME [nud STATE]`
 *
 * @returns false when the address has that MAC on that link already
 * @throws {InputError} when the address or the MAC is malformed
 * @throws {NetlinkError} EEXIST when it has another MAC
 */
export function addNeighbour(nl: NetlinkConnection, request: NeighbourRequest): boolean {
  const payload = encodeNeighbour(request);
  try {
    nl.request(RTM.NEWNEIGH, NLM_F.CREATE | NLM_F.EXCL, payload, subjectOf(nl, "add", request));
    return true;
  } catch (error) {
    if (!(error instanceof NetlinkError && error.errno === Errno.EEXIST)) throw error;
    const address = bytesToIp(ipToBytes(request.address));
    const same = listNeighbours(nl, { index: request.index }).some((other) =>
      other.address === address && other.mac === request.mac.toLowerCase()
    );
    if (same) return false;
    throw error;
  }
}

/**
 * Deletes a neighbour.
 *
 * Equivalent to: `ip neighbour delete ADDRESS dev NAME`
 *
 * @returns whether it was there; false also when the link is gone
 * @throws {InputError} when the address is malformed
 */
export function deleteNeighbour(
  nl: NetlinkConnection,
  request: { readonly index: number; readonly address: string },
): boolean {
  const payload = encodeNeighbour({ index: request.index, address: request.address });
  try {
    nl.request(RTM.DELNEIGH, 0, payload, subjectOf(nl, "delete", request));
    return true;
  } catch (error) {
    const absent: number[] = [Errno.ENOENT, Errno.ENODEV];
    if (error instanceof NetlinkError && absent.includes(error.errno)) return false;
    throw error;
  }
}

function subjectOf(
  nl: NetlinkConnection,
  action: string,
  request: { readonly index: number; readonly address: string },
): Subject {
  return {
    action,
    object: () => `neighbour ${request.address} of ${linkLabel(nl, request.index)}`,
  };
}
