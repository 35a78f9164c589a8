/**
 * Elements of nf_tables' sets and maps: read, and requests that add and delete them.
 *
 * @module
 */

import { bytesToIp, ipToBytes, parseCidr, prefixOf } from "../../inet/ip.ts";
import { formatMac, parseMac } from "../../inet/mac.ts";
import type { BatchedRequest, NetlinkConnection } from "../connection.ts";
import { type Message, NLM_F } from "../message.ts";
import { NFGENMSG_LEN } from "../nfnetlink.ts";
import { align, Decoder, Encoder, NLA } from "../wire.ts";
import {
  INTERVAL_END,
  NFTA_CONNLIMIT,
  NFTA_DATA,
  NFTA_EXPR,
  NFTA_LIMIT,
  NFTA_LIST_ELEM,
  NFTA_SET_ELEM,
  NFTA_SET_ELEM_LIST,
  NFTA_VERDICT,
  NFTNL_UDATA_COMMENT,
  OVER,
  VERDICTS,
} from "./constants.ts";
import { beginPayload, decodeComment, nftType, tolerateAbsence } from "./objects.ts";

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

/** How many seconds' worth of its rate an element lets pass at once. */
export const BURST_SECONDS = 16;

/** Whether a field of a key is a range. */
export function isPrefix(field: Field): boolean {
  return field === "ipv4_prefix" || field === "ipv6_prefix";
}

/** A set or map of a table. */
export interface NftSet {
  readonly family: string;
  readonly table: string;
  readonly name: string;
  readonly definition: SetDefinition;
}

/** An element. `key` and `value` are its fields, written canonically. */
export interface Element {
  /** The name of its set or map. */
  readonly set: string;
  readonly key: readonly string[];
  /** Of a map: what the key leads to. */
  readonly value?: readonly string[];
  /** Of a set with limits: how many, or how many a second. */
  readonly limit?: number;
  /** Its comment: whose it is. */
  readonly owner: string;
}

/** Above this many elements, whole sets are read. */
const SINGLE_READS = 32;

/** Elements to a message, whose list takes 64 KiB at most. */
const ELEMENTS_PER_MESSAGE = 256;

const textEncoder = new TextEncoder();

/** Bytes of a field, without padding. */
const FIELD_SIZES: Readonly<Record<Field, number>> = {
  ipv4_addr: 4,
  ipv6_addr: 16,
  ipv4_prefix: 4,
  ipv6_prefix: 16,
  inet_proto: 1,
  inet_service: 2,
  ifname: 16,
  ether_addr: 6,
  verdict: 0,
};

const PROTOCOLS: readonly (readonly [number, string])[] = [[6, "tcp"], [17, "udp"], [132, "sctp"]];

/**
 * A message's payload of whole elements, or of their keys. In a set of intervals each is followed by
 * where it ends, but where a single one is asked for.
 */
export function encodeElements(
  set: NftSet,
  elements: readonly Element[],
  content: "elements" | "keys" | "key",
): Uint8Array<ArrayBuffer> {
  const { key: keyFields, value: valueFields, limit: kind } = set.definition;
  const nested = (type: number) => type | NLA.F_NESTED;
  const single = content === "key";
  const payload = encodeSet(set);
  payload.attrNested(nested(NFTA_SET_ELEM_LIST.ELEMENTS), (list) => {
    for (const { key, value, limit, owner } of elements) {
      list.attrNested(nested(NFTA_LIST_ELEM), (entry) => {
        entry.attrNested(
          nested(NFTA_SET_ELEM.KEY),
          (data) =>
            data.attrNested(NFTA_DATA.VALUE, (fields) => writeFields(fields, keyFields, key)),
        );
        if (keyFields.some(isPrefix)) {
          const ends = key.map((text, index) =>
            isPrefix(keyFields[index]!) ? parseCidr(text).broadcast : text
          );
          entry.attrNested(
            nested(NFTA_SET_ELEM.KEY_END),
            (data) =>
              data.attrNested(NFTA_DATA.VALUE, (fields) => writeFields(fields, keyFields, ends)),
          );
        }
        if (content !== "elements") return;
        if (value !== undefined && valueFields !== undefined) {
          entry.attrNested(
            nested(NFTA_SET_ELEM.DATA),
            (data) => writeData(data, valueFields, value),
          );
        }
        entry.attrNested(NFTA_SET_ELEM.USERDATA, (userdata) => writeComment(userdata, owner));
        if (kind !== undefined && limit !== undefined) {
          entry.attrNested(nested(NFTA_SET_ELEM.EXPR), (expr) => writeLimit(expr, kind, limit));
        }
      });
      if (kind === "connections" && !single) {
        list.attrNested(nested(NFTA_LIST_ELEM), (entry) => {
          const end = encodeFields(keyFields, key);
          increment(end);
          entry.attrNested(
            nested(NFTA_SET_ELEM.KEY),
            (data) => data.attrBytes(NFTA_DATA.VALUE, end),
          );
          entry.attrU32be(NFTA_SET_ELEM.FLAGS, INTERVAL_END);
        });
      }
    }
  });
  return payload.finish();
}

