/**
 * The store in iptables: elements as rules of chains of tapkit's own.
 *
 * For hosts without nf_tables, and where it is asked for: a rule for each port costs more the more
 * there are.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import type { Family } from "../inet/ip.ts";
import type { Netns } from "../sys/netns.ts";
import {
  hasChains,
  lackingShared,
  parseSaved,
  planDelete,
  planElements,
  planShared,
  savedElements,
  type SavedRules,
} from "./iptables-rules.ts";
import { type Element, elementId, familiesOf, type SetName } from "./ruleset.ts";
import type { ElementStore, StoreState, Survey } from "./store.ts";
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
export function openIptables(
  netns: Netns,
  seen: Survey,
): IptablesStore {
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
  readonly #netns: Netns;
  readonly #xtables: Xtables;
  /** As of the last look. */
  #saved: ReadonlyMap<Family, SavedRules> | undefined;

  /** @param netns where the chains are; closed with this */
  constructor(variant: Variant, netns: Netns) {
    this.#netns = netns;
    this.#xtables = new Xtables(variant, netns);
  }

  exists(): boolean {
    return [...this.#load().values()].some(hasChains);
  }

  look(families: ReadonlySet<Family>): StoreState {
    const saved = this.#load();
    const problems = [...families].flatMap((family) => {
      const own = saved.get(family)!;
      const program = family === 4 ? "iptables" : "ip6tables";
      if (!hasChains(own)) return [`tapkit's chains are missing from ${program}`];
      return lackingShared(own, family).map((rule) => `${program} lacks the rule "${rule}"`);
    });
    return { exists: [...saved.values()].some(hasChains), intact: problems.length === 0, problems };
  }

  read(elements: readonly Element[]): Map<string, Element> {
    const wanted = new Set(elements.map(elementId));
    return new Map(
      this.#elements().map((element) => [elementId(element), element] as const)
        .filter(([id]) => wanted.has(id)),
    );
  }

  readSets(sets: readonly SetName[]): Element[] {
    return this.#elements().filter(({ set }) => sets.includes(set));
  }

  change(
    { remove, add }: { readonly remove: readonly Element[]; readonly add: readonly Element[] },
    owner: string,
  ): void {
    const saved = this.#current();
    for (const family of familiesOf([...remove, ...add])) {
      const of = (elements: readonly Element[]) =>
        elements.filter((element) => familiesOf([element]).has(family));
      const text = planElements(saved.get(family)!, of(remove), of(add));
      this.#restore(family, text, `change the rules of ${owner}`);
    }
  }

  remake(elements: readonly Element[]): void {
    const saved = this.#current();
    for (const family of familiesOf(elements)) {
      const own = elements.filter((element) => familiesOf([element]).has(family));
      this.#restore(family, planShared(saved.get(family)!, family, own), "make tapkit's chains");
    }
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
    const entries = FAMILIES.map((family) =>
      [family, parseSaved(this.#xtables.save(family))] as const
    );
    return this.#saved = new Map(entries);
  }

  #current(): ReadonlyMap<Family, SavedRules> {
    return this.#saved ?? this.#load();
  }

  #elements(): Element[] {
    return [...this.#current()].flatMap(([family, saved]) => savedElements(saved, family));
  }
}
