/**
 * Where the elements that guests consist of are kept: what nftables and iptables have in common.
 *
 * @module
 */

import type { Finding } from "../finding.ts";
import type { NftTable } from "../netlink/nftables/objects.ts";
import type { GuestRules } from "./model.ts";
import { type Entry, type FirewallLayer, type Place, sameValue } from "./place.ts";

/** The means that rules are made by. */
export type FirewallKind = "nftables" | "iptables";

/** What a look at a host tells of its firewalls. */
export interface Survey {
  /** Absent where the kernel has no nf_tables. */
  readonly tables: readonly NftTable[] | undefined;
  /** The old tables of iptables that were ever used. */
  readonly legacy: readonly NftTable[];
}

/** Which of a guest's elements a store keeps. */
export interface Kept {
  readonly layer: FirewallLayer;
  readonly want: (rules: GuestRules) => readonly Entry[];
  /** What a sentence calls one. */
  readonly describe: (element: Entry) => string;
}

/** Elements in the kernel, and the rules that look them up. */
export interface ElementStore extends Place, Disposable {
  readonly kind: FirewallKind;
  /** Whether there is anything of tapkit's at all. */
  exists(): boolean;
  readSets(sets: readonly string[]): Entry[];
  /** Takes everything of tapkit's away. */
  delete(): void;
}

/** How a store lacks an element. */
export function missingElement(
  { kind, layer }: ElementStore,
  object: string,
  element: Entry,
  other?: Entry,
): Finding {
  if (other === undefined || layer === "policy") {
    return { object, problem: `is missing from ${kind}` };
  }
  return sameValue(other, element)
    ? { object, problem: `is tagged ${other.owner || "by nobody"} in ${kind}` }
    : { object, problem: `leads to ${other.value?.join(":")} in ${kind} (${other.owner})` };
}