function writeData(data: Encoder, fields: readonly Field[], value: readonly string[]): void {
  if (fields[0] === "verdict") {
    data.attrNested(NFTA_DATA.VERDICT | NLA.F_NESTED, (verdict) => {
      verdict.attrU32be(NFTA_VERDICT.CODE, VERDICTS[value[0]!]!);
    });
  } else data.attrNested(NFTA_DATA.VALUE, (written) => writeFields(written, fields, value));
}

/** The next number, of bytes in network order. */
function increment(bytes: Uint8Array): void {
  for (let index = bytes.length - 1; index >= 0; index--) {
    bytes[index] = bytes[index]! + 1;
    if (bytes[index] !== 0) return;
  }
}

type LimitKind = NonNullable<SetDefinition["limit"]>;

/** How the kernel calls the expressions that count. */
const LIMITS: Readonly<Record<LimitKind, string>> = { connections: "connlimit", rate: "limit" };

function writeLimit(expr: Encoder, kind: LimitKind, limit: number): void {
  expr.attrString(NFTA_EXPR.NAME, LIMITS[kind]);
  expr.attrNested(NFTA_EXPR.DATA | NLA.F_NESTED, (data) => {
    if (kind === "connections") {
      data.attrU32be(NFTA_CONNLIMIT.COUNT, limit).attrU32be(NFTA_CONNLIMIT.FLAGS, OVER);
    } else {
      data.attrU64be(NFTA_LIMIT.RATE, BigInt(limit)).attrU64be(NFTA_LIMIT.UNIT, 1n)
        .attrU32be(NFTA_LIMIT.BURST, limit * BURST_SECONDS).attrU32be(NFTA_LIMIT.FLAGS, OVER);
    }
  });
}

/** A limit's number; undefined where it is another kind of limit than tapkit's. */
function decodeLimit(kind: LimitKind, expr: Decoder): number | undefined {
  let name = "";
  let data: ReturnType<Decoder["attributes"]> = [];
  for (const { type, value } of expr.attributes()) {
    if (type === NFTA_EXPR.NAME) name = value.asString();
    else if (type === NFTA_EXPR.DATA) data = value.attributes();
  }
  const field = (wanted: number) => data.find(({ type }) => type === wanted)?.value;
  if (name !== LIMITS[kind]) return undefined;
  if (kind === "connections") {
    return field(NFTA_CONNLIMIT.FLAGS)?.asU32be() === OVER
      ? field(NFTA_CONNLIMIT.COUNT)?.asU32be()
      : undefined;
  }
  const rate = Number(field(NFTA_LIMIT.RATE)?.asU64be() ?? 0n);
  return field(NFTA_LIMIT.FLAGS)?.asU32be() === OVER &&
      field(NFTA_LIMIT.UNIT)?.asU64be() === 1n &&
      field(NFTA_LIMIT.BURST)?.asU32be() === rate * BURST_SECONDS
    ? rate
    : undefined;
}

/** The beginning of a payload about a set. */
function encodeSet({ family, table, name }: NftSet): Encoder {
  return beginPayload(family).attrString(NFTA_SET_ELEM_LIST.TABLE, table)
    .attrString(NFTA_SET_ELEM_LIST.SET, name);
}

