/**
 * Connection tracking: the flows the kernel knows, found and deleted (ctnetlink).
 *
 * @module
 */

import { ipToBytes, isIp } from "../inet/ip.ts";
import { IPPROTO, type Protocol } from "../inet/ports.ts";
import { failedWith, tolerate } from "../sys/libc.ts";
import { decodeIp } from "./address.ts";
import type { NetlinkConnection } from "./connection.ts";
import { AF, type Message, NLM_F } from "./message.ts";
import { nfgenmsg, NFGENMSG_LEN, NFNL_SUBSYS, nfnlType } from "./nfnetlink.ts";
import { Decoder, Encoder, type Mutable, NLA } from "./wire.ts";

/** linux/netfilter/nfnetlink_conntrack.h. */
const IPCTNL_MSG_CT = { GET: 1, DELETE: 2, GET_STATS: 5 } as const;
const CTA = { TUPLE_ORIG: 1, TUPLE_REPLY: 2, ID: 12, ZONE: 18, FILTER: 25 } as const;
const CTA_TUPLE = { IP: 1, PROTO: 2 } as const;
const CTA_IP = { V4_SRC: 1, V4_DST: 2, V6_SRC: 3, V6_DST: 4 } as const;
const CTA_PROTO = { NUM: 1, SRC_PORT: 2, DST_PORT: 3 } as const;
const CTA_FILTER = { ORIG_FLAGS: 1, REPLY_FLAGS: 2 } as const;
const CTA_STATS_GLOBAL_ENTRIES = 1;

/** The fields of a tuple that a dump is filtered by (net/netfilter/nf_internals.h). */
const CTA_FILTER_F = { IP_SRC: 1 << 0, PROTO_NUM: 1 << 3, PROTO_DST_PORT: 1 << 5 } as const;

/** Up to this many flows one whole dump costs less than a filtered one for each match. */
const WHOLE_DUMP_FLOWS = 512;

/** Their requests fit into a datagram that every socket sends. */
const DELETES_AT_ONCE = 256;

/** One direction of a flow. */
export interface FlowTuple {
  readonly source: string;
  readonly destination: string;
  /** IP protocol number. */
  readonly protocol: number;
  /** Protocols without ports have none. */
  readonly sourcePort?: number;
  readonly destinationPort?: number;
}

/** A tracked connection: as its first packet was sent, and as answers come, translation included. */
export interface Flow {
  readonly original: FlowTuple;
  readonly reply: FlowTuple;
}

/** Which flows are meant: those that agree in every field given. */
export interface FlowMatch {
  readonly protocol?: Protocol;
  readonly originalSource?: string;
  readonly originalDestination?: string;
  readonly originalDestinationPort?: number;
  /** Who answers: the guest, where the connection came by a mapped port. */
  readonly replySource?: string;
  /** The family, where no address tells it. */
  readonly family?: 4 | 6;
}

interface TrackedFlow extends Flow {
  readonly family: 4 | 6;
  /** What names the flow in a request to delete it, as the kernel wrote it. */
  readonly identity: Uint8Array;
}

/** How many flows the namespace tracks; undefined where the kernel does not tell. */
export function countFlows(nl: NetlinkConnection): number | undefined {
  const type = nfnlType(NFNL_SUBSYS.CTNETLINK, IPCTNL_MSG_CT.GET_STATS);
  const subject = { op: "IPCTNL_MSG_CT_GET_STATS", action: "count", object: "conntrack entries" };
  const answer = nl.query(type, nfgenmsg(AF.UNSPEC).finish(), subject);
  const attributes = new Decoder(answer.payload).skip(NFGENMSG_LEN).attributes();
  return attributes.find(({ type }) => type === CTA_STATS_GLOBAL_ENTRIES)?.value.asU32be();
}

/** Which flows are deleted. */
export interface DeletedFlows {
  /** All that come from one of these, or are answered by one. */
  readonly addresses?: readonly string[];
  readonly matches?: readonly FlowMatch[];
  /** Asked for each flow that matches; false spares it. */
  readonly confirm?: (flow: Flow) => boolean;
}

/**
 * Deletes tracked flows: their next packet is looked at as the first of a new connection.
 *
 * Equivalent to: `conntrack -D …`, once per match
 *
 * @param nl a NETLINK_NETFILTER connection
 */
