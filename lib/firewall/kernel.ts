/**
 * What of tapkit's table the kernel has, read over netlink: nft's own listings grow with every
 * element, and their text with every version.
 *
 * @module
 */

import { bytesToIp, ipToBytes } from "../inet/ip.ts";
import { nfgenmsg, NFGENMSG_LEN, NFNL_SUBSYS, nfnlType } from "../netlink/conntrack.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { NetlinkError } from "../netlink/errors.ts";
import { align, Decoder, Encoder, NLA } from "../netlink/wire.ts";
import {
  type Element,
  elementId,
  type Field,
  type RuleMark,
  setDefinition,
  type SetName,
  TABLE,
} from "./ruleset.ts";

/** linux/netfilter.h. */
const NFPROTO_INET = 1;
/** linux/netfilter/nf_tables.h. */
const NFT_MSG = { GETTABLE: 1, GETRULE: 7, GETSETELEM: 13 } as const;
const NFTA_TABLE_NAME = 1;
const NFTA_RULE = { TABLE: 1, CHAIN: 2, USERDATA: 7 } as const;
const NFTA_SET_ELEM_LIST = { TABLE: 1, SET: 2, ELEMENTS: 3 } as const;
const NFTA_LIST_ELEM = 1;
const NFTA_SET_ELEM = { KEY: 1, DATA: 2, USERDATA: 6 } as const;
const NFTA_DATA_VALUE = 1;
/** libnftnl/udata.h: the same number for rules and for elements. */
const NFTNL_UDATA_COMMENT = 0;

/** Above this many elements, whole sets are read. */
const SINGLE_READS = 32;

/** Bytes of a field, without padding. */
const FIELD_SIZES: Readonly<Record<Field, number>> = {
  ipv4_addr: 4,
  ipv6_addr: 16,
  inet_proto: 1,
  inet_service: 2,
  ifname: 16,
};

const PROTOCOLS: readonly (readonly [number, string])[] = [[6, "tcp"], [17, "udp"], [132, "sctp"]];

/** Whether the table is there at all. */
export function tableExists(nl: NetlinkConnection): boolean {
  const payload = nfgenmsg(NFPROTO_INET).attrString(NFTA_TABLE_NAME, TABLE).finish();
  const found = tolerateAbsence(() =>
    nl.request(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETTABLE), 0, payload, {
      op: "NFT_MSG_GETTABLE",
      action: "look up",
      object: `nftables table "inet ${TABLE}"`,
    })
  );
  return found !== undefined;
}

/** The table's rules, by their comments; none where there is no table. */
export function readRuleMarks(nl: NetlinkConnection): RuleMark[] {
  const payload = nfgenmsg(NFPROTO_INET).attrString(NFTA_RULE.TABLE, TABLE).finish();
  const messages = tolerateAbsence(() =>
    nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETRULE), payload, {
      op: "NFT_MSG_GETRULE",
      action: "list",
      object: `rules of nftables table "inet ${TABLE}"`,
    })
  );
  return (messages ?? []).map(({ payload }) => decodeRuleMark(payload))
    .filter(({ table }) => table === TABLE);
}

/** Reads where a rule is, and its comment. */
export function decodeRuleMark(payload: Uint8Array): RuleMark & { readonly table: string } {
  const mark = { table: "", chain: "", comment: "" };
  for (const { type, value } of new Decoder(payload).skip(NFGENMSG_LEN).attributes()) {
    if (type === NFTA_RULE.TABLE) mark.table = value.asString();
    else if (type === NFTA_RULE.CHAIN) mark.chain = value.asString();
    else if (type === NFTA_RULE.USERDATA) mark.comment = decodeComment(value.asBytes());
  }
  return mark;
}

/** All elements of a set; none where the set or the table is not there. */
export function readSet(nl: NetlinkConnection, set: SetName): Element[] {
  const messages = tolerateAbsence(() =>
    nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETSETELEM), encodeSet(set).finish(), {
      op: "NFT_MSG_GETSETELEM",
      action: "list",
      object: `nftables set "${set}"`,
    })
  );
  return (messages ?? []).flatMap(({ payload }) => decodeElements(set, payload));
}

/** Those of the elements whose keys the kernel has, as it has them, by {@linkcode elementId}. */
export function readElements(
  nl: NetlinkConnection,
  elements: readonly Element[],
): Map<string, Element> {
  const found = elements.length > SINGLE_READS
    ? [...new Set(elements.map(({ set }) => set))].flatMap((set) => readSet(nl, set))
    : elements.flatMap((element) => readElement(nl, element) ?? []);
  return new Map(found.map((element) => [elementId(element), element]));
}

