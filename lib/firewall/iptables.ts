/**
 * The store in iptables: elements as rules of chains of tapkit's own.
 *
 * For hosts without nf_tables, and where it is asked for: a rule for each port costs more the more
 * there are.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import type { Finding } from "../finding.ts";
import type { Family } from "../inet/ip.ts";
import type { Netns } from "../sys/netns.ts";
import { describeElement, elementsOf, familiesOf } from "./guest-elements.ts";
import {
  hasChains,
  lackingShared,
  ownRules,
  planDelete,
  planElements,
  planShared,
  savedElements,
  type SavedRules,
} from "./iptables-rules.ts";
import { parseSaved } from "./iptables-save.ts";
import type { GuestRules } from "./model.ts";
import { byId, type Entry, entryId, type Found, type PlaceChange } from "./place.ts";
import { type ElementStore, missingElement, type Survey } from "./store.ts";
import { installedVariants, type Variant, Xtables } from "./xtables.ts";

const FAMILIES: readonly Family[] = [4, 6];

/**
 * Opens the variant that holds tapkit's chains, else the one that holds any rules, else the one
 * that `iptables` stands for.
 *
 * @param netns closed with the store
 * @param seen which tables the namespace has
 * @throws {TapkitError} when no program of iptables is installed
 */
export function openIptables(netns: Netns, seen: Survey): IptablesStore {
  const variants = installedVariants();
  const inUse = variants.filter((variant) =>
    variant === "legacy"
      ? seen.legacy.length > 0
      : seen.tables?.some(({ family }) => family === "ip" || family === "ip6")
  );
  const stores = [...inUse, ...variants].map((variant) => new IptablesStore(variant, netns));
  const [first] = inUse.length === 0 ? stores : [
    ...stores.slice(0, inUse.length).filter((store) => store.exists()),
    ...stores,
  ];
  if (first !== undefined) return first;
  throw new TapkitError("iptables is not installed", { mend: "install the package iptables" });
}

/** tapkit's chains of one variant of iptables in one network namespace. */
export class IptablesStore implements ElementStore {
  readonly kind = "iptables";
  readonly layer = "rules";
  readonly whole = false;
  readonly #netns: Netns;
  readonly #xtables: Xtables;
  /** As of the last look. */
  #saved: ReadonlyMap<Family, SavedRules> | undefined;

  /**
   * @param netns where the chains are; closed with this
   * @param env added to the environment of iptables' programs
   */
  constructor(variant: Variant, netns: Netns, env: Readonly<Record<string, string>> = {}) {
    this.#netns = netns;
    this.#xtables = new Xtables(variant, netns, env);
  }

  exists(): boolean {
    return [...this.#load().values()].some(hasChains);
  }

  want(rules: GuestRules): readonly Entry[] {
    return elementsOf(rules);
  }

  read(_: unknown, want: readonly Entry[]): Found<Entry> {
    const saved = this.#load();
    return {
      exists: [...saved.values()].some(hasChains),
      lacking: [...familiesOf(want)].flatMap((family) => lackingShared(saved.get(family)!, family)),
      entries: byId(this.#elements()),
    };
  }

  readSets(sets: readonly string[]): Entry[] {
    return this.#elements().filter(({ set }) => sets.includes(set));
  }

  change({ owner, remove, add, mend }: PlaceChange<Entry>, { entries }: Found<Entry>): void {
    const saved = this.#current();
    const gone = new Set(remove.map(entryId));
    const kept = [...entries.values()].filter((element) => !gone.has(entryId(element)));
    const all = mend ? [...kept, ...add] : [...remove, ...add];
    for (const family of familiesOf(all)) {
      const of = (elements: readonly Entry[]) =>
        elements.filter((element) => familiesOf([element]).has(family));
      const own = saved.get(family)!;
      const text = mend ? planShared(own, family, of(all)) : planElements(own, of(remove), of(add));
      this.#restore(family, text, mend ? "make tapkit's chains" : `change the rules of ${owner}`);
    }
  }

  missing(element: Entry, other?: Entry): Finding {
    return missingElement(this, describeElement(element), element, other);
  }

  delete(): void {
    for (const [family, saved] of this.#current()) {
      this.#restore(family, planDelete(saved), "delete tapkit's chains");
    }
  }

  [Symbol.dispose](): void {
    this.#netns[Symbol.dispose]();
  }

  #restore(family: Family, text: string, action: string): void {
    this.#xtables.restore(family, text, action);
    this.#saved = undefined;
  }

  #load(): ReadonlyMap<Family, SavedRules> {
    return this.#saved = new Map(
      FAMILIES.map((family) => [family, ownRules(parseSaved(this.#xtables.save(family)))]),
    );
  }

  #current(): ReadonlyMap<Family, SavedRules> {
    return this.#saved ?? this.#load();
  }

  #elements(): Entry[] {
    return [...this.#current()].flatMap(([family, saved]) => savedElements(saved, family));
  }
}
