/**
 * Answers of many lines, which a client may read slowly, or not at all.
 *
 * @module
 */

import { InterruptedError } from "../errors.ts";
import { SIGNALS } from "../signals.ts";

/** How lines are sent. */
export interface LinesOptions {
  /** How long a client may leave a line unread. */
  readonly stallMs: number;
  /** Called with the reason when the client went away, or reads no more. */
  readonly abort: (reason: InterruptedError) => void;
  /** Called when all is sent, or given up. */
  readonly onEnd: () => void;
}

/** The error of a request whose client is not there any more. */
export function clientGone(how = "the client went away"): InterruptedError {
  return new InterruptedError(how, SIGNALS.SIGHUP);
}

/** The pieces in which an answer of known size is sent, in characters. */
const PIECE = 64 * 1024;

/** JSON Lines, one for each value. */
export async function* jsonLines(values: AsyncIterable<unknown>): AsyncGenerator<string> {
  for await (const value of values) yield `${JSON.stringify(value)}\n`;
}

/** A text in pieces. */
export async function* piecesOf(text: string): AsyncGenerator<string> {
  for (let from = 0; from < text.length; from += PIECE) yield text.slice(from, from + PIECE);
}

/**
 * A body of the texts that `source` yields. The next one is asked for when the client has taken the
 * one before.
 */
export function paced(
  source: AsyncIterable<string>,
  { stallMs, abort, onEnd }: LinesOptions,
): ReadableStream<Uint8Array<ArrayBuffer>> {
  const iterator = source[Symbol.asyncIterator]();
  const encoder = new TextEncoder();
  let timer: ReturnType<typeof setTimeout> | undefined;
  let ended = false;
  const end = async () => {
    clearTimeout(timer);
    if (ended) return;
    ended = true;
    try {
      await iterator.return?.();
    } finally {
      onEnd();
    }
  };
  return new ReadableStream({
    async pull(controller) {
      clearTimeout(timer);
      try {
        const { done, value } = await iterator.next();
        if (ended) return;
        if (done) {
          await end();
          return controller.close();
        }
        controller.enqueue(encoder.encode(value));
      } catch (error) {
        await end();
        return controller.error(error);
      }
      timer = setTimeout(() => {
        const reason = clientGone(`the client read nothing for ${stallMs / 1000} seconds`);
        abort(reason);
        controller.error(reason);
        end();
      }, stallMs);
    },
    async cancel() {
      abort(clientGone());
      await end();
    },
  }, { highWaterMark: 0 });
}
