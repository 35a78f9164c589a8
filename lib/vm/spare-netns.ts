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

/** After so long without an attach there is time to make the next one. */
const REST_MS = 20;

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
 * Keeps one namespace ready, from the first time that one is asked for. It has no name and nothing is in
 * it, so it goes with the process.
 */
export class SpareNetns implements Disposable {
  #spare: Inside | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** The namespace, which the caller has to close; undefined if none is ready. */
  take(): Inside | undefined {
    const spare = this.#spare;
    this.#spare = undefined;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#fill(), REST_MS);
    return spare;
  }

  #fill(): void {
    try {
      this.#spare ??= enterNew(newNetns());
    } catch {
      // Who needs one makes it, and says what fails.
    }
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#spare?.nl[Symbol.dispose]();
    this.#spare?.netns[Symbol.dispose]();
    this.#spare = undefined;
  }
}
