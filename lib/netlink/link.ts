/**
 * Links: lists, creates, changes and deletes them, as `ip link` does.
 *
 * @module
 */

import { Errno, failedWith } from "../sys/libc.ts";
import type { NetlinkConnection } from "./connection.ts";
import { NetlinkError, type Subject } from "./errors.ts";
import {
  type AddrGenMode,
  type BridgeOptions,
  type BridgePortOptions,
  decodeLink,
  encodeBridgePort,
  encodeLink,
  encodeLinkFilter,
  type Link,
  type LinkRequest,
  type VethPeer,
} from "./link-message.ts";
import { NLM_F, RTM } from "./message.ts";

export type {
  AddrGenMode,
  BridgeOptions,
  BridgePortOptions,
  Link,
  OperState,
  VethPeer,
} from "./link-message.ts";

/** `IFNAMSIZ`, including the final NUL (linux/if.h). */
const IFNAMSIZ = 16;

/** A link by its index, or by its name. */
export type LinkKey = number | string;

/** A link in errors: its name, if it can be found. */
export function linkLabel(nl: NetlinkConnection, key: LinkKey): string {
  if (typeof key === "string") return `link "${key}"`;
  try {
    const link = getLink(nl, key);
    if (link !== undefined) return `link "${link.name}"`;
  } catch {
    // The first failure is reported, not this one.
  }
  return `link ${key}`;
}

function byKey(key: LinkKey): LinkRequest {
  return typeof key === "number" ? { index: key } : { name: key };
}

function canExist(key: LinkKey): boolean {
  return typeof key === "number"
    ? key > 0
    : key !== "" && new TextEncoder().encode(key).length < IFNAMSIZ;
}

/**
 * The links of the namespace, or those of one kind, or the ports of one bridge.
 *
 * Equivalent to: `ip -d link show [type KIND] [master NAME]`
 */
export function listLinks(
  nl: NetlinkConnection,
  filter: { readonly kind?: string; readonly master?: number } = {},
): Link[] {
  const subject = { action: "list", object: "links" };
  const links: Link[] = [];
  for (const message of nl.dump(RTM.GETLINK, encodeLinkFilter(filter), subject)) {
    if (message.type !== RTM.NEWLINK) continue;
    const link = decodeLink(message.payload);
    if (filter.kind !== undefined && link.kind !== filter.kind) continue;
    if (filter.master !== undefined && link.master !== filter.master) continue;
    links.push(link);
  }
  return links;
}

/**
 * One link; undefined if no link has that name or index.
 *
 * Equivalent to: `ip -d link show NAME`
 */
export function getLink(nl: NetlinkConnection, key: LinkKey): Link | undefined {
  if (!canExist(key)) return undefined;
  const payload = encodeLink({ ...byKey(key), skipStats: true });
  const object = typeof key === "string" ? `link "${key}"` : `link ${key}`;
  try {
    return decodeLink(nl.query(RTM.GETLINK, payload, { action: "read", object }).payload);
  } catch (error) {
    if (failedWith(error, "ENODEV")) return undefined;
    throw error;
  }
}

/**
 * One link that must exist.
 *
 * @throws {NetlinkError} ENODEV when it does not
 */
export function requireLink(nl: NetlinkConnection, key: LinkKey): Link {
  const link = getLink(nl, key);
  if (link !== undefined) return link;
  throw new NetlinkError({
    op: "RTM_GETLINK",
    action: "find",
    object: typeof key === "string" ? `link "${key}"` : `link ${key}`,
    errno: Errno.ENODEV,
  });
}

/** A veth pair to create. */
export interface VethRequest {
  readonly name: string;
  readonly mac?: string;
  readonly mtu?: number;
  /** Index of the bridge that the near end becomes a port of. */
  readonly master?: number;
  readonly alias?: string;
  readonly up?: boolean;
  /** With `"none"`, the near end gets no link-local IPv6 address. */
  readonly inet6AddrGenMode?: AddrGenMode;
  /** The other end, created directly in the namespace `netnsFd`. It stays down. */
  readonly peer: VethPeer;
}

/**
 * Creates a veth pair.
 *
 * Equivalent to: `ip link add NAME mtu N address MAC master BRIDGE type veth peer name PEER
 * netns NS …`, and `ip link set NAME alias TEXT` if there is an alias
 *
 * @returns the near end's index
 * @throws {NetlinkError} EEXIST when either name is taken
 */
export function createVeth(nl: NetlinkConnection, request: VethRequest): number {
  const { alias, inet6AddrGenMode, ...rest } = request;
  // The kernel ignores both when it creates a link. They need another message.
  const later = alias !== undefined || inet6AddrGenMode !== undefined;
  const { up, ...down } = rest;
  const index = createLink(nl, { ...(later ? down : rest), kind: "veth" }, "CONFIG_VETH");
  if (!later) return index;
  return finishLink(nl, index, {
    ...(alias === undefined ? {} : { alias }),
    ...(inet6AddrGenMode === undefined ? {} : { inet6AddrGenMode }),
    ...(up === undefined ? {} : { up }),
  });
}

/** A bridge to create. */
export interface BridgeRequest extends BridgeOptions {
  readonly name: string;
  /** If given, it does not change as ports are added and removed. */
  readonly mac?: string;
  readonly mtu?: number;
  readonly alias?: string;
  readonly up?: boolean;
}

