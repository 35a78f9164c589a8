/**
 * Places where guests' rules stand, and the one way to compare and to change what is there.
 *
 * @module
 */

import { TapkitError, XtablesError } from "../errors.ts";
import type { Finding } from "../finding.ts";
import type { Element } from "../netlink/nftables/elements.ts";
import type { GuestRules } from "./model.ts";

/**
 * What a place is for: the rules that every guest has, its policy and limits, or letting it pass
 * other firewalls.
 */
export type FirewallLayer = "rules" | "policy" | "passes";

/** One thing of an owner's: an element of a set, or a rule in the shape of one. */
export type Entry = Element;

/** What identifies an entry within its place. */
export function entryId({ set, key }: Pick<Entry, "set" | "key">): string {
  return `${set} ${key.join(" . ")}`;
}

/** Entries by their ids. A second one of the same id, which nobody asks for, has a key of its own. */
export function byId<T extends Entry>(entries: readonly T[]): Map<string, T> {
  const map = new Map<string, T>();
  for (const entry of entries) {
    const id = entryId(entry);
    map.set(map.has(id) ? `${id} (${map.size})` : id, entry);
  }
  return map;
}

/** What a place has. */
export interface Found<T> {
  /** Whether there is anything of tapkit's at all. */
  readonly exists: boolean;
  /** What wanted entries share with all others, and is missing. */
  readonly lacking: readonly Finding[];
  /** By {@linkcode entryId}: those asked for; all, where something is lacking. */
  readonly entries: ReadonlyMap<string, T>;
}

/** A change of a place. */
export interface Change<T> {
  /** Whose entries change, for the error. */
  readonly owner: string;
  /** They are there. */
  readonly remove: readonly T[];
  readonly add: readonly T[];
  /** Whether what all share is made anew. */
  readonly mend: boolean;
}

/** A table of tapkit's, its chains in iptables, or a chain of another firewall. */
export interface Place<T extends Entry = Entry> {
  readonly layer: FirewallLayer;
  /** Whether a read gives all of an owner's entries, so that nobody needs to know what it had. */
  readonly whole: boolean;
  /** The entries that checked rules come to. */
  want(rules: GuestRules): readonly T[];
  /** Reads entries by their keys; with `"any"` all of the owner's as well. */
  read(have: readonly T[] | "any", want: readonly T[]): Found<T>;
  /** One transaction, which fails when the place is not as it was found. */
  change(change: Change<T>, found: Found<T>): void;
  /** Takes away what all share where nobody has entries; absent, that is another's decision. */
  tidy?(): void;
  /** A wanted entry is not there, or another one is in its place. */
  missing(entry: T, other?: T): Finding;
  /** An entry that is not wanted; undefined where it does no harm. */
  extra?(entry: T): Finding | undefined;
  /** What an error of adding entries means, where that is not what it says. */
  explain?(error: unknown): unknown;
}

/** What an owner's entries at a place come to. */
export interface Wish<T> {
  readonly owner: string;
  /** What it had; `"any"`: whatever is tagged with it. */
  readonly have: readonly T[] | "any";
  readonly want: readonly T[];
}

/** How a place differs from what is wanted. */
interface Difference<T> {
  /** Wanted entries, each with the one in its place. */
  readonly missing: readonly { readonly entry: T; readonly other?: T }[];
  /** The owner's that are not wanted, as they are there. */
  readonly stale: readonly T[];
  /** Those that the owner had, and another has now. */
  readonly foreign: readonly T[];
  /** Those that the owner had and does not want, and nobody has. */
  readonly gone: readonly T[];
}

