/**
 * Places that hold guests' rules, and the one function that compares them and the one that changes
 * them.
 *
 * @module
 */

import { TapkitError, XtablesError } from "../errors.ts";
import type { Finding } from "../finding.ts";
import type { Element } from "../netlink/nftables/elements.ts";
import type { GuestRules } from "./model.ts";

/**
 * The purpose of a place: the rules that every guest has, its policy and limits, or passes through
 * other firewalls.
 */
export type FirewallLayer = "rules" | "policy" | "passes";

/** An element of a set, or a rule in the same shape. It has one owner. */
export type Entry = Element;

/** What identifies an entry within its place. */
export function entryId({ set, key }: Pick<Entry, "set" | "key">): string {
  return `${set} ${key.join(" . ")}`;
}

/** Entries by id. A duplicate gets another key, so that it is removed with its owner. */
export function byId<T extends Entry>(entries: readonly T[]): Map<string, T> {
  const map = new Map<string, T>();
  for (const entry of entries) {
    const id = entryId(entry);
    map.set(map.has(id) ? `${id} (${map.size})` : id, entry);
  }
  return map;
}

/** The content of a place. */
export interface Found<T> {
  /** Whether the place has anything of tapkit's. */
  readonly exists: boolean;
  /** Missing parts that all entries need: rules that look elements up, a jump. */
  readonly lacking: readonly Finding[];
  /** By {@linkcode entryId}: the entries asked for, or all if something is lacking. */
  readonly entries: ReadonlyMap<string, T>;
}

/** A change of a place. */
export interface PlaceChange<T> {
  /** The owner of the entries, for the error. */
  readonly owner: string;
  /** Entries that exist. */
  readonly remove: readonly T[];
  readonly add: readonly T[];
  /** Whether to recreate the parts that all entries need. */
  readonly mend: boolean;
}

/** A table of tapkit's, its chains in iptables, or a chain of another firewall. */
export interface Place<T extends Entry = Entry> {
  readonly layer: FirewallLayer;
  /** Whether a read returns all entries, so that it is not necessary to know what an owner had. */
  readonly whole: boolean;
  /** The entries for valid rules. */
  want(rules: GuestRules): readonly T[];
  /**
   * What there is if none of an owner's entries are, without reading them; undefined if that is not
   * known. If some are, {@linkcode change} fails.
   */
  expectNone?(): Found<T> | undefined;
  /** Reads the entries with these keys; with `"any"`, all entries. */
  read(have: readonly T[] | "any", want: readonly T[]): Found<T>;
  /** Changes the place in one transaction. Fails if the place has changed since it was read. */
  change(change: PlaceChange<T>, found: Found<T>): void;
  /** Removes the parts that all entries need, if there are no entries. */
  tidy?(): void;
  /** The finding for a wanted entry that is missing, or differs from `other`. */
  missing(entry: T, other?: T): Finding;
  /** The finding for an unwanted entry; undefined if it does no harm. */
  extra?(entry: T): Finding | undefined;
  /** Returns a clearer error for a failure to add entries, or the same error. */
  explain?(error: unknown): unknown;
}

/** The state an owner's entries should reach. */
export interface Wish<T> {
  readonly owner: string;
  /** The previous entries; `"any"`: all that have the owner's tag. */
  readonly have: readonly T[] | "any";
  readonly want: readonly T[];
}

/** The difference between a place and the wanted state. */
interface Difference<T> {
  /** Wanted entries, each with the entry that has its key now. */
  readonly missing: readonly { readonly entry: T; readonly other?: T }[];
  /** The owner's unwanted entries, as they are now. */
  readonly stale: readonly T[];
  /** Previous entries that have another owner now. */
  readonly foreign: readonly T[];
  /** Unwanted previous entries that do not exist any more. */
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

/** Whether two entries have the same value and limit. */
export function sameValue(a: Entry, b: Entry): boolean {
  return (a.value ?? []).join() === (b.value ?? []).join() && a.limit === b.limit;
}

/** Compares a place with the entries that an owner wants. */
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

/** The result of {@linkcode bring}. */
export interface Brought<T> extends Omit<Difference<T>, "missing"> {
  readonly changed: boolean;
  /** Whether the parts that all entries need were missing, and were recreated. */
  readonly mended: boolean;
  /** New entries with new keys. */
  readonly added: readonly T[];
  /** New entries in place of others. */
  readonly replaced: readonly T[];
}

/** Errors of a transaction if the rules have changed since they were read. */
const RACE_CODES: readonly unknown[] = ["EEXIST", "EBUSY", "ENOENT", "ERESTART"];
const ATTEMPTS = 10;

/**
 * Brings an owner's entries to the wanted state. If another process changes the place at the same
 * time, the whole transaction fails, and is tried again.
 *
 * @param refuse throws if the wanted entry must not replace the other one
 */
export function bring<T extends Entry>(
  place: Place<T>,
  wish: Wish<T>,
  refuse: (found: T, wanted: T) => void = () => {},
): Brought<T> {
  for (let attempt = 1;; attempt++) {
    try {
      return tryToBring(place, wish, refuse, attempt === 1);
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
  isFirst: boolean,
): Brought<T> {
  const { owner, have, want } = wish;
  const isNew = isFirst && have.length === 0;
  const found = (isNew ? place.expectNone?.() : undefined) ?? place.read(have, want);
  const difference = differ(found, wish);
  const { missing, stale } = difference;
  const others = missing.flatMap(({ entry, other }) => {
    if (other === undefined) return [];
    refuse(other, entry);
    return [other];
  });
  const remove = [...stale, ...others];
  const add = missing.map(({ entry }) => entry);
  // A removal does not need the shared parts.
  const mended = want.length > 0 && found.lacking.length > 0;
  const changed = mended || remove.length + add.length > 0;
  if (changed) place.change({ owner, remove, add, mend: mended }, found);
  if (want.length === 0 && found.exists && (changed || have === "any")) place.tidy?.();
  const came = (replaced: boolean) =>
    missing.filter(({ other }) => (other !== undefined) === replaced).map(({ entry }) => entry);
  return { ...difference, changed, mended, added: came(false), replaced: came(true) };
}
