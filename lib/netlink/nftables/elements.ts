/**
 * Elements of nf_tables' sets and maps: read, and requests that add and delete them.
 *
 * @module
 */

import { parseCidr, prefixOf } from "../../inet/ip.ts";
import type { NetlinkConnection } from "../connection.ts";
import type { BatchedRequest } from "../requests.ts";
import { type Message, NLM_F } from "../message.ts";
import { NFGENMSG_LEN } from "../nfnetlink.ts";
import { Decoder, type Encoder, NLA } from "../wire.ts";
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
import { decodeFields, encodeFields, type Field, isPrefix, type SetDefinition } from "./fields.ts";
import {
  beginPayload,
  decodeComment,
  dumpObjects,
  lookUpAll,
  nftType,
  readAttributes,
} from "./objects.ts";

/** How many seconds' worth of its rate an element lets pass at once. */
export const BURST_SECONDS = 16;

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
  const payload = encodeSet(set);
  nest(payload, NFTA_SET_ELEM_LIST.ELEMENTS, (list) => {
    for (const { key, value, limit, owner } of elements) {
      nest(list, NFTA_LIST_ELEM, (entry) => {
        nest(entry, NFTA_SET_ELEM.KEY, (data) => writeData(data, keyFields, key));
        if (keyFields.some(isPrefix)) {
          const ends = key.map((text, index) =>
            isPrefix(keyFields[index]!) ? parseCidr(text).broadcast : text
          );
          nest(entry, NFTA_SET_ELEM.KEY_END, (data) => writeData(data, keyFields, ends));
        }
        if (content !== "elements") return;
        if (value !== undefined && valueFields !== undefined) {
          nest(entry, NFTA_SET_ELEM.DATA, (data) => writeData(data, valueFields, value));
        }
        entry.attrNested(NFTA_SET_ELEM.USERDATA, (userdata) => writeComment(userdata, owner));
        if (kind !== undefined && limit !== undefined) {
          nest(entry, NFTA_SET_ELEM.EXPR, (expr) => writeLimit(expr, kind, limit));
        }
      });
      if (kind === "connections" && content !== "key") {
        nest(list, NFTA_LIST_ELEM, (entry) => {
          const end = increment(encodeFields(keyFields, key));
          nest(entry, NFTA_SET_ELEM.KEY, (data) => data.attrBytes(NFTA_DATA.VALUE, end));
          entry.attrU32be(NFTA_SET_ELEM.FLAGS, INTERVAL_END);
        });
      }
    }
  });
  return payload.finish();
}

function nest(encoder: Encoder, type: number, write: (encoder: Encoder) => void): void {
  encoder.attrNested(type | NLA.F_NESTED, write);
}

function writeData(data: Encoder, fields: readonly Field[], texts: readonly string[]): void {
  if (fields[0] === "verdict") {
    const code = VERDICTS[texts[0]!]!;
    nest(data, NFTA_DATA.VERDICT, (verdict) => verdict.attrU32be(NFTA_VERDICT.CODE, code));
  } else data.attrBytes(NFTA_DATA.VALUE, encodeFields(fields, texts));
}

/** The next number, of bytes in network order. */
function increment(bytes: Uint8Array): Uint8Array {
  for (let index = bytes.length - 1; index >= 0; index--) {
    bytes[index] = bytes[index]! + 1;
    if (bytes[index] !== 0) break;
  }
  return bytes;
}

type LimitKind = NonNullable<SetDefinition["limit"]>;

/** How the kernel calls the expressions that count. */
const LIMITS: Readonly<Record<LimitKind, string>> = { connections: "connlimit", rate: "limit" };

function writeLimit(expr: Encoder, kind: LimitKind, limit: number): void {
  expr.attrString(NFTA_EXPR.NAME, LIMITS[kind]);
  nest(expr, NFTA_EXPR.DATA, (data) => {
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
  const attributes = readAttributes(expr);
  if (attributes(NFTA_EXPR.NAME)?.asString() !== LIMITS[kind]) return undefined;
  const data = attributes(NFTA_EXPR.DATA);
  const field = data === undefined ? () => undefined : readAttributes(data);
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
  const attribute = readAttributes(data);
  if (fields[0] !== "verdict") {
    const value = attribute(NFTA_DATA.VALUE);
    return value && decodeFields(fields, value.asBytes());
  }
  const verdict = attribute(NFTA_DATA.VERDICT);
  const code = verdict && readAttributes(verdict)(NFTA_VERDICT.CODE)?.asU32be();
  const name = Object.keys(VERDICTS).find((name) => VERDICTS[name] === code);
  return name === undefined ? undefined : [name];
}

/** Writes a comment as user data. */
function writeComment(encoder: Encoder, comment: string): void {
  const text = new TextEncoder().encode(comment);
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
  return dumpObjects(nl, "GETSETELEM", encodeSet(set).finish(), `nftables set "${set.name}"`) ?? [];
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
    : readEach(nl, elements, setOf);
}

function readEach(
  nl: NetlinkConnection,
  elements: readonly Element[],
  setOf: (name: string) => NftSet,
): Element[] {
  const answers = lookUpAll(
    nl,
    "GETSETELEM",
    elements.map((element) => ({
      payload: encodeElements(setOf(element.set), [element], "key"),
      object: `element ${element.key.join(" . ")} of nftables set "${element.set}"`,
    })),
  );
  return answers.flatMap((answer, index) =>
    answer === undefined ? [] : decodeElements(setOf(elements[index]!.set), answer.payload)
  );
}

/**
 * Adds elements, which must not be there, or deletes ones that must.
 *
 * @throws {NetlinkError} of the transaction: EEXIST, EBUSY, ENOENT
 */
export function elementRequests(
  verb: "NEW" | "DEL",
  elements: readonly Element[],
  setOf: (name: string) => NftSet,
): BatchedRequest[] {
  const type = nftType(`${verb}SETELEM`);
  const [flags, content] = verb === "NEW"
    ? [NLM_F.CREATE | NLM_F.EXCL, "elements"] as const
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
