/**
 * Bringing all VMs back, after a reboot say.
 *
 * @module
 */

import { InputError, TapkitError } from "../errors.ts";
import { restoreVm } from "./attach.ts";
import { openHost, OpenSession } from "./session.ts";
import { addressNames, hostPaths, recordNames } from "./host-paths.ts";
import { lockHost } from "./locks.ts";
import type { HostOptions, HostSession, Restored } from "./types.ts";

/**
 * Brings every recorded VM back to its record, each a transaction of its own, past failures.
 *
 * A VM that is as recorded is left as it is.
 */
export async function* restoreVms(options: HostOptions = {}): AsyncGenerator<Restored> {
  using own = options.session === undefined ? new OpenSession({ batch: true }) : undefined;
  const session = options.session ?? own!;
  yield* restoreAddresses(options, session);
  for (const name of recordNames(hostPaths(options))) {
    try {
      const record = await restoreVm(name, { ...options, session });
      if (record !== undefined) yield { name, record };
    } catch (error) {
      yield { name, error: asFailure(error) };
    }
  }
}

/** What is mapped to addresses that are no VM's comes back too, and is told of when it does not. */
async function* restoreAddresses(
  options: HostOptions,
  session: HostSession,
): AsyncGenerator<Restored> {
  using host = openHost({ ...options, session });
  const names = addressNames(host);
  if (names.length === 0) return;
  const { readAddress, restoreAddress } = await import("./addresses.ts");
  for (const name of names) {
    try {
      using _host = await lockHost(host);
      const record = readAddress(host, name);
      if (record === undefined) continue;
      await restoreAddress(host, await session.firewall(record.firewall), record);
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
