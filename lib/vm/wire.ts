/**
 * The wire between an interface of a VM's namespace and its TAP, as both modes make it. No code.
 *
 * @module
 */

import type { NetlinkConnection } from "../netlink/connection.ts";
import type { Link } from "../netlink/link.ts";
import type { Netns } from "../sys/netns.ts";

/** The names of the links of a wire. */
export interface WireNames {
  /** The interface CNI made: `"eth0"`. */
  readonly link: string;
  /** The TAP: `"vm_eth0"`. */
  readonly tap: string;
  /** The inner bridge of the mode that has one: `"br_eth0"`. */
  readonly bridge: string;
}

/** The two ends that are to be joined, or compared. */
export interface WireEnds {
  /** A connection of the VM's namespace. */
  readonly nl: NetlinkConnection;
  readonly names: WireNames;
  readonly link: Link;
  readonly tap: Link;
  /** The guest's MAC: the one CNI gave the interface. */
  readonly mac: string;
}

/** One way to join a TAP and an interface. */
export interface Wire {
  /** Whether address, MAC and routes of the interface are the guest's alone from then on. */
  readonly movesIdentity: boolean;
  /** Joins the ends, both of which have their guards already, if this kernel has any. */
  join(ends: WireEnds & { readonly netns: Netns; readonly guarded: boolean }): void;
  /** Takes the join away, and the ends' filters; what is not there is no error. */
  part(nl: NetlinkConnection, names: WireNames): void;
  /** What differs from what `join` made, as sentences. */
  check(ends: WireEnds): string[];
}
