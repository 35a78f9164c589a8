/**
 * tapkit's table in the kernel, over netlink: what it has is read, and elements are changed.
 *
 * nft's listings grow with every element and differ between its versions, and opening its library
 * takes longer than attaching a VM; it is left the making of tables that are not compiled.
 *
 * @module
 */

import { NFNL_SUBSYS, nfnlType } from "../netlink/conntrack.ts";
import type { BatchedRequest, NetlinkConnection } from "../netlink/connection.ts";
import type { Subject } from "../netlink/errors.ts";
import { AF, decodeMessages, type Message, NLM_F } from "../netlink/message.ts";
import { Encoder } from "../netlink/wire.ts";
import { type Netns, withNetns } from "../sys/netns.ts";
import {
  beginPayload,
  decodeElements,
  decodeRuleMark,
  encodeElements,
  encodeRuleFilter,
  encodeSet,
  hasElements,
} from "./elements.ts";
import { Nftables } from "./libnftables.ts";
import { NFT_MSG, NFTA_TABLE } from "./nf-tables.ts";
import {
  type Element,
  elementId,
  MAIN_TABLE,
  marksOf,
  planAdd,
  planDropTable,
  planTable,
  type RuleMark,
  type SetName,
  setNames,
  type Table,
  tableLabel,
} from "./ruleset.ts";
import type { ElementStore, StoreState } from "./store.ts";
import { tolerateAbsence } from "./survey.ts";

/** linux/netfilter/nfnetlink.h. */
const NFNL_MSG_BATCH = { BEGIN: 0x10, END: 0x11 } as const;

/** Above this many elements, whole sets are read. */
const SINGLE_READS = 32;

/** Elements to a message, whose list takes 64 KiB at most. */
const ELEMENTS_PER_MESSAGE = 256;

/** One of tapkit's tables in one network namespace. */
export class NftStore implements ElementStore {
  readonly kind = "nftables";
  readonly #netns: Netns;
  readonly #nl: NetlinkConnection;
  readonly #table: Table;

  /**
   * @param netns where the table is; closed with this
   * @param nl of that namespace; its caller closes it
   */
  constructor(netns: Netns, nl: NetlinkConnection, table = MAIN_TABLE) {
    this.#netns = netns;
    this.#nl = nl;
    this.#table = table;
  }

