/**
 * Turning the installed units on and off.
 *
 * @module
 */

import { describe, TapkitError } from "../errors.ts";
import { runSync } from "../exec.ts";
import { isThere } from "../files.ts";
import { ENABLED, TEMPLATE } from "./units.ts";

const SYSTEMD_SYSCTL = "/usr/lib/systemd/systemd-sysctl";

/** Whether systemd runs this host, which it may yet do where an image is being made. */
export function isRunning(): boolean {
  return isThere("/run/systemd/system");
}

/**
 * Refuses a host without systemd.
 *
 * @throws {TapkitError} when there is no systemctl
 */
export function requireSystemd(): void {
  if (["/usr/bin/systemctl", "/bin/systemctl"].some(isThere)) return;
  throw new TapkitError("there is no systemctl: systemd does not run here", {
    mend: "leave out --systemd; attach-vm starts serve itself when it is needed",
  });
}

/**
 * Enables the units, applies the settings of the kernel, and starts the resident.
 *
 * Equivalent to: `systemctl enable tapkit tapkit-restore; systemctl restart tapkit`
 *
 * @param sysctls the file of the settings: those of other files are left as they are by now
 */
export function enableUnits(sysctls: string): void {
  reloadUnits();
  runSync("systemctl", [...offline(), "--quiet", "enable", ...ENABLED]);
  if (!isRunning()) return;
  runSync(SYSTEMD_SYSCTL, [sysctls]);
  runSync("systemctl", ["restart", ENABLED[0]]);
}

/** Whether the units are enabled; what differs in sentences. */
export function unitDifferences(): string[] {
  return ENABLED.flatMap((unit) => {
    try {
      runSync("systemctl", [...offline(), "is-enabled", unit]);
      return [];
    } catch {
      return [`${unit} is not enabled`];
    }
  });
}

/**
 * Disables the units, those of VMs too, and stops the resident. Goes on where that fails.
 *
 * @param note is told what failed
 */
export function disableUnits(note: (text: string) => void): void {
  const attempt = (...args: string[]) => {
    try {
      runSync("systemctl", args);
    } catch (error) {
      note(`warning: ${describe(error)}`);
    }
  };
  if (isRunning()) attempt("stop", ...ENABLED);
  attempt(...offline(), "--quiet", "disable", ...ENABLED, TEMPLATE);
}

/** Has systemd read its units again, where it runs. */
export function reloadUnits(): void {
  if (isRunning()) runSync("systemctl", ["daemon-reload"]);
}

/** Where systemd does not run yet, systemctl has to do its work itself. */
function offline(): string[] {
  return isRunning() ? [] : ["--root=/"];
}
