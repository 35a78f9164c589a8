/**
 * Settings below /proc/sys, of the calling thread's namespaces.
 *
 * @module
 */

import { asError, TapkitError } from "../errors.ts";
import { readIfThere } from "../files.ts";

/** A setting's value; undefined where this kernel, or this link, has no such setting. */
export function readSysctl(name: string): string | undefined {
  return readIfThere(`/proc/sys/${name}`)?.trim();
}

/**
 * Writes a setting.
 *
 * Equivalent to: `sysctl -w NAME=VALUE`
 *
 * @param name with slashes, since a link's name may hold a dot: `"net/ipv4/ip_forward"`
 * @returns whether this kernel, or this link, has such a setting
 */
export function writeSysctl(name: string, value: string): boolean {
  try {
    // Without create: a setting that is not there is the kernel's affair.
    Deno.writeTextFileSync(`/proc/sys/${name}`, value, { create: false });
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw new TapkitError(`cannot set ${name} in /proc/sys: ${asError(error).message}`, {
      mend: "run as root, with /proc/sys mounted writable",
      cause: error,
    });
  }
}