export function deleteFlows(
  nl: NetlinkConnection,
  { addresses = [], matches = [], confirm = () => true }: DeletedFlows,
): void {
  if (matches.length + addresses.length === 0) return;
  const count = countFlows(nl);
  if (count === 0) return;
  const few = count !== undefined && count <= WHOLE_DUMP_FLOWS || addresses.length > 4;
  if (!few) { for (const address of addresses) flushFlows(nl, address); }
  const whole = few || matches.length > 8;
  const byPort = Map.groupBy(matches, ({ originalDestinationPort }) => originalDestinationPort);
  const isMeant = (flow: Flow) =>
    addresses.some((address) =>
      address === flow.original.source || address === flow.reply.source
    ) ||
    [undefined, flow.original.destinationPort].some((port) =>
        byPort.get(port)?.some((match) => flowAgrees(flow, match))
      ) && confirm(flow);
  for (const filter of whole ? [{}] : matches) {
    deleteEach(nl, dumpFlows(nl, filter).filter(isMeant));
  }
}

/** A flow that {@linkcode findFlowsAside} found, to be deleted. */
export type FoundFlow = TrackedFlow;

/**
 * Finds the flows that agree with one of a few matches, without blocking the calling thread while the
 * kernel walks its table. Each match costs a walk.
 *
 * @param nl a NETLINK_NETFILTER connection that nobody else uses
 */
export async function findFlowsAside(
  nl: NetlinkConnection,
  matches: readonly FlowMatch[],
): Promise<FoundFlow[]> {
  const found: FoundFlow[] = [];
  for (const match of matches) {
    const messages = await nl.dumpAside(DUMP.type, encodeFilter(match), DUMP.subject);
    found.push(...flowsOf(messages).filter((flow) => flowAgrees(flow, match)));
  }
  return found;
}

/**
 * Deletes all flows that come from an address or are answered by it, of which there may be as many
 * as the kernel tracks.
 */
function flushFlows(nl: NetlinkConnection, address: string): void {
  const type = nfnlType(NFNL_SUBSYS.CTNETLINK, IPCTNL_MSG_CT.DELETE);
  const subject = { op: "IPCTNL_MSG_CT_DELETE", action: "delete", object: `flows of ${address}` };
  for (const match of [{ originalSource: address }, { replySource: address }]) {
    try {
      nl.request(type, 0, encodeFilter(match), subject);
    } catch (error) {
      // Before Linux 6.10 the kernel filters dumps only, and takes the tuple for one that lacks a part.
      if (!failedWith(error, "EINVAL", "EOPNOTSUPP")) throw error;
      deleteEach(nl, dumpFlows(nl, match).filter((flow) => flowAgrees(flow, match)));
    }
  }
}

/** Whether a flow agrees with a match in every field given. */
function flowAgrees(flow: Flow, match: FlowMatch): boolean {
  const { original, reply } = flow;
  return (match.protocol === undefined || original.protocol === IPPROTO[match.protocol]) &&
    agrees(match.originalSource, original.source) &&
    agrees(match.originalDestination, original.destination) &&
    agrees(match.originalDestinationPort, original.destinationPort) &&
    agrees(match.replySource, reply.source) &&
    agrees(match.family, isIp(original.source));
}

function agrees<T>(wanted: T | undefined, found: T | undefined): boolean {
  return wanted === undefined || wanted === found;
}

/** The flows that match, as far as the kernel filters: before 5.8 it returns all. */
function dumpFlows(nl: NetlinkConnection, match: FlowMatch): TrackedFlow[] {
  return flowsOf(nl.dump(DUMP.type, encodeFilter(match), DUMP.subject));
}

const DUMP = {
  type: nfnlType(NFNL_SUBSYS.CTNETLINK, IPCTNL_MSG_CT.GET),
  subject: { op: "IPCTNL_MSG_CT_GET", action: "list", object: "conntrack entries" },
} as const;

function flowsOf(messages: readonly Message[]): TrackedFlow[] {
  return messages.map(({ payload }) => decodeFlow(payload)).filter((flow) => flow !== undefined);
}

