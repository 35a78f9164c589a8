/**
 * Encodes and decodes DHCP messages (RFC 2131, and long options of RFC 3396).
 *
 * @module
 */

import { bytesToIp, ipToBytes } from "../inet/ip.ts";
import { ETH_ALEN, formatMac, parseMac } from "../inet/mac.ts";
import {
  DhcpFormatError,
  DhcpOption,
  type DhcpOptions,
  OPTION_LENGTHS,
  Overload,
} from "./options.ts";

/** `op` of RFC 2131. */
export const BootpOp = { REQUEST: 1, REPLY: 2 } as const;
/** `htype` of RFC 1700. */
const ARPHRD_ETHER = 1;

/** Offsets of the fixed fields (RFC 2131, figure 1). */
const Field = {
  OP: 0,
  HTYPE: 1,
  HLEN: 2,
  HOPS: 3,
  XID: 4,
  SECS: 8,
  FLAGS: 10,
  CIADDR: 12,
  YIADDR: 16,
  SIADDR: 20,
  GIADDR: 24,
  CHADDR: 28,
  SNAME: 44,
  FILE: 108,
  COOKIE: 236,
  OPTIONS: 240,
} as const;

const FLAG_BROADCAST = 0x8000;
const MAGIC_COOKIE = 0x63825363;
/** The size of a BOOTP message, the minimum that relays and old clients expect (RFC 1542). */
const MINIMUM_SIZE = 300;
/** The size of a message in a datagram of 576 bytes, which every client accepts (RFC 2131). */
export const DEFAULT_MAXIMUM_SIZE = 576 - 28;
/** The maximum length of one instance of an option. */
const MAX_OPTION = 255;

/** A DHCP message. */
export interface DhcpMessage {
  /** {@linkcode BootpOp}. */
  readonly op: number;
  /** Identifies an exchange; 32 bits. */
  readonly xid: number;
  /** Seconds since the client started. */
  readonly secs: number;
  readonly hops: number;
  /** Whether the client can only receive broadcasts until it has its address. */
  readonly broadcast: boolean;
  /** The client's present address, or 0.0.0.0. */
  readonly ciaddr: string;
  /** The address that the client gets. */
  readonly yiaddr: string;
  readonly siaddr: string;
  /** The relay's address. */
  readonly giaddr: string;
  /** The client's Ethernet address. */
  readonly chaddr: string;
  readonly sname: string;
  readonly file: string;
  readonly options: DhcpOptions;
}

/**
 * Decodes a message, with the options in overloaded header fields.
 *
 * @param bytes the payload of a UDP datagram; it is not kept
 * @throws {DhcpFormatError} when it is malformed, plain BOOTP, or not for Ethernet
 */
