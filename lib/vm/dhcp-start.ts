/**
 * Seeing to it that a DHCP server runs, without loading one.
 *
 * @module
 */

import { describe } from "../errors.ts";
import { spawnDetached } from "../exec.ts";
import { isThere } from "../files.ts";
import { type HostPaths, hostPaths, recordNames } from "./record/paths.ts";
import { dhcpFile, isDhcpServed, lockDhcpServer } from "./record/locks.ts";
import { recordTime } from "./record/store.ts";
import type { Difference, HostOptions, VmRecord } from "./types.ts";

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
  if (!underSystemd()) {
    return spawnDetached(program, [...args, `--log-file=${dhcpFile(host, "log")}`]);
  }
  if (UNIT_DIRS.some((directory) => isThere(`${directory}/${UNIT}`))) {
    return spawnDetached("systemctl", ["start", "--no-block", UNIT]);
  }
  const unit = ["--quiet", "--collect", "--no-block", "--description=DHCP of tapkit's VMs"];
  const again = ["--property=Restart=on-failure", "--property=RestartSec=1"];
  spawnDetached("systemd-run", [...unit, ...again, "--", program, ...args]);
}

/** How long a server may take to start. */
const START_MS = 10_000;
const LOOK_EVERY_MS = 20;

/**
 * What is wrong with the DHCP of a VM: nobody answers it. One that was attached just now is given
 * the time in which the server starts.
 */
export async function checkDhcp(host: HostPaths, record: VmRecord): Promise<Difference[]> {
  const asks = record.interfaces.some(({ addresses }) =>
    addresses.some(({ address }) => !address.includes(":"))
  );
  if (!asks) return [];
  const deadline = recordTime(host, record.vm) + START_MS;
  while (!isDhcpServed(host)) {
    if (Date.now() >= deadline) return [NOT_SERVED];
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
  return [];
}

const NOT_SERVED: Difference = {
  layer: "dhcp",
  object: "no DHCP server",
  problem: "runs, so guests get no lease: attaching again starts one",
  repair: "live",
};

/** Whether systemd runs here, and would start the server among the mounts this process sees. */
function underSystemd(): boolean {
  if (!isThere("/run/systemd/system")) return false;
  try {
    return Deno.readLinkSync("/proc/1/ns/mnt") === Deno.readLinkSync("/proc/self/ns/mnt");
  } catch {
    return false;
  }
}
