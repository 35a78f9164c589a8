/**
 * Seeing to it that a DHCP server runs, without loading one.
 *
 * @module
 */

import { describe } from "../errors.ts";
import { spawnDetached } from "../exec.ts";
import { isThere } from "../files.ts";
import { type HostPaths, hostPaths, lockDhcpServer, recordNames } from "./state.ts";
import type { HostOptions } from "./types.ts";

const UNIT = "tapkit-dhcp.service";
const UNIT_DIRS = ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"];

/**
 * Starts the DHCP server unless one runs: the installed systemd unit if there is one, else a
 * transient unit, else a detached process. Does not wait for it. What is attached is not undone
 * where it cannot be started: that is noted.
 *
 * @param command the program and arguments that serve, for the last two
 */
export function ensureDhcpServer(options: HostOptions, command: readonly string[]): void {
  const host = hostPaths(options);
  try {
    startDhcpServer(host, command);
  } catch (error) {
    host.note(
      `warning: guests get no lease, as the DHCP server was not started: ${describe(error)}: ` +
        "run serve-dhcp when that is mended",
    );
  }
}

function startDhcpServer(host: HostPaths, command: readonly string[]): void {
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