/** The payload of a dump that the kernel filters by one address, or by protocol and port. */
export function encodeFilter(match: FlowMatch): Uint8Array<ArrayBuffer> {
  const { protocol, originalSource, replySource, originalDestinationPort } = match;
  const address = originalSource ?? replySource;
  const family = match.family ?? (address === undefined ? 0 : isIp(address));
  const payload = nfgenmsg(family === 4 ? AF.INET : family === 6 ? AF.INET6 : AF.UNSPEC);
  const nested = (attribute: number) => attribute | NLA.F_NESTED;
  const flags = (which: number, value: number) =>
    payload.attrNested(nested(CTA.FILTER), (filter) => filter.attrU32(which, value));
  if (address !== undefined) {
    const original = originalSource !== undefined;
    const source = family === 4 ? CTA_IP.V4_SRC : CTA_IP.V6_SRC;
    payload.attrNested(
      nested(original ? CTA.TUPLE_ORIG : CTA.TUPLE_REPLY),
      (tuple) =>
        tuple.attrNested(nested(CTA_TUPLE.IP), (ip) => ip.attrBytes(source, ipToBytes(address))),
    );
    flags(original ? CTA_FILTER.ORIG_FLAGS : CTA_FILTER.REPLY_FLAGS, CTA_FILTER_F.IP_SRC);
  } else if (protocol !== undefined && originalDestinationPort !== undefined && family !== 0) {
    payload.attrNested(
      nested(CTA.TUPLE_ORIG),
      (tuple) =>
        tuple.attrNested(
          nested(CTA_TUPLE.PROTO),
          (proto) =>
            proto.attrU8(CTA_PROTO.NUM, IPPROTO[protocol])
              .attrU16be(CTA_PROTO.DST_PORT, originalDestinationPort),
        ),
    );
    flags(CTA_FILTER.ORIG_FLAGS, CTA_FILTER_F.PROTO_NUM | CTA_FILTER_F.PROTO_DST_PORT);
  }
  return payload.finish();
}

/** Reads a flow; undefined for one that is neither IPv4 nor IPv6. */
export function decodeFlow(payload: Uint8Array): TrackedFlow | undefined {
  let original: FlowTuple | undefined;
  let reply: FlowTuple | undefined;
  const identity = new Encoder();
  for (const { type, value } of new Decoder(payload).skip(NFGENMSG_LEN).attributes()) {
    if (type === CTA.TUPLE_ORIG || type === CTA.ID || type === CTA.ZONE) {
      const bytes = value.bytes(value.remaining);
      identity.attrBytes(type === CTA.TUPLE_ORIG ? type | NLA.F_NESTED : type, bytes);
      if (type === CTA.TUPLE_ORIG) original = decodeTuple(new Decoder(bytes));
    } else if (type === CTA.TUPLE_REPLY) {
      reply = decodeTuple(value);
    }
  }
  if (original === undefined || reply === undefined) return undefined;
  const family = isIp(original.source);
  return family === 0 ? undefined : { original, reply, family, identity: identity.finish() };
}

function decodeTuple(tuple: Decoder): FlowTuple {
  const fields: Mutable<FlowTuple> = { source: "", destination: "", protocol: 0 };
  for (const { type, value } of tuple.attributes()) {
    if (type === CTA_TUPLE.IP) {
      for (const { type, value: address } of value.attributes()) {
        if (type === CTA_IP.V4_SRC) fields.source = decodeIp(address, 4);
        else if (type === CTA_IP.V4_DST) fields.destination = decodeIp(address, 4);
        else if (type === CTA_IP.V6_SRC) fields.source = decodeIp(address, 6);
        else if (type === CTA_IP.V6_DST) fields.destination = decodeIp(address, 6);
      }
    } else if (type === CTA_TUPLE.PROTO) {
      for (const { type, value: field } of value.attributes()) {
        if (type === CTA_PROTO.NUM) fields.protocol = field.asU8();
        else if (type === CTA_PROTO.SRC_PORT) fields.sourcePort = field.asU16be();
        else if (type === CTA_PROTO.DST_PORT) fields.destinationPort = field.asU16be();
      }
    }
  }
  return fields;
}

/** Deletes flows, some hundred at a time: each by itself would be two calls of the kernel. */
export function deleteEach(nl: NetlinkConnection, flows: readonly TrackedFlow[]): void {
  const type = nfnlType(NFNL_SUBSYS.CTNETLINK, IPCTNL_MSG_CT.DELETE);
  const subject = { op: "IPCTNL_MSG_CT_DELETE", action: "delete", object: "conntrack entries" };
  for (let start = 0; start < flows.length; start += DELETES_AT_ONCE) {
    const part = flows.slice(start, start + DELETES_AT_ONCE);
    const requests = part.map(({ family, identity }, index) => ({
      type,
      flags: index === part.length - 1 ? NLM_F.ACK : 0,
      payload: nfgenmsg(family === 4 ? AF.INET : AF.INET6).bytes(identity).finish(),
    }));
    // One may end by itself, or another take its place; the kernel goes on to the next.
    tolerate(["ENOENT"], () => nl.batch(requests, subject));
  }
}
