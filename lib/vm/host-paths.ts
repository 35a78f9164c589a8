/**
 * Where things are on a host, and how they are named.
 *
 * @module
 */

import { describe, InputError, TapkitError } from "../errors.ts";
import { absolutePath, namesIn } from "../files.ts";
import { DEFAULT_STATE_DIR } from "./elsewhere.ts";
import type { HostOptions } from "./types.ts";

/** {@linkcode HostOptions} with every default filled in. */
export interface HostPaths {
  readonly stateDir: string;
  readonly confDir: string;
  readonly binDirs: readonly string[];
  /** How long an executed plugin may take. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
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
    note: options.note ?? (() => {}),
    detail: options.detail ?? (() => {}),
  };
}

function pluginTimeout({ pluginTimeout }: HostOptions): { timeoutMs?: number } {
  const seconds = pluginTimeout ?? Number(Deno.env.get("TAPKIT_PLUGIN_TIMEOUT"));
  return seconds > 0 ? { timeoutMs: seconds * 1000 } : {};
}

/**
 * Checks a VM's name.
 *
 * @throws {InputError} unless it has 1–63 of `a-z A-Z 0-9 . _ -` and starts with a letter or digit
 */
export function validateName(name: string): void {
  if (/^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$/.test(name)) return;
  throw new InputError(`VM name "${name}" is malformed`, {
    mend: "use 1 to 63 of a-z A-Z 0-9 . _ - and start with a letter or a digit",
  });
}

/** The CNI container id of a VM: the SHA-256 of its name, in hexadecimal. */
export async function containerId(name: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(name));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The name of a VM's own namespace: `ip netns exec tapkit-web …`. */
export function netnsName(name: string): string {
  return `tapkit-${name}`;
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

const ADDRESS_OWNER = "to@";

/** The owner tag of an address that tapkit did not attach; no VM's name has an @. */
export function addressOwner(address: string): string {
  return `${ADDRESS_OWNER}${address}`;
}

/** The address that an owner tag is of. */
export function addressOf(owner: string): string | undefined {
  return owner.startsWith(ADDRESS_OWNER) ? owner.slice(ADDRESS_OWNER.length) : undefined;
}
