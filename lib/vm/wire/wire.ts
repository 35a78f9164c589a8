/**
 * The wire between an interface of a VM's namespace and its TAP, as both modes make it. No code.
 *
 * @module
 */

import type { NetlinkConnection } from "../../netlink/connection.ts";
import type { Link } from "../../netlink/link.ts";
import type { Finding } from "../../finding.ts";
import type { Netns } from "../../sys/netns.ts";
import type { LinkNames } from "../record/identity.ts";

/** The two ends that are to be joined, or compared. */
export interface WireEnds {
  /** A connection of the VM's namespace. */
  readonly nl: NetlinkConnection;
  readonly names: LinkNames;
  readonly link: Link;
  readonly tap: Link;
  /** The guest's MAC: the one CNI gave the interface. */
  readonly mac: string;
}

/** One way to join a TAP and an interface. */
export interface Wire {
  /** Whether address, MAC and routes of the interface are the guest's alone from then on. */
  readonly movesIdentity: boolean;
  /** Whether joining gives both ends an ingress qdisc. */
  readonly hasIngress: boolean;
  /** Joins the ends. */
  join(ends: WireEnds & { readonly netns: Netns }): void;
  /** Takes the join away, and the ends' filters; what is not there is no error. */
  part(nl: NetlinkConnection, names: LinkNames): void;
  /** What differs from what `join` made. */
  check(ends: WireEnds): Finding[];
}
