/**
 * The locks, and deleting the state directory after its last VM.
 *
 * @module
 */

import { TapkitError } from "../../errors.ts";
import { isThere, namesIn, removeIfEmpty, removeIfThere } from "../../files.ts";
import {
  isHolderDying,
  type Lock,
  lockFile,
  lockFileAsync,
  lockHolder,
  type WaitOptions,
} from "../../sys/flock.ts";
import { isDying, startOf } from "../../sys/process-stat.ts";
import { readText } from "../../sys/text.ts";
import { commonDir, isCommon, retire } from "./elsewhere.ts";
import { RECORD_VERSION } from "./shape.ts";
import {
  addressesDir,
  ATTEMPTS,
  bridgesDir,
  hasRecords,
  type HostPaths,
  idsDir,
  inDirectory,
  isVanished,
  locksDir,
  makeDirectory,
  runningDir,
  unusable,
  vmsDir,
} from "./paths.ts";

const HOST_LOCK = "lock";
const DHCP_LOCK = "serve-dhcp.lock";

/** Waits for the lock of a VM. It is taken before the host's lock, never after. */
export async function lockVm(host: HostPaths, name: string): Promise<Lock> {
  const waits = (path: string) => noteHolder(host, `VM "${name}"`, path);
  return await lockIn(locksDir(host), name, { remove: true, signal: host.signal, waits });
}

/**
 * Waits for the host's lock, which covers what VMs share: bridges, tables and settings with those of
 * other state directories too, so it is the lock of the common one beside the own.
 */
export async function lockHost(host: HostPaths): Promise<Disposable> {
  const waits = (path: string) => noteHolder(host, "what the VMs of this host share", path);
  const options = { signal: host.signal, waits };
  const own = await lockIn(host.stateDir, HOST_LOCK, options);
  // One file cannot be locked twice.
  if (isCommon(host)) return own;
  using locks = new DisposableStack();
  locks.use(own);
  try {
    locks.use(await lockIn(commonDir(host), HOST_LOCK, options));
  } catch (error) {
    // Of a directory that cannot be written, announce() warns.
    if (host.signal?.aborted === true || !(error instanceof TapkitError)) throw error;
  }
  return locks.move();
}

/** The host's lock, released while a network plugin or another external program runs. */
export class HostLock implements Disposable {
  readonly #host: HostPaths;
  #lock: Disposable | undefined;

  private constructor(host: HostPaths, lock: Disposable) {
    this.#host = host;
    this.#lock = lock;
  }

  /** Waits for the lock. */
  static async take(host: HostPaths): Promise<HostLock> {
    return new HostLock(host, await lockHost(host));
  }

  /** Runs `act` without the lock, then waits for the lock again. */
  readonly outside = async <T>(act: () => Promise<T>): Promise<T> => {
    this[Symbol.dispose]();
    this.#host.waits?.();
    try {
      return await act();
    } finally {
      // At least the undo still has to run, so a signal does not interrupt this.
      const { signal: _, ...uninterrupted } = this.#host;
      this.#lock = await lockHost(uninterrupted);
    }
  };

  [Symbol.dispose](): void {
    this.#lock?.[Symbol.dispose]();
    this.#lock = undefined;
  }
}

/** Notes what the call waits for, and who holds it. */
function noteHolder({ note }: HostPaths, what: string, path: string): void {
  const holder = lockHolder(path);
  note(
    `waiting for ${what}, ${holder === undefined ? "which is being changed" : `held by ${holder}`}`,
  );
}

/** Takes the DHCP server's lock; undefined when a server runs. */
export function lockDhcpServer(host: HostPaths): Lock | undefined {
  return inDirectory(
    host.stateDir,
    () => lockFile(`${host.stateDir}/${DHCP_LOCK}`, { remove: true, wait: false }),
  );
}

/** Notes in the held lock of the DHCP server which records it reads, and which process it is. */
export function signDhcpServer(host: HostPaths): void {
  const signature = [RECORD_VERSION, Deno.pid, startOf(Deno.pid) ?? 0].join(" ");
  Deno.writeTextFileSync(`${host.stateDir}/${DHCP_LOCK}`, `${signature}\n`);
}

