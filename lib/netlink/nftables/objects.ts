/**
 * Tables, chains and rules of nf_tables: read, and requests that make and delete them.
 *
 * @module
 */

import { tolerate } from "../../sys/libc.ts";
import type { NetlinkConnection } from "../connection.ts";
import type { BatchedRequest } from "../requests.ts";
import type { Subject } from "../errors.ts";
import { AF, NLM_F } from "../message.ts";
import { nfgenmsg, NFGENMSG_LEN, NFNL_SUBSYS, nfnlType } from "../nfnetlink.ts";
import { Decoder, Encoder, type Mutable } from "../wire.ts";
import {
  NFNL_BATCH_GENID,
  NFNL_MSG_BATCH,
  NFPROTO,
  NFT_MSG,
  NFTA_CHAIN,
  NFTA_HOOK,
  NFTA_RULE,
  NFTA_TABLE,
  NFTNL_UDATA_COMMENT,
} from "./constants.ts";

/** A table. */
export interface NftTable {
  /** `"inet"`, `"ip"`, `"ip6"`, `"bridge"`, …; another one's number. */
  readonly family: string;
  readonly name: string;
}

/** What names a chain. */
export interface NftChain {
  readonly family: string;
  readonly table: string;
  readonly chain: string;
}

/** A chain that the kernel calls has where; one that is jumped to has none of it. */
export interface BaseChain extends NftChain {
  /** `"filter"`, `"nat"`, `"route"`. */
  readonly type?: string | undefined;
  /** The number of the hook in its family. */
  readonly hook?: number | undefined;
  /** The number of the verdict for what passes it. */
  readonly policy?: number | undefined;
}

/** A rule. */
export interface NftRule extends NftChain {
  /** Its number, in network order. */
  readonly handle: Uint8Array;
  /** nft's; iptables has a comment in a match, among the expressions. */
  readonly comment: string;
  readonly expressions: Uint8Array;
}

/** What rules are asked for: those of all tables, of one, or of one chain. */
export type RuleFilter = Partial<NftChain>;

/** The beginning of a payload about what is in a family. */
export function beginPayload(family: string): Encoder {
  return nfgenmsg(NFPROTO[family as keyof typeof NFPROTO] ?? Number(family));
}

/** A message's type. */
export function nftType(message: keyof typeof NFT_MSG): number {
  return nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG[message]);
}

const FAMILIES = new Map<number, string>(
  Object.entries(NFPROTO).map(([name, number]) => [number, name]),
);

function familyName(number: number): string {
  return FAMILIES.get(number) ?? `${number}`;
}

/** ENOENT: it is not there. EINVAL is nfnetlink's answer where the kernel has no nf_tables. */
const ABSENT = ["ENOENT", "EINVAL"] as const;

type Get = "GETTABLE" | "GETCHAIN" | "GETRULE" | "GETSETELEM" | "GETGEN";

/** Reads a whole list; undefined where what it is of, or nf_tables at all, is not there. */
export function dumpObjects(nl: NetlinkConnection, get: Get, payload: Uint8Array, object: string) {
  const subject = { op: `NFT_MSG_${get}`, action: "list", object };
  return tolerate(ABSENT, () => nl.dump(nftType(get), payload, subject));
}

/** Reads one object; undefined where it, or nf_tables at all, is not there. */
export function lookUp(nl: NetlinkConnection, get: Get, payload: Uint8Array, object: string) {
  return lookUpAll(nl, get, [{ payload, object }])[0];
}

/** Reads several objects of a kind with one datagram; undefined for each that is not there. */
export function lookUpAll(
  nl: NetlinkConnection,
  get: Get,
  wanted: readonly { readonly payload: Uint8Array; readonly object: string }[],
) {
  if (wanted.length === 0) return [];
  return nl.ask(wanted.map(({ payload, object }) => ({
    type: nftType(get),
    payload,
    subject: { op: `NFT_MSG_${get}`, action: "look up", object },
    absent: ABSENT,
  })));
}

