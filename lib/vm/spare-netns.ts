/**
 * A network namespace that is ready before a VM needs it.
 *
 * @module
 */

import { NetlinkConnection } from "../netlink/connection.ts";
import { LOOPBACK_IFINDEX, setLink } from "../netlink/link.ts";
import { type Netns, newNetns, withNetns } from "../sys/netns.ts";
import { createTap } from "../sys/tap.ts";
import { linkNames } from "./record/identity.ts";

/** A namespace, and a connection of it. */
export interface Inside {
  readonly netns: Netns;
  readonly nl: NetlinkConnection;
  /** A TAP that is there already, made as {@linkcode createTap} makes one that is quiet and root's. */
  readonly tap?: string;
}

/** The TAP of most VMs. */
const TAP = linkNames("eth0").tap;

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
 * Keeps one namespace ready, from the first time that one was asked for. It has a TAP, but no name, so it goes
 * with the process.
 */
export class SpareNetns implements Disposable {
  #spare: Inside | undefined;
  #isTaken = false;
  #isDone = false;

  /**
   * The namespace, which the caller has to close; undefined if none is ready.
   *
   * @param tap the TAP that is wanted there, if root's
   */
  take(tap: string | undefined): Inside | undefined {
    if (tap !== TAP) return undefined;
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
      using stack = new DisposableStack();
      const { netns, nl } = enterNew(newNetns());
      stack.use(netns);
      stack.use(nl);
      withNetns(netns, () => createTap({ name: TAP, quiet: true }));
      stack.move();
      this.#spare = { netns, nl, tap: TAP };
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
