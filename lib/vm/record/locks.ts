/**
 * Who may change what: the locks, and the directory of the state, which goes with its last VM.
 *
 * @module
 */

import { TapkitError } from "../../errors.ts";
import { isThere, namesIn, removeIfEmpty, removeIfThere } from "../../files.ts";
import {
  type Lock,
  lockFile,
  lockFileAsync,
  lockHolder,
  type WaitOptions,
} from "../../sys/flock.ts";
import { retire } from "./elsewhere.ts";
import {
  addressesDir,
  addressNames,
  ATTEMPTS,
  type HostPaths,
  idsDir,
  inDirectory,
  isVanished,
  locksDir,
  makeDirectory,
  recordNames,
  runningDir,
  unusable,
  vmsDir,
} from "./paths.ts";

const DHCP_LOCK = "serve-dhcp.lock";

/** Waits for the sole right to change one VM. Taken before the host's lock, never after. */
export async function lockVm(host: HostPaths, name: string): Promise<Lock> {
  const waits = (path: string) => noteHolder(host, `VM "${name}"`, path);
  return await lockIn(locksDir(host), name, { remove: true, signal: host.signal, waits });
}

/** Waits for the sole right to change what VMs share. */
export async function lockHost(host: HostPaths): Promise<Lock> {
  const waits = (path: string) => noteHolder(host, "what the VMs of this host share", path);
  return await lockIn(host.stateDir, "lock", { signal: host.signal, waits });
}

/** The sole right to change what VMs share, given up for as long as a program of others runs. */
export class HostLock implements Disposable {
  readonly #host: HostPaths;
  #lock: Lock | undefined;

  private constructor(host: HostPaths, lock: Lock) {
    this.#host = host;
    this.#lock = lock;
  }

  /** Waits for it. */
  static async take(host: HostPaths): Promise<HostLock> {
    return new HostLock(host, await lockHost(host));
  }

  /** Does what runs a program of others without it. */
  readonly outside = async <T>(act: () => Promise<T>): Promise<T> => {
    this[Symbol.dispose]();
    this.#host.waits?.();
    try {
      return await act();
    } finally {
      // What follows is to be undone at least: waiting for that is not cut short.
      const { signal: _, ...uninterrupted } = this.#host;
      this.#lock = await lockHost(uninterrupted);
    }
  };

  [Symbol.dispose](): void {
    this.#lock?.[Symbol.dispose]();
    this.#lock = undefined;
  }
}

/** Says what is waited for, and for whom. */
function noteHolder({ note }: HostPaths, what: string, path: string): void {
  const holder = lockHolder(path);
  note(
    `waiting for ${what}, ${holder === undefined ? "which is being changed" : `held by ${holder}`}`,
  );
}

/** The DHCP server's lock, or `undefined` when one is running. */
export function lockDhcpServer(host: HostPaths): Lock | undefined {
  return inDirectory(
    host.stateDir,
    () => lockFile(`${host.stateDir}/${DHCP_LOCK}`, { remove: true, wait: false }),
  );
}

/** What the DHCP server keeps beside its lock. */
export function dhcpFile(host: HostPaths, name: "log" | "leases"): string {
  return `${host.stateDir}/serve-dhcp.${name}`;
}

/** Whether a DHCP server runs. */
export function isDhcpServed(host: HostPaths): boolean {
  const path = `${host.stateDir}/${DHCP_LOCK}`;
  if (!isThere(path)) return false;
  try {
    using free = lockFile(path, { wait: false });
    return free === undefined;
  } catch (error) {
    // It went at this moment, or is no file.
    if (error instanceof TapkitError) return false;
    throw error;
  }
}

/** Takes a lock in a directory that another process may be removing at this moment. */
async function lockIn(
  directory: string,
  name: string,
  options: WaitOptions,
): Promise<Lock> {
  for (let attempt = 1;; attempt++) {
    try {
      makeDirectory(directory);
      return await lockFileAsync(`${directory}/${name}`, options);
    } catch (error) {
      if (!isVanished(error) || attempt === ATTEMPTS) throw unusable(error);
    }
  }
}

/**
 * Takes away what is left of the state when no record is: called with no lock held.
 * A directory in use stays; whoever comes at this moment makes it anew, and who has the host's lock
 * now tidies it after that.
 */
export function tidyState(host: HostPaths): void {
  if (isUsed(host)) return;
  {
    using lock = inDirectory(
      host.stateDir,
      () => lockFile(`${host.stateDir}/lock`, { wait: false }),
    );
    if (lock === undefined) return;
    if (!isUsed(host)) {
      retire(host);
      // Left by a process that was killed, unless a server holds it.
      if (isThere(`${host.stateDir}/${DHCP_LOCK}`)) lockDhcpServer(host)?.[Symbol.dispose]();
      for (const name of ["log", "leases"] as const) removeIfThere(dhcpFile(host, name));
      // A version before this one wrote it.
      removeIfThere(`${host.stateDir}/generation`);
      removeIfThere(`${host.stateDir}/cni/checked.json`);
      removeIfEmpty(`${host.stateDir}/cni`);
      removeIfThere(`${host.stateDir}/lock`);
      // Files are made in these with the lock held.
      removeIfEmpty(idsDir(host));
      removeIfEmpty(vmsDir(host));
      removeIfEmpty(addressesDir(host));
    }
  }
  sweepLocks(host);
  removeIfEmpty(locksDir(host));
  removeIfEmpty(runningDir(host));
  removeIfEmpty(host.stateDir);
}

/** Takes away the VMs' locks that nobody holds: processes that were killed left them. */
export function sweepLocks(host: HostPaths): void {
  for (const name of namesIn(locksDir(host))) {
    inDirectory(
      locksDir(host),
      () => lockFile(`${locksDir(host)}/${name}`, { remove: true, wait: false }),
    )?.[Symbol.dispose]();
  }
}

function isUsed(host: HostPaths): boolean {
  return recordNames(host).length + addressNames(host).length > 0;
}
