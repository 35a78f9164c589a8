/**
 * A table of tapkit's in the kernel: reads its rules, and reads and changes its elements over netlink.
 *
 * nft's listings grow with every element and differ between versions, and opening its library takes
 * longer than attaching a VM. So libnftables only creates tables that are not compiled.
 *
 * @module
 */

import type { Finding } from "../finding.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { type NftMemory, setKey } from "../netlink/nftables/memory.ts";
import { decodeMessages } from "../netlink/message.ts";
import {
  elementRequests,
  isEmptySet,
  readElements,
  readSet,
} from "../netlink/nftables/elements.ts";
import {
  commit,
  deleteTable,
  listRules,
  type NftRule,
  tableCreation,
  tableDeletion,
  tableExists,
  tableLabel,
} from "../netlink/nftables/objects.ts";
import { type Netns, withNetns } from "../sys/netns.ts";
import { Nftables } from "./libnftables.ts";
import type { GuestRules } from "./model.ts";
import {
  byId,
  type Entry,
  entryId,
  type FirewallLayer,
  type Found,
  type PlaceChange,
} from "./place.ts";
import { type ElementStore, type Kept, missingElement } from "./store.ts";
import { marksOf, planAdd, planDropTable, planTable, setOf, type Table } from "./table.ts";

/** The content of a table. */
export interface Contents extends Kept {
  readonly table: () => Table;
  readonly explain?: (error: unknown) => unknown;
}

/** One of tapkit's tables in one network namespace. */
export class NftStore implements ElementStore {
  readonly kind = "nftables";
  readonly whole = false;
  readonly #netns: Netns;
  readonly #memory: NftMemory;
  readonly #contents: Contents;
  #made: Table | undefined;
  /** An element that was there when the table was last found not to be empty: reading it again is less. */
  #left: Entry | undefined;

  /**
   * @param netns where the table is; closed with this
   * @param memory of that namespace
   */
  constructor(netns: Netns, memory: NftMemory, contents: Contents) {
    this.#netns = netns;
    this.#memory = memory;
    this.#contents = contents;
  }

  get #nl(): NetlinkConnection {
    return this.#memory.nl;
  }

  get layer(): FirewallLayer {
    return this.#contents.layer;
  }

  get #table(): Table {
    return this.#made ??= this.#contents.table();
  }

  want(rules: GuestRules): readonly Entry[] {
    return this.#contents.want(rules);
  }

  exists(): boolean {
    return tableExists(this.#nl, this.#table);
  }

  expectNone(): Found<Entry> | undefined {
    const isWhole = this.#lackingRules().length === 0;
    return isWhole ? { exists: true, lacking: [], entries: new Map() } : undefined;
  }

  read(have: readonly Entry[] | "any", want: readonly Entry[]): Found<Entry> {
    let lacking = this.#lackingRules();
    let exists = true;
    if (lacking.length > 0) {
      exists = this.exists();
      // Another process may have created the table since its rules were read.
      if (exists) lacking = this.#readLacking();
      else lacking = [{ object: this.#label, problem: "is missing" }];
    }
    const elements = !exists
      ? []
      : have === "any" || lacking.length > 0
      ? this.readSets(Object.keys(this.#table.sets))
      : readElements(this.#nl, [...have, ...want], this.#setOf);
    return {
      exists,
      lacking,
      entries: byId(elements),
    };
  }

  readSets(sets: readonly string[]): Entry[] {
    return sets.flatMap((set) => readSet(this.#nl, this.#setOf(set)));
  }

  change(
    { owner, remove, add, mend }: PlaceChange<Entry>,
    { exists, entries }: Found<Entry>,
  ): void {
    if (!mend) {
      this.#memory.change(
        [
          ...elementRequests("DEL", remove, this.#setOf),
          ...elementRequests("NEW", add, this.#setOf),
        ],
        [...remove, ...add].map(({ set }) => setKey(this.#setOf(set))),
        { op: "nf_tables", action: "change", object: `the rules of ${owner}` },
      );
      return;
    }
    // What follows is another generation.
    this.#memory.forget();
    const gone = new Set(remove.map(entryId));
    const kept = [...entries.values()].filter((element) => !gone.has(entryId(element)));
    this.#make([...kept, ...add], exists);
  }

  /** Recreates the table with these elements only. */
  #make(elements: readonly Entry[], exists: boolean): void {
    const table = this.#table;
    if (table.messages !== undefined) {
      commit(this.#nl, [
        ...exists ? [tableCreation(table), tableDeletion(table)] : [],
        tableCreation(table, true),
        ...decodeMessages(Uint8Array.fromBase64(table.messages)),
        ...elementRequests("NEW", elements, this.#setOf),
      ], { op: "nf_tables", action: "make", object: this.#label });
      return;
    }
    using nft = withNetns(this.#netns, () => Nftables.open());
    const drop = exists ? planDropTable(table) : "";
    nft.run(drop + planTable(table) + planAdd(elements, table), `make ${this.#label}`);
  }

  /** A table of policies exists only while it has elements. */
  tidy(): void {
    if (this.layer !== "policy") return;
    const left = this.#left;
    if (left !== undefined && readElements(this.#nl, [left], this.#setOf).length > 0) return;
    const sets = Object.keys(this.#table.sets).map(this.#setOf);
    // One that is of another layout has no key that could be asked for, but is an element.
    const filled = sets.find((set) => !isEmptySet(this.#nl, set));
    if (filled === undefined) return this.delete();
    this.#left = readSet(this.#nl, filled).at(-1);
  }

  delete(): void {
    this.#memory.forget();
    deleteTable(this.#nl, this.#table, this.#label);
  }

  missing(element: Entry, other?: Entry): Finding {
    return missingElement(this, this.#contents.describe(element), element, other);
  }

  explain(error: unknown): unknown {
    return this.#contents.explain?.(error) ?? error;
  }

  [Symbol.dispose](): void {
    this.#netns[Symbol.dispose]();
  }

  readonly #setOf = (set: string) => setOf(this.#table, set);

  get #label(): string {
    return `the ${tableLabel(this.#table)}`;
  }

  #lackingRules(): Finding[] {
    return this.#memory.recall(`rules of ${this.#label}`, () => this.#readLacking());
  }

  #readLacking(): Finding[] {
    const text = ({ chain, comment }: Pick<NftRule, "chain" | "comment">) => `${chain}: ${comment}`;
    const { family, name } = this.#table;
    const present = new Set(listRules(this.#nl, { family, table: name }).map(text));
    return marksOf(this.#table).map(text).filter((mark) => !present.has(mark))
      .map((mark) => ({ object: this.#label, problem: `lacks the rule "${mark}"` }));
  }
}