  exists(): boolean {
    return tableExists(this.#nl, this.#table);
  }

  look(): StoreState {
    let lacking = this.#lackingRules();
    if (lacking.length === 0) return { exists: true, intact: true, problems: [] };
    const table = `the ${tableLabel(this.#table)}`;
    if (!this.exists()) {
      return { exists: false, intact: false, problems: [`${table} is missing`] };
    }
    // Another process may have made it, rules and all, since they were looked for.
    lacking = this.#lackingRules();
    return {
      exists: true,
      intact: lacking.length === 0,
      problems: lacking.map((mark) => `${table} lacks the rule "${mark}"`),
    };
  }

  read(elements: readonly Element[]): Map<string, Element> {
    return readElements(this.#nl, elements, this.#table);
  }

  readSets(sets: readonly SetName[]): Element[] {
    return sets.flatMap((set) => readSet(this.#nl, set, this.#table));
  }

  /** Whether no set has an element, without reading what there is. */
  isEmpty(): boolean {
    return setNames(this.#table).every((set) =>
      !dumpSet(this.#nl, set, this.#table).some(({ payload }) => hasElements(payload))
    );
  }

  change(
    change: { readonly remove: readonly Element[]; readonly add: readonly Element[] },
    owner: string,
  ): void {
    changeElements(this.#nl, change, owner, this.#table);
  }

  remake(elements: readonly Element[], { exists }: StoreState): void {
    const table = this.#table;
    if (table.messages !== undefined) {
      commit(this.#nl, [
        ...exists ? dropRequests(table) : [],
        ...makeRequests(table, table.messages),
        ...elementRequests(NFT_MSG.NEWSETELEM, NLM_F.CREATE, elements, table),
      ], { op: "nf_tables", action: "make", object: `the ${tableLabel(table)}` });
      return;
    }
    using nft = withNetns(this.#netns, () => Nftables.open());
    const drop = exists ? planDropTable(table) : "";
    const text = drop + planTable(table) + planAdd(elements, table);
    nft.run(text, `make the ${tableLabel(table)}`);
  }

  delete(): void {
    deleteTable(this.#nl, this.#table);
  }

  [Symbol.dispose](): void {
    this.#netns[Symbol.dispose]();
  }

  #lackingRules(): string[] {
    const present = new Set(readRuleMarks(this.#nl, this.#table).map(markText));
    return marksOf(this.#table).map(markText).filter((mark) => !present.has(mark));
  }
}

function markText({ chain, comment }: RuleMark): string {
  return `${chain}: ${comment}`;
}

function tableExists(nl: NetlinkConnection, table: Table): boolean {
  const payload = tablePayload(table).finish();
  const found = tolerateAbsence(() =>
    nl.query(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETTABLE), payload, {
      op: "NFT_MSG_GETTABLE",
      action: "look up",
      object: tableLabel(table),
    })
  );
  return found !== undefined;
}

/** The table's rules, by their comments; none where there is no table. */
function readRuleMarks(nl: NetlinkConnection, table: Table): RuleMark[] {
  const messages = tolerateAbsence(() =>
    nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETRULE), encodeRuleFilter(table), {
      op: "NFT_MSG_GETRULE",
      action: "list",
      object: `rules of ${tableLabel(table)}`,
    })
  );
  return (messages ?? []).map(({ payload }) => decodeRuleMark(payload))
    .filter((mark) => mark.table === table.name);
}

/** All elements of a set; none where the set or the table is not there. */
export function readSet(nl: NetlinkConnection, set: SetName, table: Table): Element[] {
  return dumpSet(nl, set, table).flatMap(({ payload }) => decodeElements(set, payload, table));
}

function dumpSet(nl: NetlinkConnection, set: SetName, table: Table): Message[] {
  return tolerateAbsence(() =>
    nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETSETELEM), encodeSet(set, table).finish(), {
      op: "NFT_MSG_GETSETELEM",
      action: "list",
      object: `nftables set "${set}"`,
    })
  ) ?? [];
}

/** Those of the elements whose keys the kernel has, as it has them, by {@linkcode elementId}. */
export function readElements(
  nl: NetlinkConnection,
  elements: readonly Element[],
  table: Table,
): Map<string, Element> {
  const found = elements.length > SINGLE_READS
    ? [...new Set(elements.map(({ set }) => set))].flatMap((set) => readSet(nl, set, table))
    : elements.flatMap((element) => readElement(nl, element, table) ?? []);
  return new Map(found.map((element) => [elementId(element), element]));
}

function readElement(nl: NetlinkConnection, element: Element, table: Table): Element | undefined {
  const message = tolerateAbsence(() =>
    nl.query(
      nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETSETELEM),
      encodeElements(element.set, [element], "key", table),
      {
        op: "NFT_MSG_GETSETELEM",
        action: "look up",
        object: `element ${element.key.join(" . ")} of nftables set "${element.set}"`,
      },
    )
  );
  return message && decodeElements(element.set, message.payload, table)[0];
}

/**
 * Deletes elements, which must be there, and adds others: one transaction.
 *
 * Equivalent to: `nft -f -` with `delete element …` and `add element …`
 *
 * @param owner whose rules change, for the error
 * @throws {NetlinkError} ENOENT or EEXIST when the table is not as it was looked at
 */
function changeElements(
  nl: NetlinkConnection,
  change: { readonly remove: readonly Element[]; readonly add: readonly Element[] },
  owner: string,
  table: Table,
): void {
  const requests = [
    ...elementRequests(NFT_MSG.DELSETELEM, 0, change.remove, table),
    ...elementRequests(NFT_MSG.NEWSETELEM, NLM_F.CREATE, change.add, table),
  ];
  commit(nl, requests, { op: "nf_tables", action: "change", object: `the rules of ${owner}` });
}

/** Deletes the table with all that is in it. Somebody may have flushed the ruleset just now. */
function deleteTable(nl: NetlinkConnection, table: Table): void {
  const type = nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.DELTABLE);
  const payload = tablePayload(table).finish();
  tolerateAbsence(() =>
    commit(nl, [{ type, flags: 0, payload }], {
      op: "NFT_MSG_DELTABLE",
      action: "delete",
      object: tableLabel(table),
    })
  );
}

/** Of a table and all that is in it but its elements. They fail when it is there already. */
function makeRequests(table: Table, messages: string): BatchedRequest[] {
  const payload = tablePayload(table).finish();
  const flags = NLM_F.CREATE | NLM_F.EXCL;
  return [
    { type: nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.NEWTABLE), flags, payload },
    ...decodeMessages(Uint8Array.fromBase64(messages)),
  ];
}

/** Takes a table away, whether it is there or not. */
function dropRequests(table: Table): BatchedRequest[] {
  const payload = tablePayload(table).finish();
  return [
    { type: nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.NEWTABLE), flags: NLM_F.CREATE, payload },
    { type: nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.DELTABLE), flags: 0, payload },
  ];
}

function tablePayload(table: Table): Encoder {
  return beginPayload(table).attrString(NFTA_TABLE.NAME, table.name);
}

function elementRequests(
  message: number,
  flags: number,
  elements: readonly Element[],
  table: Table,
): BatchedRequest[] {
  const requests: BatchedRequest[] = [];
  const type = nfnlType(NFNL_SUBSYS.NFTABLES, message);
  const content = message === NFT_MSG.NEWSETELEM ? "elements" : "keys";
  for (const [set, own] of Map.groupBy(elements, ({ set }) => set)) {
    for (let start = 0; start < own.length; start += ELEMENTS_PER_MESSAGE) {
      const part = own.slice(start, start + ELEMENTS_PER_MESSAGE);
      const payload = encodeElements(set, part, content, table);
      requests.push({ type, flags, payload });
    }
  }
  return requests;
}

/**
 * nf_tables takes changes between the marks of a transaction only. Whichever request it refuses, it
 * says so; the last one's acknowledgement tells that it took them all.
 */
export function commit(
  nl: NetlinkConnection,
  requests: readonly BatchedRequest[],
  subject: Subject,
): void {
  const last = requests.at(-1);
  if (last === undefined) return;
  const payload = new Encoder().u8(AF.UNSPEC).u8(0).u16be(NFNL_SUBSYS.NFTABLES).finish();
  nl.batch([
    { type: NFNL_MSG_BATCH.BEGIN, flags: 0, payload },
    ...requests.slice(0, -1),
    { ...last, flags: last.flags | NLM_F.ACK },
    { type: NFNL_MSG_BATCH.END, flags: 0, payload },
  ], subject);
}
