/**
 * What the stores of elements in nftables and in iptables have in common.
 *
 * @module
 */

import type { Finding } from "../finding.ts";
import type { NftTable } from "../netlink/nftables/objects.ts";
import type { GuestRules } from "./model.ts";
import { type Entry, type FirewallLayer, type Place, sameValue } from "./place.ts";

/** The backend that keeps the rules. */
export type FirewallKind = "nftables" | "iptables";

/** The tables of a host's firewalls. */
export interface Survey {
  /** Absent where the kernel has no nf_tables. */
  readonly tables: readonly NftTable[] | undefined;
  /** The old tables of iptables that were ever used. */
  readonly legacy: readonly NftTable[];
}

/** The elements of a guest that a store keeps. */
export interface Kept {
  readonly layer: FirewallLayer;
  readonly want: (rules: GuestRules) => readonly Entry[];
  /** The name of an element in a finding. */
  readonly describe: (element: Entry) => string;
}

/** Elements in the kernel, and the rules that look them up. */
export interface ElementStore extends Place, Disposable {
  readonly kind: FirewallKind;
  /** Whether the store has anything of tapkit's. */
  exists(): boolean;
  readSets(sets: readonly string[]): Entry[];
  /** Removes everything of tapkit's. */
  delete(): void;
}

/** The finding for an element that is missing, or differs. */
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
