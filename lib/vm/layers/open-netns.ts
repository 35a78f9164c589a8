/**
 * The network namespace of the VM at hand, opened once.
 *
 * @module
 */

import { NetlinkConnection } from "../../netlink/connection.ts";
import { type Netns, openNetns, withNetns } from "../../sys/netns.ts";
import type { Inside } from "../spare-netns.ts";
import { isThatOf, type KnownNetns, openIfThere } from "../netns.ts";

/** Opens the namespace of one VM when it is needed, and closes it at the end. */
export class OpenNetns implements Disposable {
  readonly #other: KnownNetns | undefined;
  #stack = new DisposableStack();
  #inside: Inside | undefined;
  #tap: string | undefined;

  /** @param other where a change was cut off, what the namespace is by its other side */
  constructor(other?: KnownNetns) {
    this.#other = other;
  }

  /** The VM's namespace; undefined where it is gone, or another one is at its path. */
  find(known: KnownNetns): Inside | undefined {
    if (this.#inside !== undefined) return this.#inside;
    const netns = openIfThere(known.path);
    if (netns === undefined) return undefined;
    const inside = this.open(netns);
    const sides = [known, this.#other ?? known];
    if (sides.some((side) => isThatOf(side, inside.netns, inside.nl))) return inside;
    this.forget();
    return undefined;
  }

  /** The VM's namespace, which must be there. */
  require(known: KnownNetns): Inside {
    return this.find(known) ?? this.open(openNetns(known.path));
  }

  /** Takes a namespace that was just opened. */
  open(netns: Netns): Inside {
    using stack = new DisposableStack();
    stack.use(netns);
    const nl = withNetns(netns, () => NetlinkConnection.open());
    stack.move();
    return this.adopt({ netns, nl });
  }

  /** Takes a namespace that was just made, and its connection. */
  adopt({ netns, nl, tap }: Inside): Inside {
    this.forget();
    this.#stack.use(netns);
    this.#stack.use(nl);
    this.#tap = tap;
    return this.#inside = { netns, nl };
  }

  /** The name of a TAP that came with a namespace that was just made, once. */
  takeTap(): string | undefined {
    const tap = this.#tap;
    this.#tap = undefined;
    return tap;
  }

  /** Closes it: it is another one by now. */
  forget(): void {
    this.#inside = undefined;
    this.#tap = undefined;
    this.#stack[Symbol.dispose]();
    this.#stack = new DisposableStack();
  }

  [Symbol.dispose](): void {
    this.#stack[Symbol.dispose]();
  }
}
