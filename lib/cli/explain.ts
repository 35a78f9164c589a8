/**
 * Errors as what people read.
 *
 * @module
 */

import { describe, TapkitError } from "../errors.ts";

const MENDS: Readonly<Record<string, string>> = {
  EACCES: "run it as root",
  EPERM: "run it as root",
  ENOSPC: "free space on that file system",
  ENOENT: "check that it exists",
  ENOTDIR: "check that it is a directory",
  EROFS: "make it writable, or choose another directory",
};

/** What happened, why, and the mend. */
export function explain(error: unknown): string {
  if (error instanceof TapkitError) return describe(error);
  if (error instanceof Deno.errors.NotCapable) {
    return `${describe(error)}: run it with deno run -A`;
  }
  if (error instanceof Error && "code" in error && error.code !== undefined) {
    const mend = MENDS[String(error.code)];
    return `${describe(error)} (${error.code})${mend === undefined ? "" : `: ${mend}`}`;
  }
  const kind = error instanceof Error ? `${error.name}: ` : "";
  return `this is a bug in tapkit: ${kind}${describe(error)}` +
    (debugging() ? "" : ": run it again with TAPKIT_DEBUG=1 to see where");
}

/** Whether TAPKIT_DEBUG is set. */
export function debugging(): boolean {
  const allowed = Deno.permissions.querySync({ name: "env", variable: "TAPKIT_DEBUG" });
  return allowed.state === "granted" && Boolean(Deno.env.get("TAPKIT_DEBUG"));
}
