import { assert } from "@std/assert";
import { fuzz, FUZZ_TARGETS } from "../support/fuzz.ts";

/** Thousands here; `deno task fuzz` feeds a million. */
const COUNT = 5000;
/** Those that once found something are kept. */
const SEEDS = [1, 20250101];

for (const [target, make] of Object.entries(FUZZ_TARGETS)) {
  const name = `fuzz: ${target}: taken, or refused with the error that is meant for it`;
  const fn = () => {
    using target = make();
    for (const seed of SEEDS) {
      const taken = fuzz(target, COUNT, seed);
      assert(taken > 0 && taken < COUNT, `${taken} of ${COUNT} inputs were taken`);
    }
  };
  // Who reads records looks libc's functions up, which stay.
  Deno.test({ name, fn, sanitizeResources: false });
}
