/**
 * Guests' policies in the kernel: isolation, egress and limits. nftables keeps them, whatever keeps
 * the rest of the firewall: iptables has no word for a bridge's ports without
 * bridge-nf-call-iptables, and none for limits whose cost does not grow with the number of guests.
 *
 * @module
 */

import { LimitsError } from "../errors.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import type { Netns } from "../sys/netns.ts";
import { NetlinkError } from "../netlink/errors.ts";
import { NftStore } from "./kernel.ts";
import { describeLimit, limitElements, LIMITS_TABLE } from "./limits-table.ts";
import type { GuestRules } from "./model.ts";
import {
  bridgePolicyTable,
  describePolicyElement,
  inetPolicyTable,
  policyElements,
} from "./policy-tables.ts";
import { isSame, reconcile } from "./reconcile.ts";
import { type Element, elementId, setNames, type Table } from "./ruleset.ts";

/** A table, and what of a guest stands in it. */
interface Part {
  readonly table: () => Table;
  readonly elements: (rules: GuestRules) => readonly Element[];
  readonly describe: (element: Element) => string;
}

const LIMITS: Part = {
  table: () => LIMITS_TABLE,
  elements: limitElements,
  describe: describeLimit,
};

const PARTS: readonly Part[] = [
  {
    table: bridgePolicyTable,
    elements: (rules) => policyElements(rules).bridge,
    describe: describePolicyElement,
  },
  {
    table: inetPolicyTable,
    elements: (rules) => policyElements(rules).inet,
    describe: describePolicyElement,
  },
  LIMITS,
];

export { LimitsError };

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
   * @throws {LimitsError} where the kernel lacks what limits are made of
   */
  replace(old: GuestRules | undefined, wanted: GuestRules | undefined): boolean {
    const owner = (wanted ?? old)?.owner ?? "";
    return PARTS.map((part) => {
      const before = old === undefined ? [] : part.elements(old);
      const after = wanted === undefined ? [] : part.elements(wanted);
      return this.#apply(part, before, after, owner);
    }).includes(true);
  }

  /** Removes what is tagged with an owner; returns whether there was anything. */
  removeOwner(owner: string): boolean {
    return PARTS.map((part) => {
      const { table, store } = this.#open(part);
      if (!store.exists()) return false;
      const elements = store.readSets(setNames(table));
      // Left by a process that was killed before it could take the table away too.
      if (elements.length === 0) store.delete();
      return this.#apply(part, elements.filter((one) => one.owner === owner), [], owner);
    }).includes(true);
  }

  /** Compares a guest's policy with the kernel's; returns a sentence for each difference. */
  check(rules: GuestRules): string[] {
    return PARTS.flatMap((part) => {
      const wanted = part.elements(rules);
      if (wanted.length === 0) return [];
      const { store } = this.#open(part);
      const present = store.read(wanted);
      return [
        ...store.look().problems,
        ...wanted.filter((element) => !isSame(present.get(elementId(element)), element))
          .map((element) => `the ${part.describe(element)} is missing from nftables`),
      ];
    });
  }

  #open(part: Part): { table: Table; store: NftStore } {
    const table = part.table();
    return { table, store: new NftStore(this.#netns, this.#nl, table) };
  }

  #apply(
    part: Part,
    old: readonly Element[],
    wanted: readonly Element[],
    owner: string,
  ): boolean {
    if (old.length + wanted.length === 0) return false;
    const { table, store } = this.#open(part);
    const kept = new Set(wanted.map(elementId));
    const unwanted = old.filter((element) => !kept.has(elementId(element)));
    const change = { owner, unwanted, wanted };
    const { changed } = part === LIMITS && wanted.length > 0
      ? explainLimits(() => reconcile(store, setNames(table), change))
      : reconcile(store, setNames(table), change);
    if (changed && wanted.length === 0 && store.isEmpty()) store.delete();
    return changed;
  }
}

/** What a kernel says that lacks nf_tables, or one of its expressions. */
const LACKING: ReadonlySet<string> = new Set(["EOPNOTSUPP", "EINVAL", "ENOENT", "EPROTONOSUPPORT"]);

function explainLimits<T>(act: () => T): T {
  try {
    return act();
  } catch (cause) {
    if (!(cause instanceof NetlinkError) || !LACKING.has(cause.code ?? "")) throw cause;
    throw new LimitsError(`this kernel cannot limit a guest's connections: ${cause.message}`, {
      mend: "use a kernel with CONFIG_NFT_CONNLIMIT, CONFIG_NFT_LIMIT and CONFIG_NFT_NUMGEN, or " +
        "--max-connections none --new-connections none",
      cause,
    });
  }
}
