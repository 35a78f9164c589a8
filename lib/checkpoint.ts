/**
 * Points at which a call can be interrupted.
 *
 * @module
 */

import { libc } from "./sys/libc.ts";

/**
 * Lets pending signals be handled, which synchronous code does not do, and throws the reason of
 * `signal` if it is aborted.
 *
 * The last checkpoint of a verb stands before it records that all is done. A later signal is too
 * late.
 */
export async function checkpoint(signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return;
  // One turn of the event loop. With a timer it takes two milliseconds, the first time eight.
  await libc().usleep_wait(0);
  signal.throwIfAborted();
}
