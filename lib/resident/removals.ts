/**
 * Removals of single VMs, whose links are deleted together, a moment after the last answer: the kernel
 * waits some 20 ms for each deletion, and once for many.
 *
 * @module
 */

import { describe } from "../errors.ts";
import { shareGoneLinks } from "../vm/network/together.ts";
import { OpenSession } from "../vm/session.ts";
import type { HostOptions, HostSession } from "../vm/types.ts";
import { removingTogether } from "../vm/verbs/take-away.ts";
import { StaleFlows } from "./stale-flows.ts";
import type { Turns } from "./turns.ts";

/** How long links to delete wait for others to join them. They are down, and in nobody's way. */
const GATHER_MS = 100;
/** At this many they are deleted without waiting. */
const MOST = 32;

/** Removals that share the deletion of their links. */
export class Removals implements AsyncDisposable {
  readonly #options: HostOptions;
  readonly #turns: Turns;
  readonly #shared: OpenSession;
  /** Of the links that are to be deleted. */
  readonly #session: OpenSession;
  readonly #flows: StaleFlows;
  #together: AsyncDisposable | undefined;
  #count = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** The deletions that are under way. */
  #ending: Promise<void> = Promise.resolve();

  /**
   * @param options without a signal: what has begun ends
   * @param shared whose sockets are used
   */
  constructor(options: HostOptions, turns: Turns, shared: OpenSession) {
    this.#options = options;
    this.#turns = turns;
    this.#shared = shared;
    this.#session = new OpenSession({ shared });
    this.#flows = new StaleFlows(options, turns);
  }

  /** Does `act`, which removes a VM with the session that it gets. It has its turn. */
  async take<T>(act: (session: HostSession) => Promise<T>): Promise<T> {
    using session = new OpenSession({ shared: this.#shared });
    const together = () => removingTogether({ ...this.#options, session: this.#session });
    this.#together ??= together();
    shareGoneLinks(session, this.#session);
    try {
      return await act(session);
    } finally {
      // It may have waited for a program of others meanwhile.
      this.#together ??= together();
      this.#timer ??= setTimeout(() => this.#end(), GATHER_MS);
      if (++this.#count === MOST) this.#end();
    }
  }

  /** Deletes the links, when it is the turn for that. */
  #end(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#count = 0;
    const deleting = this.#turns.take(undefined, () => this.#delete())
      .catch((error) =>
        this.#options.note?.(`warning: links of removed VMs are left: ${describe(error)}`)
      );
    this.#ending = Promise.all([this.#ending, deleting]).then(() => {});
  }

  async #delete(): Promise<void> {
    const together = this.#together;
    this.#together = undefined;
    await together?.[Symbol.asyncDispose]();
    this.#flows.search();
  }

  /** Deletes what is left. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#timer);
    try {
      await this.#ending;
      await this.#delete();
      await this.#flows[Symbol.asyncDispose]();
    } finally {
      this.#session[Symbol.dispose]();
    }
  }
}