function readElement(nl: NetlinkConnection, element: Element): Element | undefined {
  const payload = encodeSet(element.set)
    .attrNested(
      NFTA_SET_ELEM_LIST.ELEMENTS | NLA.F_NESTED,
      (list) =>
        list.attrNested(
          NFTA_LIST_ELEM | NLA.F_NESTED,
          (entry) =>
            entry.attrNested(NFTA_SET_ELEM.KEY | NLA.F_NESTED, (key) =>
              key.attrBytes(
                NFTA_DATA_VALUE,
                encodeFields(
                  setDefinition(element.set).key,
                  element.key,
                ),
              )),
        ),
    )
    .finish();
  const messages = tolerateAbsence(() =>
    nl.request(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETSETELEM), 0, payload, {
      op: "NFT_MSG_GETSETELEM",
      action: "look up",
      object: `element ${element.key.join(" . ")} of nftables set "${element.set}"`,
    })
  );
  return messages?.flatMap((message) => decodeElements(element.set, message.payload))[0];
}

function encodeSet(set: SetName): Encoder {
  return nfgenmsg(NFPROTO_INET)
    .attrString(NFTA_SET_ELEM_LIST.TABLE, TABLE)
    .attrString(NFTA_SET_ELEM_LIST.SET, set);
}

/** Reads a message of elements. Those of another layout than the set's are left out. */
export function decodeElements(set: SetName, payload: Uint8Array): Element[] {
  const elements: Element[] = [];
  for (const { type, value } of new Decoder(payload).skip(NFGENMSG_LEN).attributes()) {
    if (type !== NFTA_SET_ELEM_LIST.ELEMENTS) continue;
    for (const entry of value.attributes()) {
      const element = decodeElement(set, entry.value);
      if (element !== undefined) elements.push(element);
    }
  }
  return elements;
}

function decodeElement(set: SetName, entry: Decoder): Element | undefined {
  const definition = setDefinition(set);
  let key: string[] | undefined;
  let value: string[] | undefined;
  let owner = "";
  for (const { type, value: content } of entry.attributes()) {
    if (type === NFTA_SET_ELEM.KEY) key = decodeData(definition.key, content);
    else if (type === NFTA_SET_ELEM.USERDATA) owner = decodeComment(content.asBytes());
    else if (type === NFTA_SET_ELEM.DATA && definition.value !== undefined) {
      value = decodeData(definition.value, content);
    }
  }
  if (key === undefined || (value === undefined) !== (definition.value === undefined)) {
    return undefined;
  }
  return value === undefined ? { set, key, owner } : { set, key, value, owner };
}

function decodeData(fields: readonly Field[], data: Decoder): string[] | undefined {
  const value = data.attributes().find(({ type }) => type === NFTA_DATA_VALUE)?.value;
  return value === undefined ? undefined : decodeFields(fields, value.asBytes());
}

/** Fields one after another, each padded to four bytes. */
export function encodeFields(fields: readonly Field[], texts: readonly string[]): Uint8Array {
  const encoder = new Encoder(64);
  fields.forEach((field, index) => {
    const text = texts[index]!;
    switch (field) {
      case "ipv4_addr":
      case "ipv6_addr":
        encoder.bytes(ipToBytes(text));
        break;
      case "inet_proto":
        encoder.u8(PROTOCOLS.find(([, name]) => name === text)?.[0] ?? 0).zero(3);
        break;
      case "inet_service":
        encoder.u16be(Number(text)).zero(2);
        break;
      case "ifname": {
        const name = new TextEncoder().encode(text);
        encoder.bytes(name).zero(FIELD_SIZES.ifname - name.length);
        break;
      }
    }
  });
  return encoder.finish();
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
        return bytesToIp(content);
      case "inet_proto":
        return PROTOCOLS.find(([number]) => number === content[0])?.[1] ?? `${content[0]}`;
      case "inet_service":
        return `${new Decoder(content).u16be()}`;
      case "ifname":
        return new Decoder(content).asString();
    }
  });
}

/** The comment among user data: a row of type, length and value, a byte each for the first two. */
function decodeComment(userdata: Uint8Array): string {
  const decoder = new Decoder(userdata);
  while (decoder.remaining >= 2) {
    const type = decoder.u8();
    const length = decoder.u8();
    const value = decoder.bytes(Math.min(length, decoder.remaining));
    if (type === NFTNL_UDATA_COMMENT) return new Decoder(value).asString();
  }
  return "";
}

function tolerateAbsence<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof NetlinkError && error.code === "ENOENT") return undefined;
    throw error;
  }
}
