import { assert } from "@std/assert";
import { fuzz, fuzzTargets } from "../support/fuzz.ts";

/** Thousands here; `deno task fuzz` feeds a million. */
const COUNT = 5000;
/** Those that once found something are kept. */
const SEEDS = [1, 20250101];

for (const target of fuzzTargets()) {
  Deno.test(`fuzz: ${target.name}: taken, or refused with the error that is meant for it`, () => {
    using fuzzed = target;
    for (const seed of SEEDS) {
      const taken = fuzz(fuzzed, COUNT, seed);
      assert(taken > 0 && taken < COUNT, `${taken} of ${COUNT} inputs were taken`);
    }
  });
}