/** Notes in the held lock of the DHCP server that it ends, which may take a while. */
export function signOffDhcpServer(host: HostPaths): void {
  try {
    Deno.writeTextFileSync(`${host.stateDir}/${DHCP_LOCK}`, ENDS, { create: false });
  } catch {
    // Somebody deleted the directory, or the disk is full: who comes now starts no other.
  }
}

const ENDS = "ends\n";

/** Whether the process that holds the DHCP server's lock is about to be gone. */
export function isDhcpServerEnding(host: HostPaths): boolean {
  const path = `${host.stateDir}/${DHCP_LOCK}`;
  const text = readText(path) ?? "";
  if (text === ENDS) return true;
  const [, pid = 0, start] = text.split(" ").map(Number);
  // Who holds a lock the kernel tells after 10 ms. In a namespace of its own the process has another id.
  const isKnown = start !== undefined && startOf(pid) === start;
  return isKnown ? isDying(pid) : isHolderDying(path);
}

/**
 * The process of a DHCP server that an earlier version of tapkit started: it cannot read the records
 * of this one. Undefined if there is none.
 */
export function formerDhcpServer(host: HostPaths): string | undefined {
  const path = `${host.stateDir}/${DHCP_LOCK}`;
  try {
    const { size, mtime } = Deno.statSync(path);
    // A server signs its lock at once, which versions before 2 did not; a process that looks for a server holds it for a moment.
    if (size > 0 || Date.now() - (mtime?.getTime() ?? 0) < SIGNED_WITHIN_MS) return undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
  return lockHolder(path);
}

const SIGNED_WITHIN_MS = 1000;

/** The path of a file of the DHCP server. */
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
    // It was deleted at this moment, or is not a file.
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
      if (attempt > 1) makeDirectory(directory);
      return await lockFileAsync(`${directory}/${name}`, options);
    } catch (error) {
      if (!isVanished(error) || attempt === ATTEMPTS) throw unusable(error);
    }
  }
}

/**
 * Deletes the state directory when it has no record. Called with no lock held. A directory in use
 * stays. A call that needs it at this moment creates it again, and a call that holds the host's lock
 * deletes it later.
 */
export function tidyState(host: HostPaths): void {
  // Its lock was taken, too.
  if (!isCommon(host)) tidyDirectory({ ...host, stateDir: commonDir(host) });
  tidyDirectory(host);
}

function tidyDirectory(host: HostPaths): void {
  if (hasRecords(host)) return;
  {
    using lock = inDirectory(
      host.stateDir,
      () => lockFile(`${host.stateDir}/${HOST_LOCK}`, { wait: false }),
    );
    if (lock === undefined) return;
    if (!hasRecords(host)) {
      retire(host);
      // A process that was killed left the file, unless a server holds the lock.
      if (isThere(`${host.stateDir}/${DHCP_LOCK}`)) lockDhcpServer(host)?.[Symbol.dispose]();
      for (const name of ["log", "leases"] as const) removeIfThere(dhcpFile(host, name));
      // Written by an earlier version.
      removeIfThere(`${host.stateDir}/generation`);
      removeIfThere(`${host.stateDir}/cni/checked.json`);
      removeIfEmpty(`${host.stateDir}/cni`);
      removeIfThere(`${host.stateDir}/${HOST_LOCK}`);
      // Files in these are only created with the lock held.
      removeIfEmpty(idsDir(host));
      removeIfEmpty(vmsDir(host));
      removeIfEmpty(addressesDir(host));
      removeIfEmpty(bridgesDir(host));
    }
  }
  sweepLocks(host);
  removeIfEmpty(locksDir(host));
  removeIfEmpty(runningDir(host));
  removeIfEmpty(host.stateDir);
}

/** Deletes VMs' locks that nobody holds. Processes that were killed left them. */
export function sweepLocks(host: HostPaths): void {
  for (const name of namesIn(locksDir(host))) {
    inDirectory(
      locksDir(host),
      () => lockFile(`${locksDir(host)}/${name}`, { remove: true, wait: false }),
    )?.[Symbol.dispose]();
  }
}
