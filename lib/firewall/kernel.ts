/**
 * tapkit's table in the kernel, over netlink: what it has is read, and elements are changed.
 *
 * nft's listings grow with every element and differ between its versions, and opening its library
 * takes longer than attaching a VM; it is left what has rules in it, the table's making.
 *
 * @module
 */

import { nfgenmsg, NFGENMSG_LEN, NFNL_SUBSYS, nfnlType } from "../netlink/conntrack.ts";
import type { BatchedRequest, NetlinkConnection } from "../netlink/connection.ts";
import { NetlinkError, type Subject } from "../netlink/errors.ts";
import { AF, NLM_F } from "../netlink/message.ts";
import { Decoder, Encoder } from "../netlink/wire.ts";
import { type Netns, withNetns } from "../sys/netns.ts";
import {
  decodeComment,
  decodeElements,
  decodeRuleMark,
  encodeElements,
  encodeRuleFilter,
  encodeSet,
  NFPROTO_INET,
} from "./elements.ts";
import { Nftables } from "./libnftables.ts";
import {
  type Element,
  elementId,
  planAdd,
  planDropTable,
  planTable,
  RULE_MARKS,
  type RuleMark,
  type SetName,
  TABLE,
} from "./ruleset.ts";
import type { ElementStore, NftTable, StoreState } from "./store.ts";

/** linux/netfilter/nf_tables.h. */
const NFT_MSG = {
  GETTABLE: 1,
  DELTABLE: 2,
  GETCHAIN: 4,
  GETRULE: 7,
  NEWSETELEM: 12,
  GETSETELEM: 13,
  DELSETELEM: 14,
} as const;
const NFTA_TABLE = { NAME: 1, USERDATA: 6 } as const;
const NFTA_CHAIN = { TABLE: 1, NAME: 3 } as const;
/** linux/netfilter/nfnetlink.h. */
const NFNL_MSG_BATCH = { BEGIN: 0x10, END: 0x11 } as const;

/** Above this many elements, whole sets are read. */
const SINGLE_READS = 32;

/** Elements to a message, whose list takes 64 KiB at most. */
const ELEMENTS_PER_MESSAGE = 256;

/** tapkit's table in one network namespace. */
export class NftStore implements ElementStore {
  readonly kind = "nftables";
  readonly #netns: Netns;
  readonly #nl: NetlinkConnection;

  /**
   * @param netns where the table is; closed with this
   * @param nl of that namespace; its caller closes it
   */
  constructor(netns: Netns, nl: NetlinkConnection) {
    this.#netns = netns;
    this.#nl = nl;
  }

