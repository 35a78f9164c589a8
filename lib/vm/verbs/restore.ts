/**
 * Bringing all VMs back, after a reboot say.
 *
 * @module
 */

import { InputError, TapkitError } from "../../errors.ts";
import { isThere } from "../../files.ts";
import { inTurns } from "../../turns.ts";
import { addressNames, bridgeNames, hostPaths, recordNames } from "../record/paths.ts";
import { sessionOf } from "../session.ts";
import type { HostOptions, HostSession, Restored } from "../types.ts";
import { restoreVm } from "./attach.ts";

/**
 * Brings every recorded VM back to its record, each a transaction of its own, past failures.
 *
 * A VM that is as recorded is left as it is.
 */
export async function* restoreVms(options: HostOptions = {}): AsyncGenerator<Restored> {
  using own = sessionOf(options, { batch: true });
  const { session } = own;
  yield* restoreAddresses(options, session);
  const host = hostPaths(options);
  if (host.binDirs.some((directory) => isThere(`${directory}/weave-net`))) {
    const { usesWeave } = await import("../network/weave.ts");
    if (usesWeave(host)) {
      const { awaitRouter } = await import("../network/weave-router.ts");
      await awaitRouter({ ...host, session });
    }
  }
  if (bridgeNames(host).length > 0) {
    const { restoreBridges } = await import("./bridge.ts");
    yield* restoreBridges({ ...options, session });
  }
  const restore = async (name: string, waits: () => void): Promise<Restored | undefined> => {
    try {
      const restored = await restoreVm(name, { ...options, session, waits });
      return restored && { name, ...restored };
    } catch (error) {
      return { name, error: asFailure(error) };
    }
  };
  const names = recordNames(host);
  for await (const { result } of inTurns(names, restore, options.signal)) {
    if (result !== undefined) yield result;
  }
}

/** What is mapped to addresses that are no VM's comes back too, and is told of when it does not. */
async function* restoreAddresses(
  options: HostOptions,
  session: HostSession,
): AsyncGenerator<Restored> {
  const names = addressNames(hostPaths(options));
  if (names.length === 0) return;
  const { restoreAddress } = await import("./map-ports.ts");
  for (const name of names) {
    try {
      await restoreAddress(name, { ...options, session });
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
