/**
 * An error at each single effect of a command. `TAPKIT_CRASH=all` takes every effect and every
 * backend; the ordinary run takes a sample of one backend's, always the same.
 *
 * @module
 */

import { errors, sweepAll } from "../support/crash.ts";
import { SCENARIOS } from "../support/scenarios.ts";

sweepAll(SCENARIOS, errors, {
  title: (what) => `failure: ${what}: an error at any effect undoes the others`,
  only: "nftables",
  stride: (stride) => 2 * stride + 1,
});
