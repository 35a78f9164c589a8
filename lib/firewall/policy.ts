/**
 * Guests' policies in the kernel: isolation and egress. nftables keeps them, whatever keeps the
 * rest of the firewall: iptables has no word for a bridge's ports without bridge-nf-call-iptables.
 *
 * @module
 */

import type { NetlinkConnection } from "../netlink/connection.ts";
import type { Netns } from "../sys/netns.ts";
import { NftStore } from "./kernel.ts";
import type { GuestRules } from "./model.ts";
import {
  bridgePolicyTable,
  describePolicyElement,
  inetPolicyTable,
  policyElements,
} from "./policy-tables.ts";
import { isSame, reconcile } from "./reconcile.ts";
import { type Element, elementId, setNames, type Table } from "./ruleset.ts";

const TABLES = { bridge: bridgePolicyTable, inet: inetPolicyTable } as const;
const FAMILIES = Object.keys(TABLES) as Table["family"][];

/** The policies of one network namespace. A guest without one costs nothing. */
export class PolicyStore {
  readonly #netns: Netns;
  readonly #nl: NetlinkConnection;

  /**
   * @param netns whose policies; its caller closes it
   * @param nl of that namespace; its caller closes it
   */
  constructor(netns: Netns, nl: NetlinkConnection) {
    this.#netns = netns;
    this.#nl = nl;
  }

  /**
   * Makes a guest's policy what is wanted instead of what it was. A table that is not whole is made
   * anew, one that nobody needs is taken away.
   *
   * @param old absent where the guest had no rules
   * @param wanted absent where it is to have none
   * @returns whether anything was changed
   */
  replace(old: GuestRules | undefined, wanted: GuestRules | undefined): boolean {
    const before = old && policyElements(old);
    const after = wanted && policyElements(wanted);
    const owner = (wanted ?? old)?.owner ?? "";
    return FAMILIES.map((family) =>
      this.#apply(family, before?.[family] ?? [], after?.[family] ?? [], owner)
    ).includes(true);
  }

  /** Removes what is tagged with an owner; returns whether there was anything. */
  removeOwner(owner: string): boolean {
    return FAMILIES.map((family) => {
      const { table, store } = this.#open(family);
      if (!store.exists()) return false;
      const elements = store.readSets(setNames(table));
      // Left by a process that was killed before it could take the table away too.
      if (elements.length === 0) store.delete();
      return this.#apply(family, elements.filter((one) => one.owner === owner), [], owner);
    }).includes(true);
  }

  /** Compares a guest's policy with the kernel's; returns a sentence for each difference. */
  check(rules: GuestRules): string[] {
    const elements = policyElements(rules);
    return FAMILIES.flatMap((family) => {
      const wanted = elements[family];
      if (wanted.length === 0) return [];
      const { store } = this.#open(family);
      const present = store.read(wanted);
      return [
        ...store.look().problems,
        ...wanted.filter((element) => !isSame(present.get(elementId(element)), element))
          .map((element) => `the ${describePolicyElement(element)} is missing from nftables`),
      ];
    });
  }

  #open(family: Table["family"]): { table: Table; store: NftStore } {
    const table = TABLES[family]();
    return { table, store: new NftStore(this.#netns, this.#nl, table) };
  }

  #apply(
    family: Table["family"],
    old: readonly Element[],
    wanted: readonly Element[],
    owner: string,
  ): boolean {
    if (old.length + wanted.length === 0) return false;
    const { table, store } = this.#open(family);
    const kept = new Set(wanted.map(elementId));
    const unwanted = old.filter((element) => !kept.has(elementId(element)));
    const { changed } = reconcile(store, setNames(table), { owner, unwanted, wanted });
    if (changed && wanted.length === 0 && store.readSets(setNames(table)).length === 0) {
      store.delete();
    }
    return changed;
  }
}
