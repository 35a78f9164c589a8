/**
 * Where things are on a host.
 *
 * @module
 */

import { describe, TapkitError } from "../../errors.ts";
import { absolutePath, namesIn } from "../../files.ts";
import { DEFAULT_STATE_DIR } from "./elsewhere.ts";
import type { HostOptions } from "../types.ts";

/** {@linkcode HostOptions} with every default filled in. */
export interface HostPaths {
  readonly stateDir: string;
  readonly confDir: string;
  readonly binDirs: readonly string[];
  /** How long an executed plugin may take. */
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
    binDirs: binDirs.map(absolutePath),
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

/** Where the locks of those are that run a VMM. */
export const runningDir = (host: HostPaths): string => `${host.stateDir}/running`;

/** Where the records of addresses are, that map-port --to maps to. */
export const addressesDir = (host: HostPaths): string => `${host.stateDir}/addresses`;

export const recordPath = (host: HostPaths, name: string): string => `${vmsDir(host)}/${name}.json`;

/** How often a directory that goes at this moment is made anew. */
export const ATTEMPTS = 100;

/** Does something in a directory that another process may be removing at this moment. */
export function inDirectory<T>(directory: string, act: () => T): T {
  for (let attempt = 1;; attempt++) {
    try {
      makeDirectory(directory);
      return act();
    } catch (error) {
      if (!isVanished(error) || attempt === ATTEMPTS) throw unusable(error);
    }
  }
}

/** What a state directory cannot be used for, where that is why something failed. */
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

/** Whether an error says that a directory went before it was used. */
export function isVanished(error: unknown): boolean {
  // Deno's mkdir says EEXIST of a directory that went while it was looked at.
  return ["ENOENT", "EEXIST"].includes((error as { code?: string }).code ?? "");
}

/** The names of all VMs that have a record, in order. */
export function recordNames(host: HostPaths): string[] {
  return jsonNames(vmsDir(host));
}

/** The addresses, not attached by tapkit, that ports are mapped to, in order. */
export function addressNames(host: HostPaths): string[] {
  return jsonNames(addressesDir(host));
}

function jsonNames(directory: string): string[] {
  try {
    return namesIn(directory)
      .filter((name) => name.endsWith(".json"))
      .map((name) => name.slice(0, -".json".length))
      .sort();
  } catch (error) {
    throw unusable(error);
  }
}
