/**
 * The encoding of netlink: writes and reads fixed fields and attributes.
 *
 * Fields are in the host's byte order unless the method's name ends in `be`. An attribute is a
 * `struct nlattr` (length, type) with its value, padded to four bytes (linux/netlink.h).
 *
 * @module
 */

import { DecodeError } from "./errors.ts";

/** Attribute type flags and sizes (linux/netlink.h). */
export const NLA = {
  F_NESTED: 0x8000,
  TYPE_MASK: 0x3fff,
  ALIGNTO: 4,
  HDRLEN: 4,
} as const;

/** A value that is encoded field by field. */
export type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** Whether the machine stores the low byte first. */
export const LITTLE_ENDIAN: boolean = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

const textEncoder = new TextEncoder();
const textDecoder = new TextDecoder();

/** Rounds a length up to netlink's alignment of four bytes (`NLMSG_ALIGN`, `NLA_ALIGN`). */
export function align(length: number): number {
  return (length + NLA.ALIGNTO - 1) & ~(NLA.ALIGNTO - 1);
}

/** Swaps a 16-bit number to network order, for a field that is written in host order. */
export function htons(value: number): number {
  return LITTLE_ENDIAN ? ((value & 0xff) << 8) | ((value >> 8) & 0xff) : value & 0xffff;
}

/**
 * Writes fixed fields and attributes into a buffer that grows.
 *
 * ```ts
 * const payload = new Encoder().u8(0).zero(15).string(IFLA.IFNAME, "eth0").finish();
 * ```
 *
 * The plain methods append a field; those named `attr…` append a whole attribute.
 */
export class Encoder {
  #bytes: Uint8Array<ArrayBuffer>;
  #view: DataView<ArrayBuffer>;
  #length = 0;

  constructor(capacity = 256) {
    this.#bytes = new Uint8Array(capacity);
    this.#view = new DataView(this.#bytes.buffer);
  }

  /** Bytes written so far. */
  get length(): number {
    return this.#length;
  }

  u8(value: number): this {
    const at = this.#reserve(1);
    this.#bytes[at] = value;
    return this;
  }

  u16(value: number): this {
    const at = this.#reserve(2);
    this.#view.setUint16(at, value, LITTLE_ENDIAN);
    return this;
  }

  u16be(value: number): this {
    const at = this.#reserve(2);
    this.#view.setUint16(at, value);
    return this;
  }

  u32(value: number): this {
    const at = this.#reserve(4);
    this.#view.setUint32(at, value, LITTLE_ENDIAN);
    return this;
  }

  u32be(value: number): this {
    const at = this.#reserve(4);
    this.#view.setUint32(at, value);
    return this;
  }

  i32(value: number): this {
    const at = this.#reserve(4);
    this.#view.setInt32(at, value, LITTLE_ENDIAN);
    return this;
  }

  u64(value: bigint): this {
    const at = this.#reserve(8);
    this.#view.setBigUint64(at, value, LITTLE_ENDIAN);
    return this;
  }

  bytes(value: Uint8Array): this {
    const at = this.#reserve(value.length);
    this.#bytes.set(value, at);
    return this;
  }

  /** Appends `count` zero bytes. */
  zero(count: number): this {
    this.#reserve(count);
    return this;
  }

  attrU8(type: number, value: number): this {
    return this.#header(type, 1).u8(value).#pad();
  }

  attrU16(type: number, value: number): this {
    return this.#header(type, 2).u16(value).#pad();
  }

  attrU16be(type: number, value: number): this {
    return this.#header(type, 2).u16be(value).#pad();
  }

  attrU32(type: number, value: number): this {
    return this.#header(type, 4).u32(value);
  }

  attrU32be(type: number, value: number): this {
    return this.#header(type, 4).u32be(value);
  }

  attrU64be(type: number, value: bigint): this {
    const at = this.#header(type, 8).#reserve(8);
    this.#view.setBigUint64(at, value);
    return this;
  }

  attrBytes(type: number, value: Uint8Array): this {
    return this.#header(type, value.length).bytes(value).#pad();
  }

  /** A string with its final NUL. */
  attrString(type: number, value: string): this {
    const text = textEncoder.encode(value);
    return this.#header(type, text.length + 1).bytes(text).zero(1).#pad();
  }

  /** A string without a final NUL, as iproute2 sends the `kind` of a link. */
  attrText(type: number, value: string): this {
    return this.attrBytes(type, textEncoder.encode(value));
  }

  /**
   * An attribute whose value `write` appends. Add {@linkcode NLA.F_NESTED} to the type if the
   * kernel requires it (nfnetlink, and newer attributes of rtnetlink).
   */
  attrNested(type: number, write: (encoder: this) => void): this {
    const start = this.#length;
    this.#header(type, 0);
    write(this);
    const length = this.#length - start;
    if (length > 0xffff) throw new RangeError(`attribute ${type} takes ${length} bytes`);
    this.#view.setUint16(start, length, LITTLE_ENDIAN);
    return this.#pad();
  }

