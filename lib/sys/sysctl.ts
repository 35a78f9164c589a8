/**
 * Settings below /proc/sys, of the calling thread's namespaces.
 *
 * Names are written with slashes, since a link's name may hold a dot.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";

/**
 * Reads a setting.
 *
 * Equivalent to: `sysctl -n NAME`
 *
 * @param name `"net/ipv4/ip_forward"`
 * @returns undefined where this kernel, or this link, has no such setting
 */
export function readSysctl(name: string): string | undefined {
  try {
    return Deno.readTextFileSync(`/proc/sys/${name}`).trim();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw failure("read", name, error);
  }
}

/**
 * Writes a setting.
 *
 * Equivalent to: `sysctl -w NAME=VALUE`
 *
 * @returns whether this kernel, or this link, has such a setting
 */
export function writeSysctl(name: string, value: string): boolean {
  try {
    Deno.writeTextFileSync(`/proc/sys/${name}`, value, { create: false });
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw failure("set", name, error);
  }
}

function failure(verb: string, name: string, error: unknown): TapkitError {
  const reason = error instanceof Error ? error.message : String(error);
  return new TapkitError(`cannot ${verb} ${name} in /proc/sys: ${reason}`, {
    mend: "run as root, with /proc/sys mounted writable",
    cause: error,
  });
}
