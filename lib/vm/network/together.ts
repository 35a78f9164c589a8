/**
 * Links of several VMs that are deleted together. The kernel waits some 20 ms for each deletion, and once
 * for a whole group.
 *
 * @module
 */

import type { Together } from "../../cni/plugin.ts";
import { removeBridgeIfUnused } from "../../cni/plugins/bridge-device.ts";
import { NetlinkConnection } from "../../netlink/connection.ts";
import {
  deleteLinkGroup,
  GONE_GROUP,
  type Link,
  linkChange,
  listLinks,
} from "../../netlink/link.ts";
import { SyscallError } from "../../errors.ts";
import type { Host } from "../session.ts";

/** How the names of links begin that are to be deleted. */
const GONE_PREFIX = "gone";

/** Of a session: the links that are taken away, and not deleted yet. */
export class GoneLinks implements Together, Disposable {
  readonly #nl: Host["session"]["nl"];
  readonly #bridges = new Set<string>();
  /** Whether links are taken; else each is deleted at once. */
  active = false;

  constructor(nl: Host["session"]["nl"]) {
    this.#nl = nl;
  }

  /** Equivalent to: `ip link set VETH down group N; ip link set VETH name NAME` */
  mark({ index }: Link, bridge: string): boolean {
    this.#bridges.add(bridge);
    // The name is free for the next VM of that name. Where another link has this one, it waits.
    const rename = linkChange(this.#nl, index, { name: `${GONE_PREFIX}${index}` });
    try {
      this.#nl.changeAll([
        linkChange(this.#nl, index, { up: false, group: GONE_GROUP }),
        { ...rename, refused: () => {} },
      ]);
      return true;
    } catch (error) {
      if (error instanceof SyscallError) return false;
      throw error;
    }
  }

  /**
   * Deletes what was taken, by this process and by others that were killed, and bridges without a port
   * then. The caller holds the host's lock.
   *
   * Equivalent to: `ip link delete group N`
   */
  async end(): Promise<void> {
    const links = listLinks(this.#nl);
    const left = links.filter(({ kind, group }) => kind === "veth" && group === GONE_GROUP);
    const masters = new Set(left.map(({ master }) => master));
    const bridges = links.filter(({ kind, index }) => kind === "bridge" && masters.has(index));
    if (left.length > 0) {
      // Others of this process use the session's connection meanwhile.
      using nl = NetlinkConnection.open();
      await deleteLinkGroup(nl, GONE_GROUP);
    }
    const names = new Set([...this.#bridges, ...bridges.map(({ name }) => name)]);
    for (const name of names) removeBridgeIfUnused(this.#nl, name);
    this.#bridges.clear();
  }

  [Symbol.dispose](): void {}
}

const KEY = "gone links";

/** The links that the calls of a session take away together. */
export function goneLinks({ session }: Pick<Host, "session">): GoneLinks {
  return session.keep(KEY, () => new GoneLinks(session.nl));
}

/** Makes a session that is new take links away together with those of another, which outlives it. */
export function shareGoneLinks(session: Host["session"], other: Host["session"]): void {
  session.keep(KEY, () => goneLinks({ session: other }));
}
