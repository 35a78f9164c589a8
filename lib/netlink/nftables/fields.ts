/**
 * Fields of keys and values of nf_tables' sets and maps, as text and as bytes (pure).
 *
 * @module
 */

import { bytesToIp, ipToBytes } from "../../inet/ip.ts";
import { IPPROTO, isProtocol, protocolName } from "../../inet/ports.ts";
import { formatMac, parseMac } from "../../inet/mac.ts";
import { align, Decoder, Encoder } from "../wire.ts";

/** How a field of a key or value is stored: padded to four bytes, numbers in network order. */
export type Field =
  | "ipv4_addr"
  | "ipv6_addr"
  /** A range of addresses that is a prefix: `"10.0.0.0/8"`. */
  | "ipv4_prefix"
  | "ipv6_prefix"
  | "inet_proto"
  | "inet_service"
  | "ifname"
  | "ether_addr"
  /** Stands alone: `"drop"` or `"return"`. */
  | "verdict";

/** A set, or a map where it has values. */
export interface SetDefinition {
  readonly key: readonly Field[];
  readonly value?: readonly Field[];
  /**
   * What each element counts, by itself: tracked connections, or packets a second. A lookup finds
   * the element only once it has more than its limit.
   */
  readonly limit?: "connections" | "rate";
}

/** Whether a field of a key is a range. */
export function isPrefix(field: Field): boolean {
  return field === "ipv4_prefix" || field === "ipv6_prefix";
}

/** How a field is written and read. */
interface FieldCodec {
  /** In bytes, without padding. */
  readonly size: number;
  readonly encode: (text: string) => Uint8Array;
  readonly decode: (bytes: Uint8Array) => string;
}

const address = (size: number): FieldCodec => ({
  size,
  encode: (text) => ipToBytes(text.split("/")[0]!),
  decode: bytesToIp,
});

const CODECS: Readonly<Record<Field, FieldCodec>> = {
  ipv4_addr: address(4),
  ipv6_addr: address(16),
  ipv4_prefix: address(4),
  ipv6_prefix: address(16),
  inet_proto: {
    size: 1,
    encode: (text) => Uint8Array.of(isProtocol(text) ? IPPROTO[text] : 0),
    decode: ([number]) => protocolName(number!),
  },
  inet_service: {
    size: 2,
    encode: (text) => new Encoder(2).u16be(Number(text)).finish(),
    decode: (bytes) => `${new Decoder(bytes).u16be()}`,
  },
  ifname: {
    size: 16,
    encode: (text) => new TextEncoder().encode(text),
    decode: (bytes) => new Decoder(bytes).asString(),
  },
  ether_addr: { size: 6, encode: parseMac, decode: formatMac },
  verdict: { size: 0, encode: () => new Uint8Array(), decode: () => "" },
};

/** Fields one after another; in a concatenation each is padded to four bytes. */
export function encodeFields(fields: readonly Field[], texts: readonly string[]): Uint8Array {
  const encoder = new Encoder(64);
  fields.forEach((field, index) => {
    const { size, encode } = CODECS[field];
    const bytes = encode(texts[index]!);
    encoder.bytes(bytes).zero((fields.length > 1 ? align(size) : size) - bytes.length);
  });
  return encoder.finish();
}

/** Reads fields; undefined when the bytes are not of their sizes. */
export function decodeFields(fields: readonly Field[], bytes: Uint8Array): string[] | undefined {
  const codecs = fields.map((field) => CODECS[field]);
  // Alone or last, a number may come without its padding.
  const padding = align(codecs.at(-1)!.size) - codecs.at(-1)!.size;
  const padded = codecs.reduce((sum, { size }) => sum + align(size), 0);
  if (bytes.length !== padded && bytes.length !== padded - padding) return undefined;
  const decoder = new Decoder(bytes);
  return codecs.map(({ size, decode }) => {
    const text = decode(decoder.bytes(size));
    decoder.skip(Math.min(align(size) - size, decoder.remaining));
    return text;
  });
}
