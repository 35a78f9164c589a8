/**
 * The connection between a VM's interface and its TAP: what each mode implements. No code.
 *
 * @module
 */

import type { NetlinkConnection } from "../../netlink/connection.ts";
import type { Link } from "../../netlink/link.ts";
import type { Finding } from "../../finding.ts";
import type { Netns } from "../../sys/netns.ts";
import type { LinkNames } from "../record/identity.ts";

/** The two ends of a wire. */
interface WireEnds {
  /** A connection in the VM's namespace. */
  readonly nl: NetlinkConnection;
  readonly names: LinkNames;
  readonly link: Link;
  readonly tap: Link;
  /** The guest's MAC, which CNI gave the interface. */
  readonly mac: string;
}

/** One way to join a TAP and an interface. */
export interface Wire {
  /** Whether the interface loses its address, MAC and routes to the guest. */
  readonly movesIdentity: boolean;
  /** Whether joining gives both ends an ingress qdisc. */
  readonly hasIngress: boolean;
  /** Joins the ends. */
  join(ends: WireEnds & { readonly netns: Netns }): void;
  /** Undoes `join`, and deletes the filters of both ends, as far as they exist. */
  part(nl: NetlinkConnection, names: LinkNames): void;
  /** Compares the kernel with what `join` made. */
  check(ends: WireEnds): Finding[];
}
