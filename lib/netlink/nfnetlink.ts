/**
 * What all subsystems of NETLINK_NETFILTER have in common: linux/netfilter/nfnetlink.h.
 *
 * @module
 */

import { NetlinkConnection } from "./connection.ts";
import { NETLINK } from "./message.ts";
import { Encoder } from "./wire.ts";

/** Subsystems, the high byte of a message's type. */
export const NFNL_SUBSYS = { CTNETLINK: 1, NFTABLES: 10 } as const;

/** Opens a connection for conntrack and nftables in the current network namespace. */
export function openNetfilter(): NetlinkConnection {
  return NetlinkConnection.open(NETLINK.NETFILTER);
}

/** A message's type. */
export function nfnlType(subsystem: number, message: number): number {
  return (subsystem << 8) | message;
}

/** Begins a payload: `struct nfgenmsg`. */
export function nfgenmsg(family: number): Encoder {
  return new Encoder().u8(family).u8(0).u16be(0);
}

/** `sizeof(struct nfgenmsg)`. */
export const NFGENMSG_LEN = 4;
