/**
 * Points at which a call can be interrupted.
 *
 * @module
 */

import { libc } from "./sys/libc.ts";

/**
 * Waits for a promise, or throws the reason of `signal` when that is aborted before. What the promise is
 * about goes on then.
 */
export async function orAborted<T>(
  promise: Promise<T>,
  signal: AbortSignal | undefined,
): Promise<T> {
  if (signal === undefined) return await promise;
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason);
  if (signal.aborted) abort();
  signal.addEventListener("abort", abort);
  try {
    return await Promise.race([aborted, promise]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

/** Waits for a promise, and no longer than so many milliseconds. What it is about goes on then. */
export async function within(ms: number, promise: Promise<unknown>): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  try {
    await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Waits so long, or throws the reason of `signal` when that is aborted before. */
export async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  try {
    await orAborted(promise, signal);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Lets pending signals be handled, which synchronous code does not do, and throws the reason of
 * `signal` if it is aborted.
 *
 * The last checkpoint of a verb stands before it records that all is done. A later signal is too
 * late.
 */
export async function checkpoint(signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return;
  await turn();
  signal.throwIfAborted();
}

/**
 * Gives others of this process their turn, unless they had one not long ago. Where a guest waits, that is so
 * after {@linkcode RECENT_MS} already.
 */
export async function turn(): Promise<void> {
  const since = performance.now() - turned;
  if (since <= RECENT_MS || (since <= LONGEST_MS && !guestWaits())) return;
  await othersTurn();
}

/** Gives others of this process their turn. */
export async function othersTurn(): Promise<void> {
  // One turn of the event loop. With a timer it takes two milliseconds, the first time eight.
  await libc().usleep_wait(0);
  turned = performance.now();
}

/** When the event loop last turned for a checkpoint, and for how long no other turn is due; milliseconds. */
let turned = -Infinity;
const RECENT_MS = 1;
const LONGEST_MS = 4;

let guestWaits = () => false;

/** What says whether a guest waits for its answer from this process; undefined if it answers none. */
export function askWhetherGuestWaits(ask: (() => boolean) | undefined): void {
  guestWaits = ask ?? (() => false);
}
