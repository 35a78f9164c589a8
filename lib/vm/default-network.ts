/**
 * Installing the default network, and removing it when no VM is on it.
 *
 * @module
 */

import {
  type DefaultCniOptions,
  type DefaultCniReport,
  installDefaultCni as installIn,
} from "../cni/default-network.ts";
import { elsewhere } from "./record/elsewhere.ts";
import { hostPaths } from "./record/paths.ts";
import { lockHost, tidyState } from "./record/locks.ts";
import { readVms, sidesOf } from "./record/store.ts";
import type { HostOptions } from "./types.ts";

/** How to install, print, check or remove the default network. */
export type InstallOptions = HostOptions & Omit<DefaultCniOptions, "confDir" | "inUse" | "nl">;

/**
 * Writes `10-ignite.conflist` unless the directory has a CNI configuration already. With other
 * options it prints, checks or removes the file.
 *
 * @throws {InputError} for a malformed or overlapping prefix, bridge name or MTU
 * @throws {TapkitError} when no subnet is free, when the directory cannot be written, or when the
 * file to remove was edited or VMs are on its network
 */
export async function installDefaultCni(options: InstallOptions = {}): Promise<DefaultCniReport> {
  const host = hostPaths(options);
  const { confDir } = host;
  if (!options.remove) return installIn({ ...options, confDir });
  try {
    using _host = await lockHost(host);
    const { network } = installIn({ ...options, remove: false, check: true, confDir });
    const inUse = [host, ...elsewhere(host)].flatMap((each) => readVms(each)).flatMap(sidesOf)
      .filter(({ facts }) =>
        facts.networks.some(({ attachment }) => attachment.network === network)
      )
      .map(({ spec }) => spec.id.name);
    return installIn({ ...options, confDir, inUse: [...new Set(inUse)] });
  } finally {
    tidyState(host);
  }
}