  /** The written bytes, not copied: do not use the encoder afterwards. */
  finish(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.#length);
  }

  #header(type: number, valueLength: number): this {
    const length = NLA.HDRLEN + valueLength;
    if (length > 0xffff) throw new RangeError(`attribute ${type} takes ${length} bytes`);
    return this.u16(length).u16(type);
  }

  #pad(): this {
    return this.zero(align(this.#length) - this.#length);
  }

  /** May replace the buffer: call it before any use of `#bytes` and `#view`. */
  #reserve(count: number): number {
    const at = this.#length;
    const end = at + count;
    if (end > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(2 * this.#bytes.length, end));
      grown.set(this.#bytes);
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    this.#length = end;
    return at;
  }
}

/** An attribute: its type without flags, and its value. */
export interface Attribute {
  readonly type: number;
  readonly value: Decoder;
}

/**
 * Reads fixed fields and attributes from a range of bytes.
 *
 * `u8()`, `u16()`, … read the next field. `asU8()`, `asU16()`, … read the whole range as one value,
 * and throw if its length differs. Offsets in errors count from the start of the input.
 */
export class Decoder {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #offset: number;
  readonly #end: number;

  constructor(bytes: Uint8Array, start = 0, end = bytes.length, view?: DataView) {
    this.#bytes = bytes;
    this.#view = view ?? new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#offset = start;
    this.#end = end;
  }

  /** The offset of the next field. */
  get offset(): number {
    return this.#offset;
  }

  /** The number of bytes that are not read yet. */
  get remaining(): number {
    return this.#end - this.#offset;
  }

  u8(): number {
    return this.#view.getUint8(this.#take(1));
  }

  u16(): number {
    return this.#view.getUint16(this.#take(2), LITTLE_ENDIAN);
  }

  u16be(): number {
    return this.#view.getUint16(this.#take(2));
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4), LITTLE_ENDIAN);
  }

  u32be(): number {
    return this.#view.getUint32(this.#take(4));
  }

  i32(): number {
    return this.#view.getInt32(this.#take(4), LITTLE_ENDIAN);
  }

  u64(): bigint {
    return this.#view.getBigUint64(this.#take(8), LITTLE_ENDIAN);
  }

  /** The next `count` bytes, not copied. */
  bytes(count: number): Uint8Array {
    const at = this.#take(count);
    return this.#bytes.subarray(at, at + count);
  }

  skip(count: number): this {
    this.#take(count);
    return this;
  }

  asU8(): number {
    return this.#whole(1).u8();
  }

  asU16(): number {
    return this.#whole(2).u16();
  }

  asU16be(): number {
    return this.#whole(2).u16be();
  }

  asU32(): number {
    return this.#whole(4).u32();
  }

  asU32be(): number {
    return this.#whole(4).u32be();
  }

  asI32(): number {
    return this.#whole(4).i32();
  }

  asU64be(): bigint {
    return this.#whole(8).#view.getBigUint64(this.#take(8));
  }

  /** All remaining bytes, not copied. */
  asBytes(): Uint8Array {
    return this.bytes(this.remaining);
  }

  /** Text up to the first NUL, or to the end. */
  asString(): string {
    const bytes = this.asBytes();
    const nul = bytes.indexOf(0);
    return textDecoder.decode(nul < 0 ? bytes : bytes.subarray(0, nul));
  }

  /** The attributes in the remaining bytes, in order. Types may repeat. */
  attributes(): Attribute[] {
    const attributes: Attribute[] = [];
    while (this.remaining > 0) {
      const start = this.#offset;
      const length = this.u16();
      const type = this.u16() & NLA.TYPE_MASK;
      if (length < NLA.HDRLEN || length > this.#end - start) {
        throw new DecodeError(`attribute ${type} claims ${length} bytes`, start);
      }
      const end = start + length;
      attributes.push({
        type,
        value: new Decoder(this.#bytes, start + NLA.HDRLEN, end, this.#view),
      });
      this.#offset = Math.min(start + align(length), this.#end);
    }
    return attributes;
  }

  #whole(count: number): this {
    if (this.remaining === count) return this;
    throw new DecodeError(`a value of ${this.remaining} bytes, not ${count}`, this.#offset);
  }

  #take(count: number): number {
    const at = this.#offset;
    if (count < 0 || count > this.#end - at) {
      throw new DecodeError(`${this.#end - at} bytes where ${count} are needed`, at);
    }
    this.#offset = at + count;
    return at;
  }
}