function differ<T extends Entry>(
  { entries }: Found<T>,
  { owner, have, want }: Wish<T>,
): Difference<T> {
  const wanted = new Set(want.map(entryId));
  const isUnwanted = (entry: T) => !wanted.has(entryId(entry));
  const had = have === "any" ? [] : have.filter(isUnwanted);
  const unwanted = have === "any"
    ? [...entries.values()].filter(isUnwanted)
    : had.flatMap((entry) => entries.get(entryId(entry)) ?? []);
  const missing = want.flatMap((entry) => {
    const other = entries.get(entryId(entry));
    if (other === undefined) return [{ entry }];
    return other.owner === owner && sameValue(other, entry) ? [] : [{ entry, other }];
  });
  return {
    missing,
    stale: unwanted.filter((entry) => entry.owner === owner),
    foreign: have === "any" ? [] : unwanted.filter((entry) => entry.owner !== owner),
    gone: had.filter((entry) => !entries.has(entryId(entry))),
  };
}

/** Whether two entries lead to the same and have the same limit. */
export function sameValue(a: Entry, b: Entry): boolean {
  return (a.value ?? []).join() === (b.value ?? []).join() && a.limit === b.limit;
}

/** Compares a place with what an owner wants there. */
export function compare<T extends Entry>(
  place: Place<T>,
  owner: string,
  want: readonly T[],
): Finding[] {
  if (want.length === 0 && !place.whole) return [];
  const have = place.whole ? "any" : [];
  const found = place.read(have, want);
  const { missing, stale } = differ(found, { owner, have, want });
  return [
    ...want.length === 0 ? [] : found.lacking,
    ...missing.map(({ entry, other }) => place.missing(entry, other)),
    ...stale.flatMap((entry) => place.extra?.(entry) ?? []),
  ];
}

/** What was done. */
export interface Brought<T> extends Omit<Difference<T>, "missing"> {
  readonly changed: boolean;
  /** Whether what all share was missing, and is made anew. */
  readonly mended: boolean;
  /** What came where nothing was. */
  readonly added: readonly T[];
  /** What came in the place of something else. */
  readonly replaced: readonly T[];
}

/** How a transaction fails when the rules changed after they were looked at. */
const RACE_CODES: readonly unknown[] = ["EEXIST", "ENOENT"];
const ATTEMPTS = 10;

/**
 * Brings an owner's entries to what is wanted. A process that changes the place at the same time
 * makes the transaction fail as a whole: then all is done again.
 *
 * @param refuse throws where an entry must not be replaced by the wanted one
 */
export function bring<T extends Entry>(
  place: Place<T>,
  wish: Wish<T>,
  refuse: (found: T, wanted: T) => void = () => {},
): Brought<T> {
  for (let attempt = 1;; attempt++) {
    try {
      return tryToBring(place, wish, refuse);
    } catch (error) {
      const raced = error instanceof XtablesError ||
        error instanceof TapkitError && "code" in error && RACE_CODES.includes(error.code);
      if (!raced || attempt === ATTEMPTS) {
        throw (wish.want.length > 0 ? place.explain?.(error) : undefined) ?? error;
      }
    }
  }
}

function tryToBring<T extends Entry>(
  place: Place<T>,
  wish: Wish<T>,
  refuse: (found: T, wanted: T) => void,
): Brought<T> {
  const { owner, have, want } = wish;
  const found = place.read(have, want);
  const difference = differ(found, wish);
  const { missing, stale } = difference;
  const others = missing.flatMap(({ entry, other }) => {
    if (other === undefined) return [];
    refuse(other, entry);
    return [other];
  });
  const remove = [...stale, ...others];
  const add = missing.map(({ entry }) => entry);
  // What is only removed needs nothing that all share.
  const mended = want.length > 0 && found.lacking.length > 0;
  const changed = mended || remove.length + add.length > 0;
  if (changed) place.change({ owner, remove, add, mend: mended }, found);
  if (want.length === 0 && found.exists && (changed || have === "any")) place.tidy?.();
  const came = (replaced: boolean) =>
    missing.filter(({ other }) => (other !== undefined) === replaced).map(({ entry }) => entry);
  return { ...difference, changed, mended, added: came(false), replaced: came(true) };
}
