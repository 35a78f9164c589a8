/**
 * Firewalls of others that guests' packets have to pass, and letting them pass there (no code).
 *
 * An accept in a table of tapkit's own does not overrule another table's drop, so the rules that
 * let guests pass stand in the other firewall, each with its owner's tag.
 *
 * @module
 */

import type { GuestRules } from "./model.ts";

/** One place where others drop what is forwarded. */
export interface Gate {
  /** Whether it drops what nothing lets pass. */
  readonly drops: boolean;
  /** What keeps published ports closed to other machines unless they are opened: `"ufw"`. */
  readonly denies?: string | undefined;
  /**
   * Lets a guest pass, as far as it is to: it reaches out and is answered, and is reached by its
   * ports where those are open.
   *
   * @returns whether anything was changed
   */
  open(rules: GuestRules, ports: "open" | "closed"): boolean;
  /** Takes an owner's rules away, and with the last one's all else; returns whether there were. */
  close(owner: string): boolean;
  /** A sentence for each rule that is missing, or is too many. */
  check(rules: GuestRules, ports: "open" | "closed"): string[];
}
