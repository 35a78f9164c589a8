/**
 * Encodes and decodes netlink messages: `struct nlmsghdr` and its payload (linux/netlink.h).
 *
 * @module
 */

import { Errno } from "../sys/libc.ts";
import { DecodeError } from "./errors.ts";
import { align, Decoder, LITTLE_ENDIAN } from "./wire.ts";

/** `sizeof(struct nlmsghdr)`. */
export const NLMSG_HDRLEN = 16;

/** Protocols of the netlink family (linux/netlink.h). */
export const NETLINK = { ROUTE: 0, NETFILTER: 12, GENERIC: 16 } as const;

/** Message types of all protocols (linux/netlink.h). */
export const NLMSG = { NOOP: 1, ERROR: 2, DONE: 3, OVERRUN: 4 } as const;

/** Message flags (linux/netlink.h). */
export const NLM_F = {
  REQUEST: 0x01,
  MULTI: 0x02,
  ACK: 0x04,
  ECHO: 0x08,
  DUMP_INTR: 0x10,
  /** Requests for data: ROOT and MATCH together. */
  DUMP: 0x300,
  /** Requests for a new object. */
  EXCL: 0x200,
  CREATE: 0x400,
  APPEND: 0x800,
  /** Acknowledgements. */
  CAPPED: 0x100,
  ACK_TLVS: 0x200,
} as const;

/** Attributes of an extended acknowledgement, `enum nlmsgerr_attrs` (linux/netlink.h). */
export const NLMSGERR_ATTR = { MSG: 1, OFFS: 2 } as const;

/** Message types of NETLINK_ROUTE (linux/rtnetlink.h). */
export const RTM = {
  NEWLINK: 16,
  DELLINK: 17,
  GETLINK: 18,
  SETLINK: 19,
  NEWADDR: 20,
  DELADDR: 21,
  GETADDR: 22,
  NEWROUTE: 24,
  DELROUTE: 25,
  GETROUTE: 26,
  NEWQDISC: 36,
  DELQDISC: 37,
  GETQDISC: 38,
  NEWTFILTER: 44,
  DELTFILTER: 45,
  GETTFILTER: 46,
  NEWNETCONF: 80,
  DELNETCONF: 81,
  NEWNEXTHOP: 104,
  GETNEXTHOP: 106,
} as const;

/** Address families of netlink payloads (linux/socket.h). */
export const AF = { UNSPEC: 0, INET: 2, BRIDGE: 7, INET6: 10, NETLINK: 16 } as const;

/** One netlink message. */
export interface Message {
  readonly type: number;
  readonly flags: number;
  readonly seq: number;
  /** Port ID of the socket that a reply is for. */
  readonly pid: number;
  readonly payload: Uint8Array;
}

/** Writes a message, header and payload. */
export function encodeMessage(message: Message): Uint8Array<ArrayBuffer> {
  const { payload } = message;
  const bytes = new Uint8Array(NLMSG_HDRLEN + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, LITTLE_ENDIAN);
  view.setUint16(4, message.type, LITTLE_ENDIAN);
  view.setUint16(6, message.flags, LITTLE_ENDIAN);
  view.setUint32(8, message.seq, LITTLE_ENDIAN);
  view.setUint32(12, message.pid, LITTLE_ENDIAN);
  bytes.set(payload, NLMSG_HDRLEN);
  return bytes;
}

/**
 * Reads the messages of one datagram. Payloads are views of the input.
 *
 * @throws {DecodeError} when a header claims more than is there, or less than a header
 */
export function decodeMessages(datagram: Uint8Array): Message[] {
  const messages: Message[] = [];
  walkMessages(datagram, (view, offset, end) => {
    const payload = datagram.subarray(offset + NLMSG_HDRLEN, end);
    messages.push({ ...headerAt(view, offset), payload });
  });
  return messages;
}

/** Reads a message's header. */
export function headerAt(view: DataView, offset: number): Omit<Message, "payload"> {
  return {
    type: view.getUint16(offset + 4, LITTLE_ENDIAN),
    flags: view.getUint16(offset + 6, LITTLE_ENDIAN),
    seq: view.getUint32(offset + 8, LITTLE_ENDIAN),
    pid: view.getUint32(offset + 12, LITTLE_ENDIAN),
  };
}

