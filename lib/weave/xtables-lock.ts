/**
 * The lock of iptables, which containers that change rules mount.
 *
 * @module
 */

import { describe, TapkitError } from "../errors.ts";
import { removeIfThere } from "../files.ts";
import type { UndoStack } from "../undo.ts";

const PATH = "/run/xtables.lock";

/**
 * Makes sure that the lock is a file: where it is missing Docker makes a directory for the mount, and
 * iptables fails.
 *
 * @returns whether it was made
 */
export function ensureXtablesLock(undo: UndoStack): boolean {
  if (isXtablesLock()) return false;
  try {
    undo.push(PATH, () => removeIfThere(PATH));
    // Docker made it, and nothing is in it.
    if (kind() === "directory") Deno.removeSync(PATH);
    Deno.openSync(PATH, { write: true, create: true, mode: 0o600 }).close();
    return true;
  } catch (cause) {
    throw new TapkitError(`${PATH} cannot be made a file: ${describe(cause)}`, {
      mend: "remove what is there",
      cause,
    });
  }
}

/** Whether it is there, as a file. */
export function isXtablesLock(): boolean {
  return kind() === "file";
}

function kind(): "file" | "directory" | undefined {
  try {
    return Deno.lstatSync(PATH).isDirectory ? "directory" : "file";
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
