/**
 * Links: lists, creates, changes and deletes them, as `ip link` does.
 *
 * @module
 */

import { Errno, failedWith, tolerate } from "../sys/libc.ts";
import type { NetlinkConnection } from "./connection.ts";
import type { Change, Query } from "./requests.ts";
import { NetlinkError, type Subject } from "./errors.ts";
import {
  type BridgeOptions,
  type BridgePortOptions,
  decodeCounters,
  decodeLink,
  encodeBridgePort,
  encodeLink,
  encodeLinkFilter,
  type Link,
  type LinkCounters,
  type LinkRequest,
  type VethPeer,
} from "./link-message.ts";
import { NLM_F, RTM } from "./message.ts";

export type {
  BridgeOptions,
  BridgePortOptions,
  Link,
  LinkCounters,
  VethPeer,
} from "./link-message.ts";

/** `IFNAMSIZ`, including the final NUL (linux/if.h). */
const IFNAMSIZ = 16;

/** The index of every namespace's `lo` (net/flow.h). */
export const LOOPBACK_IFINDEX = 1;

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
  const [found] = nl.ask([linkQuery(key)]);
  return found && decodeLink(found.payload);
}

function linkQuery(key: LinkKey): Query {
  return {
    type: RTM.GETLINK,
    payload: encodeLink({ ...byKey(key), skipStats: true }),
    subject: { action: "read", object: typeof key === "string" ? `link "${key}"` : `link ${key}` },
    absent: ["ENODEV"],
  };
}

/**
 * What passed a link; undefined if no link has that name or index.
 *
 * Equivalent to: `ip -s link show NAME`
 */
export function getLinkCounters(nl: NetlinkConnection, key: LinkKey): LinkCounters | undefined {
  if (!canExist(key)) return undefined;
  const subject = {
    action: "read",
    object: `the counters of ${typeof key === "string" ? `link "${key}"` : `link ${key}`}`,
  };
  const payload = encodeLink(byKey(key));
  const [found] = nl.ask([{ type: RTM.GETLINK, payload, subject, absent: ["ENODEV"] }]);
  return found && decodeCounters(found.payload);
}

/**
 * One link that must exist.
 *
 * @throws {NetlinkError} ENODEV when it does not
 */
export function requireLink(nl: NetlinkConnection, key: LinkKey): Link {
  return requireLinks(nl, [key])[0]!;
}

/**
 * Several links that must exist, asked for at once.
 *
 * @throws {NetlinkError} ENODEV when one does not
 */
export function requireLinks(nl: NetlinkConnection, keys: readonly LinkKey[]): Link[] {
  const found = keys.every(canExist) ? nl.ask(keys.map(linkQuery)) : [];
  return keys.map((key, index) => {
    const answer = found[index];
    if (answer !== undefined) return decodeLink(answer.payload);
    throw new NetlinkError({
      op: "RTM_GETLINK",
      action: "find",
      object: typeof key === "string" ? `link "${key}"` : `link ${key}`,
      errno: Errno.ENODEV,
    });
  });
}

/** A veth pair to create. */
export interface VethRequest extends Pick<LinkRequest, "mac" | "mtu" | "master" | "up"> {
  readonly name: string;
  /** The other end, created directly in the namespace `netnsFd`. It stays down. */
  readonly peer: VethPeer;
}

/**
 * Creates a veth pair.
 *
 * Equivalent to: `ip link add NAME mtu N address MAC master BRIDGE type veth peer name PEER
 * netns NS …`
 *
 * @returns the near end
 * @throws {NetlinkError} EEXIST when either name is taken
 */
export function createVeth(nl: NetlinkConnection, request: VethRequest): Link {
  return createLink(nl, { ...request, kind: "veth" }, "CONFIG_VETH");
}

/** A bridge to create. */
export interface BridgeRequest extends BridgeOptions, Pick<LinkRequest, "mac" | "mtu" | "up"> {
  readonly name: string;
}

/**
 * Creates a bridge.
 *
 * Equivalent to: `ip link add NAME address MAC mtu N type bridge mcast_snooping 0|1`
 *
 * @returns its index
 * @throws {NetlinkError} EEXIST when the name is taken
 */
export function createBridge(nl: NetlinkConnection, request: BridgeRequest): number {
  const { mcastSnooping, ...link } = request;
  const bridge = mcastSnooping === undefined ? {} : { mcastSnooping };
  return createLink(nl, { ...link, kind: "bridge", bridge }, "CONFIG_BRIDGE").index;
}

function createLink(
  nl: NetlinkConnection,
  link: LinkRequest & { readonly name: string },
  feature: string,
): Link {
  // EEXIST does not say which of the two names is taken.
  const peer = link.peer === undefined ? "" : ` with peer "${link.peer.name}"`;
  const subject = { action: "create", object: `link "${link.name}"${peer}`, feature };
  // Since Linux 6.2, the answer has the new link. Older kernels are asked for it.
  const flags = NLM_F.CREATE | NLM_F.EXCL | NLM_F.ECHO;
  for (const reply of nl.request(RTM.NEWLINK, flags, encodeLink(link), subject)) {
    if (reply.type !== RTM.NEWLINK) continue;
    const made = decodeLink(reply.payload);
    if (made.name === link.name) return made;
  }
  return requireLink(nl, link.name);
}

/** What {@linkcode setLink} can change. */
export type LinkChanges = Omit<LinkRequest, "index" | "kind" | "bridge" | "peer" | "skipStats">;

/**
 * Changes a link with one message. The kernel applies address, name, bridge and state in this
 * order; all of them in the new namespace, where it is moved to one.
 *
 * Equivalent to: `ip link set NAME …`
 */
export function setLink(nl: NetlinkConnection, index: number, changes: LinkChanges): void {
  nl.change(linkChange(nl, index, changes));
}

/** What {@linkcode setLink} asks for. */
export function linkChange(nl: NetlinkConnection, index: number, changes: LinkChanges): Change {
  return {
    type: RTM.NEWLINK,
    flags: 0,
    payload: encodeLink({ ...changes, index }),
    subject: { action: "change", object: () => linkLabel(nl, index) },
  };
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
  nl.change(bridgePortChange(nl, index, options));
}

/** What {@linkcode setBridgePort} asks for. */
export function bridgePortChange(
  nl: NetlinkConnection,
  index: number,
  options: BridgePortOptions,
): Change {
  return {
    type: RTM.SETLINK,
    flags: 0,
    payload: encodeBridgePort(index, options),
    subject: {
      action: "change",
      object: () => `bridge port ${linkLabel(nl, index).slice("link ".length)}`,
    },
  };
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
  const payload = encodeLink(byKey(key));
  return tolerate(["ENODEV"], () => nl.request(RTM.DELLINK, 0, payload, subject)) !== undefined;
}

/**
 * The group of the hosts' ends of VMs' links that were taken away, and are down: they are deleted together.
 * One that a process left that was killed is as good as gone.
 */
export const GONE_GROUP = 0x746c;

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