/**
 * Calls a function with the offset of each message of a datagram. Creates no objects.
 *
 * @throws {DecodeError} when a header claims more than is there, or less than a header
 */
export function walkMessages(
  datagram: Uint8Array,
  visit: (view: DataView, offset: number, end: number) => void,
): void {
  const view = new DataView(datagram.buffer, datagram.byteOffset, datagram.byteLength);
  let offset = 0;
  while (offset < datagram.length) {
    const remaining = datagram.length - offset;
    if (remaining < NLMSG_HDRLEN) {
      throw new DecodeError(`${remaining} bytes where a message header is needed`, offset);
    }
    const length = view.getUint32(offset, LITTLE_ENDIAN);
    if (length < NLMSG_HDRLEN || length > remaining) {
      throw new DecodeError(`message claims ${length} bytes of ${remaining}`, offset);
    }
    visit(view, offset, offset + length);
    offset += align(length);
  }
}

/** The kernel's answer to a request: success or an error. */
export interface Acknowledgement {
  /** Positive error number, 0 for success. */
  readonly errno: number;
  /** The kernel's message (extended acknowledgement). */
  readonly extAck?: string;
  /** Offset of the error in the request, including its header. */
  readonly offset?: number;
}

/** Reads an NLMSG_ERROR or NLMSG_DONE message. */
export function decodeAcknowledgement(message: Message): Acknowledgement {
  const { payload, type, flags } = message;
  // In older kernels and some families, NLMSG_DONE of a dump is empty.
  if (type === NLMSG.DONE && payload.length < 4) return { errno: 0 };
  const decoder = new Decoder(payload);
  const ack: { errno: number; extAck?: string; offset?: number } = { errno: -decoder.i32() };
  if (ack.errno === 0) ack.errno = 0; // not -0
  if ((flags & NLM_F.ACK_TLVS) === 0) return ack;
  if (type === NLMSG.ERROR) {
    const requestLength = decoder.u32();
    decoder.skip(NLMSG_HDRLEN - 4);
    // Without NLM_F_CAPPED the request's payload is repeated before the attributes.
    if ((flags & NLM_F.CAPPED) === 0) decoder.skip(align(requestLength) - NLMSG_HDRLEN);
  }
  for (const { type: attribute, value } of decoder.attributes()) {
    if (attribute === NLMSGERR_ATTR.MSG) ack.extAck = value.asString();
    else if (attribute === NLMSGERR_ATTR.OFFS) ack.offset = value.asU32();
  }
  return ack;
}

/** The answer to a request, as far as it has arrived. */
export interface Reply {
  readonly messages: Message[];
  /** Whether the table changed during the dump, so that the messages are inconsistent. */
  interrupted: boolean;
  /** Present when the answer is complete. */
  verdict?: Acknowledgement;
}

/**
 * Adds the messages of one datagram to the reply of the request with that sequence number. Ignores
 * others, which belong to an abandoned request. A request without acknowledgement and dump is
 * answered by one message.
 */
export function collectReply(
  reply: Reply,
  messages: readonly Message[],
  request: { readonly seq: number; readonly flags: number },
): void {
  const awaitsVerdict = (request.flags & (NLM_F.ACK | NLM_F.DUMP)) !== 0;
  for (const message of messages) {
    if (message.seq !== request.seq) continue;
    if ((message.flags & NLM_F.DUMP_INTR) !== 0) reply.interrupted = true;
    if (message.type === NLMSG.OVERRUN) reply.verdict = { errno: Errno.ENOBUFS };
    else if (message.type === NLMSG.ERROR || message.type === NLMSG.DONE) {
      reply.verdict = decodeAcknowledgement(message);
    } else if (message.type !== NLMSG.NOOP) {
      reply.messages.push(message);
      if (!awaitsVerdict) reply.verdict = { errno: 0 };
    }
    if (reply.verdict !== undefined) return;
  }
}

const ROUTE_NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(RTM).map(([name, type]) => [type, `RTM_${name}`]),
);

/** The kernel's name of a message type of NETLINK_ROUTE. */
export function routeMessageName(type: number): string {
  return ROUTE_NAMES.get(type) ?? `message type ${type}`;
}