/** Reads a message of elements. Those of another layout than the set's are left out. */
export function decodeElements(set: NftSet, payload: Uint8Array): Element[] {
  return elementLists(payload).flatMap((list) =>
    list.attributes().flatMap(({ value }) => decodeElement(set, value) ?? [])
  );
}

function elementLists(payload: Uint8Array): Decoder[] {
  return new Decoder(payload).skip(NFGENMSG_LEN).attributes()
    .filter(({ type }) => type === NFTA_SET_ELEM_LIST.ELEMENTS).map(({ value }) => value);
}

function decodeElement({ name, definition }: NftSet, entry: Decoder): Element | undefined {
  let key: string[] | undefined;
  let end: string[] | undefined;
  let value: string[] | undefined;
  let limit: number | undefined;
  let owner = "";
  for (const { type, value: content } of entry.attributes()) {
    if (type === NFTA_SET_ELEM.FLAGS && (content.asU32be() & INTERVAL_END) !== 0) return undefined;
    if (type === NFTA_SET_ELEM.KEY) key = decodeData(definition.key, content);
    else if (type === NFTA_SET_ELEM.KEY_END) end = decodeData(definition.key, content);
    else if (type === NFTA_SET_ELEM.EXPR && definition.limit !== undefined) {
      limit = decodeLimit(definition.limit, content);
    } else if (type === NFTA_SET_ELEM.USERDATA) owner = decodeComment(content.asBytes());
    else if (type === NFTA_SET_ELEM.DATA && definition.value !== undefined) {
      value = decodeData(definition.value, content);
    }
  }
  if (key === undefined || (value === undefined) !== (definition.value === undefined)) {
    return undefined;
  }
  const ranged = key.map((first, index) =>
    isPrefix(definition.key[index]!) ? prefixOf(first, end?.[index] ?? first) : first
  );
  return {
    set: name,
    key: ranged,
    ...value === undefined ? {} : { value },
    ...limit === undefined ? {} : { limit },
    owner,
  };
}

function decodeData(fields: readonly Field[], data: Decoder): string[] | undefined {
  const attributes = data.attributes();
  if (fields[0] === "verdict") {
    const verdict = attributes.find(({ type }) => type === NFTA_DATA.VERDICT)?.value.attributes();
    const code = verdict?.find(({ type }) => type === NFTA_VERDICT.CODE)?.value.asU32be();
    const name = Object.keys(VERDICTS).find((name) => VERDICTS[name] === code);
    return name === undefined ? undefined : [name];
  }
  const value = attributes.find(({ type }) => type === NFTA_DATA.VALUE)?.value;
  return value === undefined ? undefined : decodeFields(fields, value.asBytes());
}

/** Fields one after another, each padded to four bytes. */
export function encodeFields(fields: readonly Field[], texts: readonly string[]): Uint8Array {
  const encoder = new Encoder(64);
  writeFields(encoder, fields, texts);
  return encoder.finish();
}

function writeFields(encoder: Encoder, fields: readonly Field[], texts: readonly string[]): void {
  fields.forEach((field, index) => {
    const text = texts[index]!;
    switch (field) {
      case "ipv4_addr":
      case "ipv6_addr":
      case "ipv4_prefix":
      case "ipv6_prefix":
        encoder.bytes(ipToBytes(text.split("/")[0]!));
        break;
      case "ether_addr":
        // A key that is no concatenation is not padded.
        encoder.bytes(parseMac(text)).zero(fields.length > 1 ? 2 : 0);
        break;
      case "verdict":
        break;
      case "inet_proto":
        encoder.u8(PROTOCOLS.find(([, name]) => name === text)?.[0] ?? 0).zero(3);
        break;
      case "inet_service":
        encoder.u16be(Number(text)).zero(2);
        break;
      case "ifname": {
        const name = textEncoder.encode(text);
        encoder.bytes(name).zero(FIELD_SIZES.ifname - name.length);
        break;
      }
    }
  });
}