/**
 * All tables of all families.
 *
 * Equivalent to: `nft list tables`
 *
 * @returns undefined where the kernel has no nf_tables
 */
export function listTables(nl: NetlinkConnection): NftTable[] | undefined {
  const everywhere = nfgenmsg(AF.UNSPEC).finish();
  return dumpObjects(nl, "GETTABLE", everywhere, "nftables tables")?.map(({ payload }) => {
    const attribute = readAttributes(new Decoder(payload).skip(NFGENMSG_LEN));
    return {
      family: familyName(payload[0]!),
      name: attribute(NFTA_TABLE.NAME)?.asString() ?? "",
    };
  });
}

/** Whether a table is there. */
export function tableExists(nl: NetlinkConnection, table: NftTable): boolean {
  return lookUp(nl, "GETTABLE", tablePayload(table), tableLabel(table)) !== undefined;
}

/** All chains of all families; none where the kernel has no nf_tables. */
export function listChains(nl: NetlinkConnection): BaseChain[] {
  const everywhere = nfgenmsg(AF.UNSPEC).finish();
  const messages = dumpObjects(nl, "GETCHAIN", everywhere, "nftables chains") ?? [];
  return messages.map(({ payload }) => decodeChain(payload));
}

/** One chain; undefined where it is not there. */
export function getChain(nl: NetlinkConnection, chain: NftChain): BaseChain | undefined {
  const found = lookUp(nl, "GETCHAIN", chainPayload(chain), chainLabel(chain));
  return found && decodeChain(found.payload);
}

function decodeChain(payload: Uint8Array): BaseChain {
  const attribute = readAttributes(new Decoder(payload).skip(NFGENMSG_LEN));
  return {
    family: familyName(payload[0]!),
    table: attribute(NFTA_CHAIN.TABLE)?.asString() ?? "",
    chain: attribute(NFTA_CHAIN.NAME)?.asString() ?? "",
    type: attribute(NFTA_CHAIN.TYPE)?.asString(),
    hook: attribute(NFTA_CHAIN.HOOK)?.attributes()
      .find(({ type }) => type === NFTA_HOOK.HOOKNUM)?.value.asU32be(),
    policy: attribute(NFTA_CHAIN.POLICY)?.asU32be(),
  };
}

/** Rules in the kernel's order; none where there is no such table or chain. */
export function listRules(nl: NetlinkConnection, filter: RuleFilter = {}): NftRule[] {
  const { family, table, chain } = filter;
  const payload = family === undefined ? nfgenmsg(AF.UNSPEC) : beginPayload(family);
  if (table !== undefined) payload.attrString(NFTA_RULE.TABLE, table);
  if (chain !== undefined) payload.attrString(NFTA_RULE.CHAIN, chain);
  const what = table === undefined ? "nftables rules" : `the rules of nftables table "${table}"`;
  const messages = dumpObjects(nl, "GETRULE", payload.finish(), what) ?? [];
  return messages.map(({ payload }) => decodeRule(payload))
    .filter((rule) => table === undefined || rule.table === table);
}

/** Reads a rule. */
export function decodeRule(payload: Uint8Array): NftRule {
  const rule: Mutable<NftRule> = {
    family: familyName(payload[0]!),
    table: "",
    chain: "",
    handle: new Uint8Array(8),
    comment: "",
    expressions: new Uint8Array(),
  };
  for (const { type, value } of new Decoder(payload).skip(NFGENMSG_LEN).attributes()) {
    if (type === NFTA_RULE.TABLE) rule.table = value.asString();
    else if (type === NFTA_RULE.CHAIN) rule.chain = value.asString();
    else if (type === NFTA_RULE.HANDLE) rule.handle = value.asBytes();
    else if (type === NFTA_RULE.EXPRESSIONS) rule.expressions = value.asBytes();
    else if (type === NFTA_RULE.USERDATA) rule.comment = decodeComment(value.asBytes());
  }
  return rule;
}

