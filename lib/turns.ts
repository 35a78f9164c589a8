/**
 * Many things of one kind, done in turns.
 *
 * @module
 */

/** How many may be under way. */
const MOST = 64;

/** One item, and what became of it. */
export interface Ended<T, R> {
  readonly item: T;
  readonly result: R;
}

/**
 * Does `act` for each item. The next one begins when the one before has ended, or says that it waits for
 * somebody else: then both are under way. Whoever stops reading before the end waits for those that are.
 *
 * @param act must not throw; calls `waits` when it holds nothing that the others need
 * @param signal keeps those from beginning that have not begun
 * @returns each item when it has ended
 */
export async function* inTurns<T, R>(
  items: Iterable<T>,
  act: (item: T, waits: () => void) => Promise<R>,
  signal?: AbortSignal,
): AsyncGenerator<Ended<T, R>> {
  const ended: Ended<T, R>[] = [];
  const underway = new Set<Promise<void>>();
  try {
    for (const item of items) {
      if (signal?.aborted) break;
      const { promise: turn, resolve: waits } = Promise.withResolvers<void>();
      const work: Promise<void> = act(item, waits).then((result) => {
        ended.push({ item, result });
        underway.delete(work);
      });
      underway.add(work);
      await Promise.race([turn, work]);
      while (underway.size >= MOST) await Promise.race(underway);
      yield* ended.splice(0);
    }
    while (underway.size > 0) {
      await Promise.race(underway);
      yield* ended.splice(0);
    }
    yield* ended.splice(0);
  } finally {
    // They use what the reader closes after this.
    await Promise.all(underway);
  }
}
