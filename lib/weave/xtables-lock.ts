/**
 * The lock of iptables, which containers that change rules mount. Where it is missing Docker makes a
 * directory for the mount whenever the container starts, and iptables fails.
 *
 * @module
 */

import { describe, TapkitError } from "../errors.ts";
import { isThere, readIfThere, removeIfThere, sweepTemporaries, writeFileOnce } from "../files.ts";
import type { UndoStack } from "../undo.ts";

const PATH = "/run/xtables.lock";
/** Where systemd-tmpfiles is installed, and what it makes of /run at boot, before Docker starts. */
const TMPFILES = "/usr/lib/tmpfiles.d";
const BOOT_DIR = "/etc/tmpfiles.d";
const BOOT_FILE = "tapkit-weave.conf";
const AT_BOOT = `${BOOT_DIR}/${BOOT_FILE}`;
const AT_BOOT_TEXT = `# By tapkit's setup-weave: the router's container mounts this file.
f ${PATH} 0600 root root -
`;

/**
 * Makes sure that the lock is a file, now and after a reboot.
 *
 * @returns what was created
 */
export function ensureXtablesLock(undo: UndoStack): string[] {
  const created: string[] = [];
  try {
    if (!isXtablesLock()) {
      undo.push(PATH, () => removeIfThere(PATH));
      // Docker made it, and nothing is in it.
      if (isThere(PATH)) Deno.removeSync(PATH);
      Deno.openSync(PATH, { write: true, create: true, mode: 0o600 }).close();
      created.push(PATH);
    }
  } catch (cause) {
    throw new TapkitError(`${PATH} cannot be made a file: ${describe(cause)}`, {
      mend: "remove what is there",
      cause,
    });
  }
  if (isThere(TMPFILES) && readIfThere(AT_BOOT) === undefined) {
    undo.push(AT_BOOT, forgetXtablesLock);
    writeFileOnce(AT_BOOT, AT_BOOT_TEXT);
    created.push(AT_BOOT);
  }
  return created;
}

/** The lock is not made at boot any more. It stays as it is: others use it too. */
export function forgetXtablesLock(): void {
  sweepTemporaries(BOOT_DIR, BOOT_FILE);
  removeIfThere(AT_BOOT);
}

/** Whether it is there, as a file. */
export function isXtablesLock(): boolean {
  try {
    return Deno.lstatSync(PATH).isFile;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
