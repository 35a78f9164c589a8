/**
 * Feeds damaged input to everything that reads what others wrote: `deno task fuzz [COUNT [SEED]]`,
 * a million inputs each unless said otherwise. A seed that finds something belongs into
 * tests/unit/fuzz.test.ts.
 */

import { fuzz, FUZZ_TARGETS, FuzzFailure } from "./support/fuzz.ts";

const [count = "1000000", seed = String(Date.now() % 1_000_000)] = Deno.args;
let failed = false;
for (const [name, make] of Object.entries(FUZZ_TARGETS)) {
  using target = make();
  const start = performance.now();
  try {
    const taken = fuzz(target, Number(count), Number(seed));
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    console.log(`${name}: ${taken} of ${count} taken, the rest refused (${seconds} s)`);
  } catch (error) {
    if (!(error instanceof FuzzFailure)) throw error;
    console.error(`${name}: ${error.message}`);
    failed = true;
  }
}
console.log(`seed ${seed}`);
if (failed) Deno.exit(1);