export function decodeDhcp(bytes: Uint8Array): DhcpMessage {
  if (bytes.length < Field.OPTIONS) {
    throw new DhcpFormatError("the message is cut short", bytes.length);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const op = view.getUint8(Field.OP);
  if (op !== BootpOp.REQUEST && op !== BootpOp.REPLY) {
    throw new DhcpFormatError(`op ${op} is neither a request nor a reply`, Field.OP);
  }
  if (view.getUint8(Field.HTYPE) !== ARPHRD_ETHER || view.getUint8(Field.HLEN) !== ETH_ALEN) {
    throw new DhcpFormatError("the hardware address is not of Ethernet", Field.HTYPE);
  }
  if (view.getUint32(Field.COOKIE, false) !== MAGIC_COOKIE) {
    throw new DhcpFormatError("the magic cookie is missing", Field.COOKIE);
  }
  const { options, overload } = decodeOptions(bytes);
  const ip = (offset: number) => bytesToIp(bytes.subarray(offset, offset + 4));
  return {
    op,
    xid: view.getUint32(Field.XID, false),
    secs: view.getUint16(Field.SECS, false),
    hops: view.getUint8(Field.HOPS),
    broadcast: (view.getUint16(Field.FLAGS, false) & FLAG_BROADCAST) !== 0,
    ciaddr: ip(Field.CIADDR),
    yiaddr: ip(Field.YIADDR),
    siaddr: ip(Field.SIADDR),
    giaddr: ip(Field.GIADDR),
    chaddr: formatMac(bytes.subarray(Field.CHADDR, Field.CHADDR + ETH_ALEN)),
    sname: (overload & Overload.SNAME) ? "" : decodeText(bytes.subarray(Field.SNAME, Field.FILE)),
    file: (overload & Overload.FILE) ? "" : decodeText(bytes.subarray(Field.FILE, Field.COOKIE)),
    options,
  };
}

function decodeText(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return String.fromCharCode(...(end < 0 ? bytes : bytes.subarray(0, end)));
}

/** Encodes text for a field: truncated to its size, NUL-padded. */
function encodeText(text: string, field: Uint8Array): void {
  for (let index = 0; index < Math.min(text.length, field.length); index++) {
    field[index] = text.charCodeAt(index);
  }
}

function decodeOptions(bytes: Uint8Array): { options: DhcpOptions; overload: number } {
  const options = new Map<number, Uint8Array>();
  collectOptions(bytes, Field.OPTIONS, bytes.length, options);
  const value = options.get(DhcpOption.OVERLOAD);
  if (value === undefined) return { options, overload: 0 };
  const overload = value[0]!;
  if (overload < 1 || overload > (Overload.FILE | Overload.SNAME)) {
    throw new DhcpFormatError(`option 52 (overload) is ${overload}`, Field.OPTIONS);
  }
  options.delete(DhcpOption.OVERLOAD);
  // RFC 3396: the parts of a long option follow each other in this order.
  if (overload & Overload.FILE) collectOptions(bytes, Field.FILE, Field.COOKIE, options);
  if (overload & Overload.SNAME) collectOptions(bytes, Field.SNAME, Field.FILE, options);
  options.delete(DhcpOption.OVERLOAD);
  return { options, overload };
}

/** Reads the options of one field. The end option may be missing. */
function collectOptions(
  bytes: Uint8Array,
  start: number,
  end: number,
  options: Map<number, Uint8Array>,
): void {
  let offset = start;
  while (offset < end) {
    const code = bytes[offset]!;
    if (code === DhcpOption.END) return;
    if (code === DhcpOption.PAD) {
      offset++;
      continue;
    }
    const length = offset + 1 < end ? bytes[offset + 1]! : end;
    const next = offset + 2 + length;
    if (next > end) throw new DhcpFormatError(`option ${code} is cut short`, offset);
    const earlier = options.get(code);
    const value = bytes.slice(offset + 2, next);
    const whole = earlier === undefined ? value : Uint8Array.of(...earlier, ...value);
    if (whole.length !== (OPTION_LENGTHS[code] ?? whole.length)) {
      throw new DhcpFormatError(`option ${code} has ${whole.length} bytes`, offset);
    }
    options.set(code, whole);
    offset = next;
  }
}

/**
 * Encodes a message, padded to BOOTP's size.
 *
 * Options are written in the order of their map, and split if they have more than 255 bytes. An
 * option that does not fit is left out, so the most important ones come first.
 *
 * @param maximumSize the longest message that the client accepts, in bytes
 */
export function encodeDhcp(
  message: DhcpMessage,
  maximumSize: number = DEFAULT_MAXIMUM_SIZE,
): Uint8Array<ArrayBuffer> {
  const limit = Math.max(maximumSize, MINIMUM_SIZE);
  const bytes = new Uint8Array(limit);
  const view = new DataView(bytes.buffer);
  view.setUint8(Field.OP, message.op);
  view.setUint8(Field.HTYPE, ARPHRD_ETHER);
  view.setUint8(Field.HLEN, ETH_ALEN);
  view.setUint8(Field.HOPS, message.hops);
  view.setUint32(Field.XID, message.xid, false);
  view.setUint16(Field.SECS, message.secs, false);
  view.setUint16(Field.FLAGS, message.broadcast ? FLAG_BROADCAST : 0, false);
  bytes.set(ipToBytes(message.ciaddr), Field.CIADDR);
  bytes.set(ipToBytes(message.yiaddr), Field.YIADDR);
  bytes.set(ipToBytes(message.siaddr), Field.SIADDR);
  bytes.set(ipToBytes(message.giaddr), Field.GIADDR);
  bytes.set(parseMac(message.chaddr), Field.CHADDR);
  encodeText(message.sname, bytes.subarray(Field.SNAME, Field.FILE));
  encodeText(message.file, bytes.subarray(Field.FILE, Field.COOKIE));
  view.setUint32(Field.COOKIE, MAGIC_COOKIE, false);
  let offset: number = Field.OPTIONS;
  for (const [code, value] of message.options) {
    const parts = Math.max(1, Math.ceil(value.length / MAX_OPTION));
    if (offset + 2 * parts + value.length > limit - 1) continue;
    for (let part = 0; part < parts; part++) {
      const bytesOfPart = value.subarray(part * MAX_OPTION, (part + 1) * MAX_OPTION);
      bytes[offset++] = code;
      bytes[offset++] = bytesOfPart.length;
      bytes.set(bytesOfPart, offset);
      offset += bytesOfPart.length;
    }
  }
  bytes[offset++] = DhcpOption.END;
  return bytes.subarray(0, Math.max(offset, MINIMUM_SIZE));
}
