/**
 * Seeing to it that a DHCP server runs, without loading one.
 *
 * @module
 */

import { spawnDetached } from "../exec.ts";
import { isThere } from "../files.ts";
import { hostPaths, lockDhcpServer, recordNames } from "./state.ts";
import type { HostOptions } from "./types.ts";

const UNIT = "tapkit-dhcp.service";
const UNIT_DIRS = ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"];

/**
 * Starts the DHCP server unless one runs: the installed systemd unit if there is one, else a
 * transient unit, else a detached process. Does not wait for it.
 *
 * @param command the program and arguments that serve, for the last two
 */
export function ensureDhcpServer(options: HostOptions, command: readonly string[]): void {
  const host = hostPaths(options);
  if (recordNames(host).length === 0) return;
  {
    using free = lockDhcpServer(host);
    if (free === undefined) return;
  }
  const [program = "", ...args] = command;
  if (!underSystemd()) return spawnDetached(program, args);
  if (UNIT_DIRS.some((directory) => isThere(`${directory}/${UNIT}`))) {
    return spawnDetached("systemctl", ["start", "--no-block", UNIT]);
  }
  spawnDetached("systemd-run", ["--quiet", "--collect", "--no-block", "--", program, ...args]);
}

/** Whether systemd runs here, and would start the server among the mounts this process sees. */
function underSystemd(): boolean {
  if (!isThere("/run/systemd/system")) return false;
  try {
    return Deno.readLinkSync("/proc/1/ns/mnt") === Deno.readLinkSync("/proc/self/ns/mnt");
  } catch {
    return false;
  }
}
