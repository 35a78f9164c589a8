/**
 * A network namespace that is ready before a VM needs it.
 *
 * @module
 */

import { NetlinkConnection } from "../netlink/connection.ts";
import { LOOPBACK_IFINDEX, setLink } from "../netlink/link.ts";
import { type Netns, newNetns, withNetns } from "../sys/netns.ts";

/** A namespace, and a connection of it. */
export interface Inside {
  readonly netns: Netns;
  readonly nl: NetlinkConnection;
}

/**
 * Opens a connection of a namespace that is to be a VM's, and sets its loopback up.
 *
 * @param netns is closed if that fails
 */
export function enterNew(netns: Netns): Inside {
  using stack = new DisposableStack();
  stack.use(netns);
  const nl = stack.use(withNetns(netns, () => NetlinkConnection.open()));
  setLink(nl, LOOPBACK_IFINDEX, { up: true });
  stack.move();
  return { netns, nl };
}

/**
 * Keeps one namespace ready, from the first time that one was asked for. It has no name and nothing is in
 * it, so it goes with the process.
 */
export class SpareNetns implements Disposable {
  #spare: Inside | undefined;
  #isTaken = false;
  #isDone = false;

  /** The namespace, which the caller has to close; undefined if none is ready. */
  take(): Inside | undefined {
    const spare = this.#spare;
    this.#spare = undefined;
    this.#isTaken = true;
    return spare;
  }

  /** Makes the next one, if the last was taken. */
  refill(): void {
    if (!this.#isTaken || this.#isDone) return;
    this.#isTaken = false;
    try {
      this.#spare ??= enterNew(newNetns());
    } catch {
      // Who needs one makes it, and says what fails.
    }
  }

  [Symbol.dispose](): void {
    this.#isDone = true;
    this.#spare?.nl[Symbol.dispose]();
    this.#spare?.netns[Symbol.dispose]();
    this.#spare = undefined;
  }
}