/** Reads fields; undefined when the bytes are not of their sizes. */
export function decodeFields(fields: readonly Field[], bytes: Uint8Array): string[] | undefined {
  const sizes = fields.map((field) => FIELD_SIZES[field]);
  // Alone or last, a number may come without its padding.
  const unpadded = sizes.reduce(
    (sum, size, index) => sum + (index === sizes.length - 1 ? size : align(size)),
    0,
  );
  if (bytes.length !== unpadded && bytes.length !== align(unpadded)) return undefined;
  const decoder = new Decoder(bytes);
  return fields.map((field) => {
    const size = FIELD_SIZES[field];
    const content = decoder.bytes(size);
    decoder.skip(Math.min(align(size) - size, decoder.remaining));
    switch (field) {
      case "ipv4_addr":
      case "ipv6_addr":
      case "ipv4_prefix":
      case "ipv6_prefix":
        return bytesToIp(content);
      case "ether_addr":
        return formatMac(content);
      case "verdict":
        return "";
      case "inet_proto":
        return PROTOCOLS.find(([number]) => number === content[0])?.[1] ?? `${content[0]}`;
      case "inet_service":
        return `${new Decoder(content).u16be()}`;
      case "ifname":
        return new Decoder(content).asString();
    }
  });
}

/** Writes a comment as user data. */
function writeComment(encoder: Encoder, comment: string): void {
  const text = textEncoder.encode(comment);
  encoder.u8(NFTNL_UDATA_COMMENT).u8(text.length + 1).bytes(text).zero(1);
}

/** All elements of a set; none where the set or the table is not there. */
export function readSet(nl: NetlinkConnection, set: NftSet): Element[] {
  return dumpSet(nl, set).flatMap(({ payload }) => decodeElements(set, payload));
}

/** Whether a set has no element, or is not there. */
export function isEmptySet(nl: NetlinkConnection, set: NftSet): boolean {
  return !dumpSet(nl, set).some(({ payload }) =>
    elementLists(payload).some(({ remaining }) => remaining > 0)
  );
}

function dumpSet(nl: NetlinkConnection, set: NftSet): Message[] {
  return tolerateAbsence(() =>
    nl.dump(nftType("GETSETELEM"), encodeSet(set).finish(), {
      op: "NFT_MSG_GETSETELEM",
      action: "list",
      object: `nftables set "${set.name}"`,
    })
  ) ?? [];
}

/**
 * Those of the elements whose keys the kernel has, as it has them. The cost does not grow with the
 * number of others, but where many are asked for.
 */
export function readElements(
  nl: NetlinkConnection,
  elements: readonly Element[],
  setOf: (name: string) => NftSet,
): Element[] {
  return elements.length > SINGLE_READS
    ? [...new Set(elements.map(({ set }) => set))].flatMap((set) => readSet(nl, setOf(set)))
    : elements.flatMap((element) => readElement(nl, element, setOf(element.set)));
}

function readElement(nl: NetlinkConnection, element: Element, set: NftSet): Element[] {
  const message = tolerateAbsence(() =>
    nl.query(nftType("GETSETELEM"), encodeElements(set, [element], "key"), {
      op: "NFT_MSG_GETSETELEM",
      action: "look up",
      object: `element ${element.key.join(" . ")} of nftables set "${set.name}"`,
    })
  );
  return message === undefined ? [] : decodeElements(set, message.payload);
}

/** Adds elements, which must not be there, or deletes ones that must. */
export function elementRequests(
  verb: "NEW" | "DEL",
  elements: readonly Element[],
  setOf: (name: string) => NftSet,
): BatchedRequest[] {
  const type = nftType(`${verb}SETELEM`);
  const [flags, content] = verb === "NEW"
    ? [NLM_F.CREATE, "elements"] as const
    : [0, "keys"] as const;
  return [...Map.groupBy(elements, ({ set }) => set)].flatMap(([set, own]) => {
    const requests: BatchedRequest[] = [];
    for (let start = 0; start < own.length; start += ELEMENTS_PER_MESSAGE) {
      const part = own.slice(start, start + ELEMENTS_PER_MESSAGE);
      requests.push({ type, flags, payload: encodeElements(setOf(set), part, content) });
    }
    return requests;
  });
}
