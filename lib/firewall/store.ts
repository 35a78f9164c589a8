/**
 * Where elements are kept: what nftables and iptables have in common (no code).
 *
 * @module
 */

import type { Family } from "../inet/ip.ts";
import type { Element, SetName } from "./ruleset.ts";

/** The means that rules are made by. */
export type FirewallKind = "nftables" | "iptables";

/** A table of nf_tables. */
export interface NftTable {
  /** `"inet"`, `"ip"`, `"ip6"`, `"bridge"`, …; another one's number. */
  readonly family: string;
  readonly name: string;
}

/** What a look at a host tells of its firewalls. */
export interface Survey {
  /** Absent where the kernel has no nf_tables. */
  readonly tables: readonly NftTable[] | undefined;
  /** The old tables of iptables that were ever used. */
  readonly legacy: readonly NftTable[];
}

/** A chain that is hooked where packets are forwarded, or leave. */
export interface ForwardChain {
  /** `"inet"`, `"ip"` or `"ip6"`. */
  readonly family: string;
  readonly table: string;
  readonly chain: string;
}

/** What a look at the rules that all guests share found. */
export interface StoreState {
  /** Whether there is anything of tapkit's at all. */
  readonly exists: boolean;
  /** Whether all of them are there, of the families asked for. */
  readonly intact: boolean;
  /** A sentence for each one that is missing. */
  readonly problems: readonly string[];
}

/**
 * Elements in the kernel, and the rules that look them up. Each verb is one transaction; reading
 * after {@linkcode look} may answer as of then.
 */
export interface ElementStore extends Disposable {
  readonly kind: FirewallKind;
  /** Whether there is anything of tapkit's at all. */
  exists(): boolean;
  look(families: ReadonlySet<Family>): StoreState;
  /** Those of the elements whose keys are there, as they are there, by `elementId`. */
  read(elements: readonly Element[]): Map<string, Element>;
  readSets(sets: readonly SetName[]): Element[];
  /**
   * Deletes elements, which must be there, and adds others.
   *
   * @param owner whose rules change, for the error
   */
  change(
    change: { readonly remove: readonly Element[]; readonly add: readonly Element[] },
    owner: string,
  ): void;
  /** Makes the shared rules anew, with these elements and no others, from what a look found. */
  remake(elements: readonly Element[], found: StoreState): void;
  /** Takes everything of tapkit's away. */
  delete(): void;
}
