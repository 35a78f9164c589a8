/**
 * Death at each single effect of attaching. `TAPKIT_CRASH=all` takes every effect; the ordinary run takes
 * a sample of them, always the same.
 *
 * @module
 */

import { sweepDeaths } from "../support/crash.ts";
import { ATTACHING } from "../support/scenarios.ts";

sweepDeaths(ATTACHING);