/**
 * Creates a bridge.
 *
 * Equivalent to: `ip link add NAME address MAC mtu N type bridge forward_delay N stp_state 0|1
 * vlan_filtering 0|1 mcast_snooping 0|1`
 *
 * @returns its index
 * @throws {NetlinkError} EEXIST when the name is taken
 */
export function createBridge(nl: NetlinkConnection, request: BridgeRequest): number {
  const { name, mac, mtu, alias, up, vlanFiltering, ...bridge } = request;
  const now = {
    name,
    ...(mac === undefined ? {} : { mac }),
    ...(mtu === undefined ? {} : { mtu }),
    kind: "bridge",
    // A kernel without VLAN filtering refuses even to turn it off. It is off on a new bridge.
    bridge: vlanFiltering ? { ...bridge, vlanFiltering } : bridge,
  };
  const state = up === undefined ? {} : { up };
  const feature = vlanFiltering ? "CONFIG_BRIDGE_VLAN_FILTERING" : "CONFIG_BRIDGE";
  if (alias === undefined) return createLink(nl, { ...now, ...state }, feature);
  return finishLink(nl, createLink(nl, now, feature), { alias, ...state });
}

function createLink(
  nl: NetlinkConnection,
  link: LinkRequest & { readonly name: string },
  feature: string,
): number {
  // EEXIST does not say which of the two names is taken.
  const peer = link.peer === undefined ? "" : ` with peer "${link.peer.name}"`;
  const subject = { action: "create", object: `link "${link.name}"${peer}`, feature };
  // Since Linux 6.2, the answer has the new link. Older kernels are asked for it.
  const flags = NLM_F.CREATE | NLM_F.EXCL | NLM_F.ECHO;
  for (const reply of nl.request(RTM.NEWLINK, flags, encodeLink(link), subject)) {
    if (reply.type !== RTM.NEWLINK) continue;
    const made = decodeLink(reply.payload);
    if (made.name === link.name) return made.index;
  }
  return requireLink(nl, link.name).index;
}

/** Completes a new link, or deletes it if that fails. */
function finishLink(nl: NetlinkConnection, index: number, changes: LinkRequest): number {
  try {
    changeLink(nl, index, changes);
    return index;
  } catch (error) {
    deleteLink(nl, index);
    throw error;
  }
}

/** What {@linkcode setLink} can change. */
export interface LinkChanges {
  readonly up?: boolean;
  readonly mtu?: number;
  readonly mac?: string;
  /** Index of a bridge; 0 removes the link from its bridge. */
  readonly master?: number;
  /** The empty text removes it. */
  readonly alias?: string;
  readonly promiscuous?: boolean;
  readonly name?: string;
  /** Descriptor of the namespace to move it to. Other changes are applied there. */
  readonly netnsFd?: number;
  /** The link's group. */
  readonly group?: number;
  readonly inet6AddrGenMode?: AddrGenMode;
}

/**
 * Changes a link with one message. The kernel applies address, name, bridge and state in this
 * order, and the IPv6 address mode after the state: a link that is set up with a mode needs a
 * second message.
 *
 * Equivalent to: `ip link set NAME …`
 */
export function setLink(nl: NetlinkConnection, index: number, changes: LinkChanges): void {
  const { inet6AddrGenMode, ...rest } = changes;
  if (inet6AddrGenMode === undefined || changes.up !== true) return changeLink(nl, index, changes);
  changeLink(nl, index, { inet6AddrGenMode });
  changeLink(nl, index, rest);
}

function changeLink(nl: NetlinkConnection, index: number, changes: LinkRequest): void {
  const subject: Subject = { action: "change", object: () => linkLabel(nl, index) };
  nl.request(RTM.NEWLINK, 0, encodeLink({ ...changes, index }), subject);
}

/**
 * Changes options of a link that is a port of a bridge.
 *
 * Equivalent to: `bridge link set dev NAME hairpin on|off isolated on|off learning on|off …`
 *
 * @throws {NetlinkError} EOPNOTSUPP when the link is not a port of a bridge
 */
export function setBridgePort(
  nl: NetlinkConnection,
  index: number,
  options: BridgePortOptions,
): void {
  const subject: Subject = {
    action: "change",
    object: () => `bridge port ${linkLabel(nl, index).slice("link ".length)}`,
  };
  nl.request(RTM.SETLINK, 0, encodeBridgePort(index, options), subject);
}

/**
 * Deletes a link, and the other end of a veth pair with it.
 *
 * Equivalent to: `ip link delete NAME`
 *
 * @returns whether it existed
 */
export function deleteLink(nl: NetlinkConnection, key: LinkKey): boolean {
  if (!canExist(key)) return false;
  const subject: Subject = { action: "delete", object: () => linkLabel(nl, key) };
  try {
    nl.request(RTM.DELLINK, 0, encodeLink(byKey(key)), subject);
    return true;
  } catch (error) {
    if (failedWith(error, "ENODEV")) return false;
    throw error;
  }
}

/**
 * Deletes all links of a group. The kernel waits once for all of them, instead of once for each.
 * Does not block the calling thread.
 *
 * Equivalent to: `ip link delete group NUMBER`
 *
 * @returns whether there were any
 */
export async function deleteLinkGroup(nl: NetlinkConnection, group: number): Promise<boolean> {
  try {
    const subject = { action: "delete", object: `links of group ${group}` };
    await nl.requestAside(RTM.DELLINK, 0, encodeLink({ group }), subject);
    return true;
  } catch (error) {
    if (failedWith(error, "ENODEV")) return false;
    throw error;
  }
}
