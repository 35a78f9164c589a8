/**
 * Connections of removed VMs, which the resident ends when nobody waits for it.
 *
 * @module
 */

import { describe } from "../errors.ts";
import { endGoneFlows, GoneGuests } from "../firewall/gone-flows.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { NETLINK } from "../netlink/message.ts";
import type { HostOptions } from "../vm/types.ts";
import { changingHost } from "../vm/verbs/work.ts";
import type { Turns } from "./turns.ts";

/** Of the time, searching takes one part in so many at most. */
const SHARE = 20;

/** Searches for connections of removed VMs, one search at a time. */
export class StaleFlows implements AsyncDisposable {
  readonly #options: HostOptions;
  readonly #turns: Turns;
  #searching: Promise<void> | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** When the next search may begin. */
  #from = 0;

  /** @param options without a signal: what has begun ends */
  constructor(options: HostOptions, turns: Turns) {
    this.#options = options;
    this.#turns = turns;
  }

  /** Called when VMs were removed. */
  search(): void {
    if (this.#timer !== undefined) return;
    const delay = Math.max(0, this.#from - performance.now());
    this.#timer = setTimeout(() => {
      this.#searching = (this.#searching ?? Promise.resolve()).then(() => this.#search());
    }, delay);
  }

  async #search(): Promise<void> {
    this.#timer = undefined;
    const begun = performance.now();
    try {
      using nl = NetlinkConnection.open(NETLINK.NETFILTER);
      await endGoneFlows(
        nl,
        new GoneGuests(),
        (act) =>
          this.#turns.take(
            undefined,
            () => changingHost(this.#options, () => Promise.resolve(act())),
          ),
      );
    } catch (error) {
      this.#options.note?.(
        `warning: connections of removed VMs are left until their ports are used: ${
          describe(error)
        }`,
      );
    }
    const now = performance.now();
    this.#from = now + SHARE * (now - begun);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#timer);
    await this.#searching;
  }
}
