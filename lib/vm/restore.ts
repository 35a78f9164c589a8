/**
 * Bringing all VMs back, after a reboot say.
 *
 * @module
 */

import { InputError, TapkitError } from "../errors.ts";
import { restoreVm } from "./attach.ts";
import { OpenSession } from "./session.ts";
import { hostPaths, recordNames } from "./state.ts";
import type { HostOptions, Restored } from "./types.ts";

/**
 * Brings every recorded VM back to its record, each a transaction of its own, past failures.
 *
 * A VM that is as recorded is left as it is.
 */
export async function* restoreVms(options: HostOptions = {}): AsyncGenerator<Restored> {
  using own = options.session === undefined ? new OpenSession({ batch: true }) : undefined;
  const session = options.session ?? own!;
  for (const name of recordNames(hostPaths(options))) {
    try {
      const record = await restoreVm(name, { ...options, session });
      if (record !== undefined) yield { name, record };
    } catch (error) {
      yield { name, error: asFailure(error) };
    }
  }
}

/** What a record asks for was right when it was written: nobody used anything wrongly now. */
function asFailure(error: unknown): unknown {
  if (!(error instanceof InputError)) return error;
  return new TapkitError(error.message, { mend: error.mend, cause: error });
}
