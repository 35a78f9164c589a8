/**
 * The library's verbs as the resident does them: in turns, timed, removed links together.
 *
 * @module
 */

import { othersTurn } from "../checkpoint.ts";
import type { PortMapping } from "../inet/ports.ts";
import { OpenSession, sessionOf } from "../vm/session.ts";
import type {
  Attached,
  AttachRequest,
  HostOptions,
  HostSession,
  MapOptions,
  MappedPorts,
  PortTarget,
} from "../vm/types.ts";
import { attachVm } from "../vm/verbs/attach.ts";
import { mapPorts, unmapPorts } from "../vm/verbs/map-ports.ts";
import { type RemoveOptions, removeVm } from "../vm/verbs/remove.ts";
import type { Metrics } from "./metrics.ts";
import type { Removals } from "./removals.ts";
import type { Turns } from "./turns.ts";

/** Those of mod.ts, by the same names, that are done otherwise here. */
export interface ResidentVerbs {
  /** Attaches a VM. */
  attachVm(request: AttachRequest, options?: HostOptions): Promise<Attached>;
  /** Removes a VM. Returns whether there was anything to remove. */
  removeVm(name: string, options?: RemoveOptions): Promise<boolean>;
  /** Calls `act`. Links are removed together in any case, with those of other requests. */
  removeTogether<T>(options: HostOptions, act: () => Promise<T>): Promise<T>;
  /** Publishes ports. Returns all of the target's. */
  mapPorts(
    target: PortTarget,
    ports: readonly (string | PortMapping)[],
    options?: MapOptions,
  ): Promise<MappedPorts>;
  /** Withdraws ports. Returns those that are left. */
  unmapPorts(
    target: PortTarget,
    ports: readonly (string | PortMapping)[],
    options?: HostOptions,
  ): Promise<MappedPorts>;
  /** Opens what calls for many VMs share; the sockets are the resident's. */
  openSession(vms: number): Promise<HostSession>;
  /** Does nothing: the resident serves DHCP itself. */
  ensureServed(): Promise<void>;
}

/**
 * The verbs, for all requests.
 *
 * @param shared whose sockets they use
 * @param onError called with what a verb throws
 */
export function residentVerbs({ shared, turns, metrics, removals, onError }: {
  readonly shared: OpenSession;
  readonly turns: Turns;
  readonly metrics: Metrics;
  readonly removals: Removals;
  readonly onError: (target: PortTarget, error: unknown) => void;
}): ResidentVerbs {
  const take = async <O extends HostOptions, T>(
    target: PortTarget,
    options: O,
    act: (options: O & { readonly session: HostSession }) => Promise<T>,
  ): Promise<T> => {
    try {
      return await turns.take(options.signal, async (next) => {
        using own = sessionOf(options, { shared });
        const { session } = own;
        return await act({ ...options, session, waits: () => (next(), options.waits?.()) });
      });
    } catch (error) {
      onError(target, error);
      throw error;
    }
  };
  return {
    attachVm: (request, options = {}) =>
      take(request.name, options, async (now) => {
        try {
          return await metrics.time("attach", () => attachVm(request, now));
        } finally {
          afterAnswer(() => now.session.spareNetns?.refill());
        }
      }),
    removeVm: (name, options = {}) =>
      take(name, options, (now) =>
        metrics.time(
          "remove",
          () => removals.take((session) => removeVm(name, { ...now, session })),
        )),
    removeTogether: (_, act) => act(),
    mapPorts: (target, ports, options = {}) =>
      take(target, options, (now) => mapPorts(target, ports, now)),
    unmapPorts: (target, ports, options = {}) =>
      take(target, options, (now) => unmapPorts(target, ports, now)),
    openSession: (vms) => Promise.resolve(new OpenSession({ batch: vms > 1, shared })),
    ensureServed: () => Promise.resolve(),
  };
}

/** Does what nobody waits for, while who asked reads the answer. */
async function afterAnswer(act: () => void): Promise<void> {
  await othersTurn();
  act();
}
