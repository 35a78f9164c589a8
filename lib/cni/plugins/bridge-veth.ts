/**
 * The host's end of an attachment's veth pair: named and tagged so that it is found without the
 * namespace.
 *
 * @module
 */

import type { NetlinkConnection } from "../../netlink/connection.ts";
import { getLink, type Link, listLinks } from "../../netlink/link.ts";
import { ALIAS } from "./bridge-device.ts";

/** Whose link it is. */
export interface LinkOwner {
  readonly containerId: string;
  readonly ifName: string;
}

/** The name of the host's end: the same for the same attachment, so that it is found after a crash. */
export function hostVethName(containerId: string, ifName: string): string {
  // FNV-1a, 64 bits, of which 44 fit beside "veth" into IFNAMSIZ.
  let hash = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(`${containerId}/${ifName}`)) {
    hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
  }
  return `veth${(hash >> 20n).toString(16).padStart(11, "0")}`;
}

/** The alias of the host's end. */
export function hostVethAlias({ containerId, ifName }: LinkOwner): string {
  return `${ALIAS}:${containerId}:${ifName}`;
}

/**
 * The host's end, by its name or, where someone renamed it, by its alias.
 *
 * @param vmNl of the namespace, if it is there: without the other end there is no renamed one
 */
export function findHostVeth(
  nl: NetlinkConnection,
  owner: LinkOwner,
  vmNl?: NetlinkConnection,
): Link | undefined {
  const named = findNamedVeth(nl, owner);
  if (named !== undefined) return named;
  if (vmNl !== undefined && getLink(vmNl, owner.ifName) === undefined) return undefined;
  return listLinks(nl, { kind: "veth" }).find(({ alias }) => alias === hostVethAlias(owner));
}

/** The host's end by its name. */
export function findNamedVeth(
  nl: NetlinkConnection,
  owner: LinkOwner,
): Link | undefined {
  const link = getLink(nl, hostVethName(owner.containerId, owner.ifName));
  if (link?.kind !== "veth") return undefined;
  // Without an alias it was left by a process that was killed before it could set it.
  const alias = link.alias ?? "";
  return alias === "" || alias === hostVethAlias(owner) ? link : undefined;
}
