/**
 * The pools of addresses that `host-local` keeps: who holds what, and what is free.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { namesIn, readIfThere } from "../files.ts";
import { isIp } from "../inet/ip.ts";
import type { Holder } from "./plugin.ts";
import { parseHolder } from "./plugins/host-local.ts";
import {
  capacity,
  type HostLocalConfig,
  parseHostLocal,
  rangeOf,
} from "./plugins/host-local-config.ts";
import type { NetworkConfigList } from "./types.ts";

/** An address of a pool, and the container and interface that hold it. */
export interface HeldAddress {
  readonly ip: string;
  readonly holder: Holder;
}

/** The pools of a network; none of a plugin whose configuration is malformed. */
export function poolsOf({ name, plugins }: NetworkConfigList): HostLocalConfig[] {
  return plugins.filter(({ ipam }) => ipam?.type === "host-local").flatMap((conf) => {
    try {
      return parseHostLocal({ ...conf, name }, {});
    } catch (error) {
      if (error instanceof TapkitError) return [];
      throw error;
    }
  });
}

/** Who holds which address of a pool. */
export function heldAddresses({ directory }: Pick<HostLocalConfig, "directory">): HeldAddress[] {
  return namesIn(directory).filter((name) => isIp(name) !== 0).flatMap((ip) => {
    const content = readIfThere(`${directory}/${ip}`);
    return content === undefined ? [] : { ip, holder: parseHolder(content) };
  });
}

/** How many addresses are free in the range set that has the fewest. */
export function freeAddresses(pool: HostLocalConfig): bigint {
  const held = heldAddresses(pool);
  const free = pool.rangeSets.map((set) =>
    capacity(set) - BigInt(held.filter(({ ip }) => rangeOf(set, ip) !== undefined).length)
  );
  return free.toSorted((a, b) => a < b ? -1 : 1)[0] ?? 0n;
}
