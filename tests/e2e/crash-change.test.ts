/**
 * Death at each single effect of changing and repairing. `TAPKIT_CRASH=all` takes every effect; the ordinary run takes
 * a sample of them, always the same.
 *
 * @module
 */

import { sweepDeaths } from "../support/crash.ts";
import { CHANGING } from "../support/scenarios.ts";

sweepDeaths(CHANGING);
