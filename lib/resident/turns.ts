/**
 * Requests that change the host, one after the other.
 *
 * @module
 */

import { orAborted } from "../checkpoint.ts";
import { HttpError } from "./http.ts";

/** How many may wait for their turn. */
const MOST_WAITING = 1000;
/** How many may be under way; all but one of them wait for other programs. */
const MOST_UNDER_WAY = 64;

/**
 * Turns of requests: the next one begins when the one before has ended, or says that it waits for
 * another program. Without them each would wait for the host's lock, in a thread of its own.
 */
export class Turns {
  #last: Promise<void> = Promise.resolve();
  #waiting = 0;
  readonly #underway = new Set<Promise<unknown>>();

  /**
   * Does `act` when it is its turn.
   *
   * @param act gets a function to call when it holds nothing that the others need
   * @throws {HttpError} 503 when too many wait; the signal's reason when it is aborted before the turn
   */
  async take<T>(
    signal: AbortSignal | undefined,
    act: (waits: () => void) => Promise<T>,
  ): Promise<T> {
    if (this.#waiting >= MOST_WAITING) {
      throw new HttpError(503, `${MOST_WAITING} requests are waiting already`, {
        mend: "send it again later; nothing was touched",
      });
    }
    const before = this.#last;
    const { promise: turn, resolve: waits } = Promise.withResolvers<void>();
    this.#last = before.then(() => turn);
    try {
      this.#waiting++;
      try {
        await orAborted(before, signal);
        while (this.#underway.size >= MOST_UNDER_WAY) {
          await orAborted(Promise.race(this.#underway), signal);
        }
      } finally {
        this.#waiting--;
      }
      const work = act(waits);
      const ended = work.then(() => {}, () => {}).finally(() => this.#underway.delete(ended));
      this.#underway.add(ended);
      return await work;
    } finally {
      waits();
    }
  }
}
