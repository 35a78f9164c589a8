/**
 * Places at which what is being done can be given up.
 *
 * @module
 */

import { libc } from "./sys/libc.ts";

/**
 * Lets signals that have come be heard, which nothing synchronous does, and throws the reason of
 * `signal` where it has been raised.
 *
 * The last one of a verb stands before it records that all is done: what comes later is too late.
 */
export async function checkpoint(signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return;
  // A turn of the event loop. A timer's takes two milliseconds, the first one eight.
  await libc().usleep_wait(0);
  signal.throwIfAborted();
}
