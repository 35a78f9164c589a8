/**
 * Paths on the host.
 *
 * @module
 */

import { describe, SyscallError, TapkitError } from "../../errors.ts";
import { absolutePath } from "../../caller.ts";
import { namesIn } from "../../files.ts";
import { countFiles } from "../../sys/directory.ts";
import { isThere } from "../../sys/text.ts";
import { DEFAULT_STATE_DIR } from "./elsewhere.ts";
import type { HostOptions } from "../types.ts";

/** {@linkcode HostOptions} with every default filled in. */
export interface HostPaths {
  readonly stateDir: string;
  readonly confDir: string;
  readonly binDirs: readonly string[];
  /** The time limit of an executed plugin. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  readonly waits?: () => void;
  /** See elsewhere.ts. */
  readonly registry?: string;
  readonly note: (text: string) => void;
  readonly detail: (text: string) => void;
}

/** The host's directories: from the options, the environment, or the defaults. */
export function hostPaths(options: HostOptions): HostPaths {
  const cniPath = Deno.env.get("CNI_PATH")?.split(":").filter((directory) => directory !== "");
  const binDirs = options.binDirs ?? (cniPath?.length ? cniPath : ["/opt/cni/bin", "/usr/lib/cni"]);
  return {
    stateDir: absolutePath(
      options.stateDir ?? (Deno.env.get("TAPKIT_STATE_DIR") || DEFAULT_STATE_DIR),
    ),
    confDir: absolutePath(options.confDir ?? (Deno.env.get("NETCONFPATH") || "/etc/cni/net.d")),
    binDirs: binDirs.map((directory) => absolutePath(directory)),
    ...pluginTimeout(options),
    ...options.signal === undefined ? {} : { signal: options.signal },
    ...options.waits === undefined ? {} : { waits: options.waits },
    note: options.note ?? (() => {}),
    detail: options.detail ?? (() => {}),
  };
}

function pluginTimeout({ pluginTimeout }: HostOptions): { timeoutMs?: number } {
  const seconds = pluginTimeout ?? Number(Deno.env.get("TAPKIT_PLUGIN_TIMEOUT"));
  return seconds > 0 ? { timeoutMs: seconds * 1000 } : {};
}

export const vmsDir = (host: HostPaths): string => `${host.stateDir}/vms`;

export const locksDir = (host: HostPaths): string => `${host.stateDir}/locks`;

export const idsDir = (host: HostPaths): string => `${host.stateDir}/ids`;

/** The directory of the locks of VMs that run. */
export const runningDir = (host: HostPaths): string => `${host.stateDir}/running`;

/** The directory of the records of bridges that other firewalls let pass as a whole. */
export const bridgesDir = (host: HostPaths): string => `${host.stateDir}/bridges`;

/** The directory of the records of addresses that map-port --to maps to. */
export const addressesDir = (host: HostPaths): string => `${host.stateDir}/addresses`;

export const recordPath = (host: HostPaths, name: string): string => `${vmsDir(host)}/${name}.json`;

/** How often to recreate a directory that other processes keep deleting. */
export const ATTEMPTS = 100;

/**
 * Runs `act` in a directory, which is created where `act` finds that it is missing. Another process may
 * delete it at the same moment.
 */
export function inDirectory<T>(directory: string, act: () => T): T {
  for (let attempt = 1;; attempt++) {
    try {
      if (attempt > 1) makeDirectory(directory);
      return act();
    } catch (error) {
      if (!isVanished(error) || attempt === ATTEMPTS) throw unusable(error);
    }
  }
}

/** The error to throw: it says that the state directory is unusable, if that is the cause. */
export function unusable(error: unknown): unknown {
  const code = String((error as { code?: string }).code);
  if (!["ENOTDIR", "EROFS", "EACCES", "EPERM", "ENOENT", "EEXIST", "ELOOP"].includes(code)) {
    return error;
  }
  const reason = describe(error);
  return new TapkitError(
    `the state directory cannot be used: ${reason}${reason.includes(code) ? "" : ` (${code})`}`,
    { mend: "name another one with --state-dir or TAPKIT_STATE_DIR", cause: error },
  );
}

export function makeDirectory(directory: string): void {
  Deno.mkdirSync(directory, { recursive: true, mode: 0o700 });
}

/** Whether an error means that a directory was deleted before it was used. */
export function isVanished(error: unknown): boolean {
  // Deno's mkdir fails with EEXIST if the directory is deleted meanwhile.
  return ["ENOENT", "EEXIST"].includes((error as { code?: string }).code ?? "");
}

/** The names of all VMs that have a record, sorted. */
export function recordNames(host: HostPaths): string[] {
  return jsonNames(vmsDir(host));
}

/** The addresses that have a record of map-port --to, sorted. */
export function addressNames(host: HostPaths): string[] {
  return optionalNames(addressesDir(host));
}

/** The bridges that have a record, sorted. */
export function bridgeNames(host: HostPaths): string[] {
  return optionalNames(bridgesDir(host));
}

/** Whether a VM has a record. */
export function hasVms(host: HostPaths): boolean {
  return countRecords(vmsDir(host), 1) > 0;
}

/** Whether there are so many records, of VMs and of all else. */
export function hasRecords(host: HostPaths, least = 1): boolean {
  let lacking = least;
  for (const directory of [vmsDir(host), addressesDir(host), bridgesDir(host)]) {
    lacking -= countRecords(directory, lacking);
    if (lacking <= 0) return true;
  }
  return false;
}

function countRecords(directory: string, most: number): number {
  try {
    return countFiles(directory, RECORD_SUFFIX, most);
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    // Which fails in words.
    return jsonNames(directory).length;
  }
}

const RECORD_SUFFIX = ".json";

/** The VMs or addresses whose records are among these files. */
export function namesOfRecords(files: Iterable<string>): string[] {
  return [...files].filter((file) => file.endsWith(RECORD_SUFFIX))
    .map((file) => file.slice(0, -RECORD_SUFFIX.length));
}

/** Of a directory that most hosts do not have: for that, no exception is made. */
function optionalNames(directory: string): string[] {
  return isThere(directory) ? jsonNames(directory) : [];
}

function jsonNames(directory: string): string[] {
  try {
    return namesOfRecords(namesIn(directory)).sort();
  } catch (error) {
    throw unusable(error);
  }
}