  exists(): boolean {
    return readTableComment(this.#nl) !== undefined;
  }

  generation(): string | undefined {
    // Before Linux 5.10 tables had no comments.
    return readTableComment(this.#nl) || undefined;
  }

  look(): StoreState {
    let lacking = lackingRules(readRuleMarks(this.#nl));
    if (lacking.length === 0) return { exists: true, intact: true, problems: [] };
    const table = `the nftables table "inet ${TABLE}"`;
    if (!this.exists()) {
      return { exists: false, intact: false, problems: [`${table} is missing`] };
    }
    // Another process may have made it, rules and all, since they were looked for.
    lacking = lackingRules(readRuleMarks(this.#nl));
    return {
      exists: true,
      intact: lacking.length === 0,
      problems: lacking.map((mark) => `${table} lacks the rule "${mark}"`),
    };
  }

  read(elements: readonly Element[]): Map<string, Element> {
    return readElements(this.#nl, elements);
  }

  readSets(sets: readonly SetName[]): Element[] {
    return sets.flatMap((set) => readSet(this.#nl, set));
  }

  change(
    change: { readonly remove: readonly Element[]; readonly add: readonly Element[] },
    owner: string,
  ): void {
    changeElements(this.#nl, change, owner);
  }

  remake(elements: readonly Element[], { exists }: StoreState): void {
    const drop = exists ? planDropTable() : "";
    using nft = withNetns(this.#netns, () => Nftables.open());
    const table = planTable(crypto.randomUUID());
    nft.run(drop + table + planAdd(elements), `make the table "inet ${TABLE}"`);
  }

  delete(): void {
    deleteTable(this.#nl);
  }

  [Symbol.dispose](): void {
    this.#netns[Symbol.dispose]();
  }
}

function lackingRules(marks: readonly RuleMark[]): string[] {
  const present = new Set(marks.map(markText));
  return RULE_MARKS.map(markText).filter((mark) => !present.has(mark));
}

function markText({ chain, comment }: RuleMark): string {
  return `${chain}: ${comment}`;
}

/** linux/netfilter.h. */
const NFPROTO: Readonly<Record<number, string>> = {
  1: "inet",
  2: "ip",
  3: "arp",
  5: "netdev",
  7: "bridge",
  10: "ip6",
};

/**
 * All tables of all families.
 *
 * Equivalent to: `nft list tables`
 *
 * @returns undefined where the kernel has no nf_tables
 */
export function listTables(nl: NetlinkConnection): NftTable[] | undefined {
  let messages;
  try {
    messages = nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETTABLE), nfgenmsg(0).finish(), {
      op: "NFT_MSG_GETTABLE",
      action: "list",
      object: "nftables tables",
    });
  } catch (error) {
    // nfnetlink answers so for a subsystem that is not there.
    if (error instanceof NetlinkError && error.code === "EINVAL") return undefined;
    throw error;
  }
  return messages.map(({ payload }) => {
    const family = payload[0]!;
    const attributes = new Decoder(payload).skip(NFGENMSG_LEN).attributes();
    const name = attributes.find(({ type }) => type === NFTA_TABLE.NAME)?.value.asString() ?? "";
    return { family: NFPROTO[family] ?? `${family}`, name };
  });
}

/** Whether a chain is there. */
export function chainExists(nl: NetlinkConnection, { family, name }: NftTable, chain: string) {
  const number = Number(Object.entries(NFPROTO).find(([, text]) => text === family)?.[0] ?? family);
  const payload = nfgenmsg(number).attrString(NFTA_CHAIN.TABLE, name)
    .attrString(NFTA_CHAIN.NAME, chain).finish();
  const found = tolerateAbsence(() =>
    nl.request(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETCHAIN), 0, payload, {
      op: "NFT_MSG_GETCHAIN",
      action: "look up",
      object: `chain "${chain}" of nftables table "${family} ${name}"`,
    })
  );
  return found !== undefined;
}

/** The table's comment, `""` where it has none; undefined where there is no table. */
function readTableComment(nl: NetlinkConnection): string | undefined {
  const payload = nfgenmsg(NFPROTO_INET).attrString(NFTA_TABLE.NAME, TABLE).finish();
  const found = tolerateAbsence(() =>
    nl.query(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETTABLE), payload, {
      op: "NFT_MSG_GETTABLE",
      action: "look up",
      object: `nftables table "inet ${TABLE}"`,
    })
  );
  if (found === undefined) return undefined;
  const attributes = new Decoder(found.payload).skip(NFGENMSG_LEN).attributes();
  const userdata = attributes.find(({ type }) => type === NFTA_TABLE.USERDATA)?.value;
  return userdata === undefined ? "" : decodeComment(userdata.asBytes());
}

/** The table's rules, by their comments; none where there is no table. */
function readRuleMarks(nl: NetlinkConnection): RuleMark[] {
  const messages = tolerateAbsence(() =>
    nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETRULE), encodeRuleFilter(), {
      op: "NFT_MSG_GETRULE",
      action: "list",
      object: `rules of nftables table "inet ${TABLE}"`,
    })
  );
  return (messages ?? []).map(({ payload }) => decodeRuleMark(payload))
    .filter(({ table }) => table === TABLE);
}

/** All elements of a set; none where the set or the table is not there. */
function readSet(nl: NetlinkConnection, set: SetName): Element[] {
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
function readElements(
  nl: NetlinkConnection,
  elements: readonly Element[],
): Map<string, Element> {
  const found = elements.length > SINGLE_READS
    ? [...new Set(elements.map(({ set }) => set))].flatMap((set) => readSet(nl, set))
    : elements.flatMap((element) => readElement(nl, element) ?? []);
  return new Map(found.map((element) => [elementId(element), element]));
}

function readElement(nl: NetlinkConnection, element: Element): Element | undefined {
  const message = tolerateAbsence(() =>
    nl.query(
      nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETSETELEM),
      encodeElements(element.set, [element], "keys"),
      {
        op: "NFT_MSG_GETSETELEM",
        action: "look up",
        object: `element ${element.key.join(" . ")} of nftables set "${element.set}"`,
      },
    )
  );
  return message && decodeElements(element.set, message.payload)[0];
}

/**
 * Deletes elements, which must be there, and adds others: one transaction.
 *
 * Equivalent to: `nft -f -` with `delete element …` and `add element …`. Without the library:
 * opening it costs more than all the rest.
 *
 * @param owner whose rules change, for the error
 * @throws {NetlinkError} ENOENT or EEXIST when the table is not as it was looked at
 */
function changeElements(
  nl: NetlinkConnection,
  change: { readonly remove: readonly Element[]; readonly add: readonly Element[] },
  owner: string,
): void {
  const requests = [
    ...elementRequests(NFT_MSG.DELSETELEM, 0, change.remove),
    ...elementRequests(NFT_MSG.NEWSETELEM, NLM_F.CREATE, change.add),
  ];
  commit(nl, requests, { op: "nf_tables", action: "change", object: `the rules of ${owner}` });
}

/** Deletes the table with all that is in it. */
function deleteTable(nl: NetlinkConnection): void {
  const type = nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.DELTABLE);
  const payload = nfgenmsg(NFPROTO_INET).attrString(NFTA_TABLE.NAME, TABLE).finish();
  commit(nl, [{ type, flags: NLM_F.ACK, payload }], {
    op: "NFT_MSG_DELTABLE",
    action: "delete",
    object: `nftables table "inet ${TABLE}"`,
  });
}

function elementRequests(
  message: number,
  flags: number,
  elements: readonly Element[],
): BatchedRequest[] {
  const requests: BatchedRequest[] = [];
  const type = nfnlType(NFNL_SUBSYS.NFTABLES, message);
  const content = message === NFT_MSG.NEWSETELEM ? "elements" : "keys";
  for (const [set, own] of Map.groupBy(elements, ({ set }) => set)) {
    for (let start = 0; start < own.length; start += ELEMENTS_PER_MESSAGE) {
      const payload = encodeElements(set, own.slice(start, start + ELEMENTS_PER_MESSAGE), content);
      requests.push({ type, flags: flags | NLM_F.ACK, payload });
    }
  }
  return requests;
}

/** nf_tables takes changes between the marks of a transaction only. */
function commit(
  nl: NetlinkConnection,
  requests: readonly BatchedRequest[],
  subject: Subject,
): void {
  const payload = new Encoder().u8(AF.UNSPEC).u8(0).u16be(NFNL_SUBSYS.NFTABLES).finish();
  nl.batch([
    { type: NFNL_MSG_BATCH.BEGIN, flags: 0, payload },
    ...requests,
    { type: NFNL_MSG_BATCH.END, flags: 0, payload },
  ], subject);
}

function tolerateAbsence<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof NetlinkError && error.code === "ENOENT") return undefined;
    throw error;
  }
}