/** The comment among user data: a row of type, length and value, a byte each for the first two. */
export function decodeComment(userdata: Uint8Array): string {
  const decoder = new Decoder(userdata);
  while (decoder.remaining >= 2) {
    const type = decoder.u8();
    const length = decoder.u8();
    const value = decoder.bytes(Math.min(length, decoder.remaining));
    if (type === NFTNL_UDATA_COMMENT) return new Decoder(value).asString();
  }
  return "";
}

/** What errors and sentences call a table. */
export function tableLabel({ family, name }: NftTable): string {
  return `nftables table "${family} ${name}"`;
}

/** What errors and sentences call a chain. */
export function chainLabel({ family, table, chain }: NftChain): string {
  return `nftables chain "${family} ${table} ${chain}"`;
}

/** Makes an empty table; with `exclusive` it must not be there yet. */
export function tableCreation(table: NftTable, exclusive = false): BatchedRequest {
  const flags = exclusive ? NLM_F.CREATE | NLM_F.EXCL : NLM_F.CREATE;
  return { type: nftType("NEWTABLE"), flags, payload: tablePayload(table) };
}

/** Deletes a table with all that is in it. */
export function tableDeletion(table: NftTable): BatchedRequest {
  return { type: nftType("DELTABLE"), flags: 0, payload: tablePayload(table) };
}

/** Deletes a table, if it is there: somebody else may have deleted it just now. */
export function deleteTable(nl: NetlinkConnection, table: NftTable, object: string): void {
  const subject = { op: "NFT_MSG_DELTABLE", action: "delete", object };
  tolerate(ABSENT, () => commit(nl, [tableDeletion(table)], subject));
}

/** Deletes a chain that no rule jumps to, with its rules. */
export function chainDeletion(chain: NftChain): BatchedRequest {
  return { type: nftType("DELCHAIN"), flags: 0, payload: chainPayload(chain) };
}

/** Deletes a rule. */
export function ruleDeletion({ family, table, chain, handle }: NftRule): BatchedRequest {
  const payload = beginPayload(family).attrString(NFTA_RULE.TABLE, table)
    .attrString(NFTA_RULE.CHAIN, chain).attrBytes(NFTA_RULE.HANDLE, handle).finish();
  return { type: nftType("DELRULE"), flags: 0, payload };
}

function tablePayload({ family, name }: NftTable): Uint8Array<ArrayBuffer> {
  return beginPayload(family).attrString(NFTA_TABLE.NAME, name).finish();
}

function chainPayload({ family, table, chain }: NftChain): Uint8Array<ArrayBuffer> {
  return beginPayload(family).attrString(NFTA_CHAIN.TABLE, table)
    .attrString(NFTA_CHAIN.NAME, chain).finish();
}

/** A way to the attributes of a type: the first one of it. */
export function readAttributes(decoder: Decoder): (wanted: number) => Decoder | undefined {
  const attributes = decoder.attributes();
  return (wanted) => attributes.find(({ type }) => type === wanted)?.value;
}

/**
 * Makes changes, all of them or none. nf_tables takes them between the marks of a transaction only.
 * Whichever request it refuses, it says so; the last one's acknowledgement tells that it took them all.
 *
 * @param generation the only one in which to make them
 * @throws {NetlinkError} ERESTART when the generation is another one
 */
export function commit(
  nl: NetlinkConnection,
  requests: readonly BatchedRequest[],
  subject: Subject,
  generation?: number,
): void {
  const last = requests.at(-1);
  if (last === undefined) return;
  const mark = () => new Encoder(16).u8(AF.UNSPEC).u8(0).u16be(NFNL_SUBSYS.NFTABLES);
  const begin = mark();
  if (generation !== undefined) begin.attrU32be(NFNL_BATCH_GENID, generation);
  nl.batch([
    { type: NFNL_MSG_BATCH.BEGIN, flags: 0, payload: begin.finish() },
    ...requests.slice(0, -1),
    { ...last, flags: last.flags | NLM_F.ACK },
    { type: NFNL_MSG_BATCH.END, flags: 0, payload: mark().finish() },
  ], subject);
}
