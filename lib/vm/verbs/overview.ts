/**
 * The VMs of a host at a glance.
 *
 * @module
 */

import { isThere } from "../../files.ts";
import type { PortMapping } from "../../inet/ports.ts";
import { addressOf } from "../../inet/ip.ts";
import { TapkitError } from "../../errors.ts";
import { type GuestLease, listLeases } from "../leases.ts";
import { recordOf } from "../record/derive.ts";
import { type HostPaths, hostPaths, recordNames } from "../record/paths.ts";
import { attachedSide, readVm, recordTime, sideOf, unfinished } from "../record/store.ts";
import { seenSupervised } from "../running.ts";
import type { HostOptions } from "../types.ts";

/**
 * How a VM is: `running` under `-- VMM`; `lost` without its namespace, as after a reboot; or what a
 * change that was cut off left.
 */
export type VmState =
  | "attached"
  | "running"
  | "lost"
  | "half attached"
  | "half changed"
  | "half removed"
  | "unreadable";

/** A VM at a glance. */
export interface VmSummary {
  /** The VM's name. */
  readonly name: string;
  /** How it is. */
  readonly state: VmState;
  /** Of the VMM, if it is `running`. */
  readonly pid?: number;
  /** Of its interfaces, in their order. */
  readonly networks: readonly string[];
  /** Without prefix lengths. */
  readonly addresses: readonly string[];
  /** Its published ports. */
  readonly ports: readonly PortMapping[];
  /** When it was attached or last changed, in ISO 8601. */
  readonly since: string;
  /** When the guest last got an address by DHCP, in ISO 8601; `null` if it has not yet. */
  readonly leased: string | null;
}

/** The VMs of the host at a glance, by name. Nothing is compared with the kernel: see `checkVm`. */
export function summarizeVms(options: HostOptions = {}): VmSummary[] {
  const host = hostPaths(options);
  const leases = Map.groupBy(listLeases({ ...options, note: () => {} }), ({ vm }) => vm);
  return recordNames(host).flatMap((name) => {
    try {
      return summarize(host, name, leases.get(name) ?? []) ?? [];
    } catch (error) {
      // It was removed meanwhile.
      if (error instanceof Deno.errors.NotFound) return [];
      throw error;
    }
  });
}

function summarize(
  host: HostPaths,
  name: string,
  leases: readonly GuestLease[],
): VmSummary | undefined {
  const since = new Date(recordTime(host, name)).toISOString();
  const nothing = { networks: [], addresses: [], ports: [] };
  const leased = leases.flatMap(({ asked }) => asked ?? []).sort().at(-1) ?? null;
  try {
    const stored = readVm(host, name);
    if (stored === undefined) return undefined;
    const side = attachedSide(stored) ?? sideOf(stored)!;
    const { interfaces, ports, netns } = recordOf(side);
    const runs = seenSupervised(host, name);
    const state: VmState = stored.is === "changing"
      ? unfinished(stored).replace("was left ", "") as VmState
      : runs !== undefined
      ? "running"
      : isThere(netns)
      ? "attached"
      : "lost";
    return {
      name,
      state,
      ...runs?.pid === undefined ? {} : { pid: runs.pid },
      networks: interfaces.map(({ network }) => network),
      addresses: interfaces.flatMap(({ addresses }) => addresses)
        .map(({ address }) => addressOf(address)),
      ports,
      since,
      leased,
    };
  } catch (error) {
    if (!(error instanceof TapkitError)) throw error;
    return { name, state: "unreadable", ...nothing, since, leased };
  }
}
