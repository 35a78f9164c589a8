/**
 * Installing the default network on this host, and removing it when no VM is on it.
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

/** How to install the default network, or what else to do with it. */
export type InstallOptions = HostOptions & Omit<DefaultCniOptions, "confDir" | "inUse" | "nl">;

/**
 * Writes `10-ignite.conflist` unless the directory holds a CNI configuration already; or prints,
 * checks or removes it, as the options say.
 *
 * @throws {InputError} for a malformed or overlapping prefix, a bridge's name, an MTU
 * @throws {TapkitError} when no subnet is free, the directory cannot be written, or the file to
 * remove was edited or has VMs on its network
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
