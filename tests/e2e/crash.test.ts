/**
 * Death at each single effect of a command. `TAPKIT_CRASH=all` takes every effect; the ordinary run
 * takes a sample of them, always the same.
 *
 * @module
 */

import { deaths, sweepAll } from "../support/crash.ts";
import { SCENARIOS } from "../support/scenarios.ts";

sweepAll(SCENARIOS, deaths, {
  title: (what) => `crash: ${what}: killed at any effect, nothing is lost or left`,
});
