/**
 * Settings in /proc/sys, of the calling thread's namespaces.
 *
 * @module
 */

import { asError, TapkitError } from "../errors.ts";
import { readShort } from "./text.ts";

/** The value of a setting; undefined if this kernel, or this link, does not have it. */
export function readSysctl(name: string): string | undefined {
  return readShort(`/proc/sys/${name}`)?.trim();
}

/**
 * Writes a setting.
 *
 * Equivalent to: `sysctl -w NAME=VALUE`
 *
 * @param name with slashes, because the name of a link may contain a dot: `"net/ipv4/ip_forward"`
 * @returns whether this kernel, or this link, has the setting
 */
export function writeSysctl(name: string, value: string): boolean {
  try {
    // Does not create the file: only the kernel adds settings.
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
