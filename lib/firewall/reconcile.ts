/**
 * Bringing the elements of a store from what they were to what is wanted, in one transaction.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { type Element, elementId, familiesOf, type SetName } from "./ruleset.ts";
import type { ElementStore } from "./store.ts";
import { XtablesError } from "./xtables.ts";

/** What an owner's elements come to. */
export interface ElementChange {
  readonly owner: string;
  /** None of them is wanted too. */
  readonly unwanted: readonly Element[];
  readonly wanted: readonly Element[];
}

/** What was done. */
export interface Reconciled {
  readonly changed: boolean;
  /** Whether rules that all share were missing and are made anew. */
  readonly remade: boolean;
  /** The elements that went or came. */
  readonly touched: readonly Element[];
  /** Those unwanted ones that have become another owner's since, which stay. */
  readonly foreign: readonly Element[];
}

/** How a transaction fails when the rules changed after they were looked at. */
const RACE_CODES: readonly unknown[] = ["EEXIST", "ENOENT"];
const ATTEMPTS = 10;

/**
 * Does what looks at rules and then changes them. A process that changed them in between makes the
 * transaction fail whole: then all is done again.
 */
export function despiteRaces<T>(lookAndChange: () => T): T {
  for (let attempt = 1;; attempt++) {
    try {
      return lookAndChange();
    } catch (error) {
      const raced = error instanceof XtablesError ||
        error instanceof TapkitError && "code" in error && RACE_CODES.includes(error.code);
      if (!raced || attempt === ATTEMPTS) throw error;
    }
  }
}

/**
 * Makes the store have what is wanted and, of this owner, not what is unwanted. Where rules that all
 * share are missing and something is wanted, they are made anew with all elements there are.
 *
 * @param sets all of the store's
 * @param refuse throws where an element that is there must not be replaced by the wanted one
 */
export function reconcile(
  store: ElementStore,
  sets: readonly SetName[],
  change: ElementChange,
  refuse: (found: Element, wanted: Element) => void = () => {},
): Reconciled {
  return despiteRaces(() => tryToReconcile(store, sets, change, refuse));
}

function tryToReconcile(
  store: ElementStore,
  sets: readonly SetName[],
  { owner, unwanted, wanted }: ElementChange,
  refuse: (found: Element, wanted: Element) => void,
): Reconciled {
  const state = store.look(familiesOf(wanted));
  // What is only removed does not call for rules.
  const suffices = state.intact || wanted.length === 0;
  if (!state.exists && suffices) return { changed: false, remade: false, touched: [], foreign: [] };
  const present = state.intact ? store.read([...unwanted, ...wanted]) : new Map(
    // Where nothing is there, no set is asked for.
    (state.exists ? store.readSets(sets) : []).map((element) => [elementId(element), element]),
  );
  const found = (element: Element) => present.get(elementId(element));
  const stale = unwanted.filter((element) => found(element)?.owner === owner);
  const foreign = unwanted.filter((element) => (found(element)?.owner ?? owner) !== owner);
  const missing = wanted.filter((element) => !isSame(found(element), element));
  const replaced = missing.flatMap((element) => {
    const other = found(element);
    if (other === undefined) return [];
    refuse(other, element);
    return [other];
  });
  const [remove, add] = [[...stale, ...replaced], missing];
  const touched = [...remove, ...add];
  if (!suffices) {
    const gone = new Set(remove.map(elementId));
    const kept = [...present.values()].filter((element) => !gone.has(elementId(element)));
    store.remake([...kept, ...add], state);
  } else if (touched.length > 0) store.change({ remove, add }, owner);
  return { changed: !suffices || touched.length > 0, remade: !suffices, touched, foreign };
}

/** Whether a map's elements lead to the same, and those of a set with limits have the same. */
export function sameValue(a: Element, b: Element): boolean {
  return (a.value ?? []).join() === (b.value ?? []).join() && a.limit === b.limit;
}

/** Whether an element is there as it is wanted. */
export function isSame(found: Element | undefined, wanted: Element): boolean {
  return found !== undefined && found.owner === wanted.owner && sameValue(found, wanted);
}
