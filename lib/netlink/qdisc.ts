/**
 * Queueing disciplines for filters: `struct tcmsg`, and `tc qdisc`.
 *
 * @module
 */

import { failedWith } from "../sys/libc.ts";
import type { NetlinkConnection } from "./connection.ts";
import type { Change } from "./requests.ts";
import { NetlinkError, type Subject } from "./errors.ts";
import { linkLabel } from "./link.ts";
import { AF, NLM_F, RTM } from "./message.ts";
import { Decoder, Encoder } from "./wire.ts";

/** Handles (linux/pkt_sched.h). */
export const TC_H = {
  ROOT: 0xffffffff,
  /** Parent of the ingress and the clsact qdisc. */
  INGRESS: 0xfffffff1,
  /** Handle of both, `ffff:`, and parent of the ingress qdisc's filters. */
  INGRESS_HANDLE: 0xffff0000,
  /** Parents of clsact's filters: its ingress hook … */
  CLSACT_INGRESS: 0xfffffff2,
  /** … and its egress hook. */
  CLSACT_EGRESS: 0xfffffff3,
} as const;

/** Traffic control attributes (linux/rtnetlink.h). */
export const TCA = { KIND: 1, OPTIONS: 2 } as const;

/** `struct tcmsg` (linux/rtnetlink.h). */
export interface TcHeader {
  /** Index of the link. */
  readonly index: number;
  readonly handle: number;
  readonly parent: number;
  /** For a filter: the priority in the upper half, the protocol in network order in the lower. */
  readonly info: number;
}

/** Begins a traffic control payload. */
export function encodeTcHeader(header: TcHeader, capacity = 64): Encoder {
  return new Encoder(capacity).u8(AF.UNSPEC).zero(3).i32(header.index).u32(header.handle)
    .u32(header.parent).u32(header.info);
}

/** Reads the head of a traffic control payload. */
export function decodeTcHeader(decoder: Decoder): TcHeader {
  const index = decoder.skip(4).i32();
  return { index, handle: decoder.u32(), parent: decoder.u32(), info: decoder.u32() };
}

/** A queueing discipline. */
export interface Qdisc extends Omit<TcHeader, "info"> {
  readonly kind: string;
}

/** The qdiscs with filters on received frames. */
export type IngressKind = "ingress" | "clsact";

/** The payload of RTM_NEWQDISC and RTM_DELQDISC for ingress and clsact. */
function encodeIngressQdisc(index: number, kind?: IngressKind): Uint8Array<ArrayBuffer> {
  const handle = TC_H.INGRESS_HANDLE;
  const encoder = encodeTcHeader({ index, handle, parent: TC_H.INGRESS, info: 0 });
  if (kind !== undefined) encoder.attrString(TCA.KIND, kind);
  return encoder.finish();
}

/**
 * Reads the payload of RTM_NEWQDISC.
 *
 * @throws {DecodeError} when it is malformed
 */
export function decodeQdisc(payload: Uint8Array): Qdisc {
  const decoder = new Decoder(payload);
  const { index, handle, parent } = decodeTcHeader(decoder);
  const kind = decoder.attributes().find(({ type }) => type === TCA.KIND)?.value.asString() ?? "";
  return { index, kind, handle, parent };
}

/**
 * The qdiscs of the namespace, or of one link.
 *
 * Equivalent to: `tc qdisc show [dev NAME]`
 */
export function listQdiscs(nl: NetlinkConnection, index?: number): Qdisc[] {
  const payload = encodeTcHeader({ index: index ?? 0, handle: 0, parent: 0, info: 0 }).finish();
  const subject = { action: "list", object: "qdiscs" };
  return nl.dump(RTM.GETQDISC, payload, subject)
    .filter((message) => message.type === RTM.NEWQDISC)
    .map((message) => decodeQdisc(message.payload))
    .filter((qdisc) => index === undefined || qdisc.index === index);
}

/**
 * Adds the ingress qdisc to a link.
 *
 * Equivalent to: `tc qdisc add dev NAME ingress`
 *
 * @returns false if it exists already
 * @throws {NetlinkError} EEXIST when it has clsact, which excludes ingress
 */
export function addIngressQdisc(nl: NetlinkConnection, index: number): boolean {
  return nl.change(qdiscAddition(nl, index, "ingress"));
}

/**
 * Adds the clsact qdisc to a link, which also has filters on sent frames.
 *
 * Equivalent to: `tc qdisc add dev NAME clsact`
 *
 * @returns false if it exists already
 * @throws {NetlinkError} EEXIST when it has ingress, which excludes clsact
 */
export function addClsactQdisc(nl: NetlinkConnection, index: number): boolean {
  return nl.change(qdiscAddition(nl, index, "clsact"));
}

/** What {@linkcode addIngressQdisc} and {@linkcode addClsactQdisc} ask for. */
export function qdiscAddition(nl: NetlinkConnection, index: number, kind: IngressKind): Change {
  return {
    type: RTM.NEWQDISC,
    flags: NLM_F.CREATE | NLM_F.EXCL,
    payload: encodeIngressQdisc(index, kind),
    subject: { ...subjectOf(nl, "add", index, kind), feature: "CONFIG_NET_SCH_INGRESS" },
    refused: (error) => {
      if (!failedWith(error, "EEXIST") || ingressKind(nl, index) !== kind) throw error;
    },
  };
}

/** Which of the two qdiscs a link has, if any. */
export function ingressKind(nl: NetlinkConnection, index: number): IngressKind | undefined {
  const qdisc = listQdiscs(nl, index).find(({ parent }) => parent === TC_H.INGRESS);
  return qdisc?.kind === "ingress" || qdisc?.kind === "clsact" ? qdisc.kind : undefined;
}

/**
 * Deletes the ingress or clsact qdisc of a link, with its filters.
 *
 * Equivalent to: `tc qdisc delete dev NAME ingress` (or `clsact`)
 *
 * @returns whether it existed; false also if the link is gone
 */
export function deleteQdisc(nl: NetlinkConnection, index: number): boolean {
  const subject = subjectOf(nl, "delete", index, "ingress");
  try {
    nl.request(RTM.DELQDISC, 0, encodeIngressQdisc(index), subject);
    return true;
  } catch (error) {
    if (failedWith(error, "ENODEV")) return false;
    const refused = error instanceof NetlinkError && error.code !== "EPERM";
    if (refused && ingressKind(nl, index) === undefined) return false;
    throw error;
  }
}

function subjectOf(
  nl: NetlinkConnection,
  action: string,
  index: number,
  kind: string,
): Subject {
  return { action, object: () => `${kind} qdisc of ${linkLabel(nl, index)}` };
}
