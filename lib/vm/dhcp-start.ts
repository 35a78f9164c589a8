/**
 * Starting the host's resident, and checking that guests get DHCP, without loading its code.
 *
 * @module
 */

import { describe } from "../errors.ts";
import { isThere } from "../files.ts";
import { ipv4Of } from "./record/derive.ts";
import { hasVms, type HostPaths, hostPaths } from "./record/paths.ts";
import {
  dhcpFile,
  formerDhcpServer,
  isDhcpServed,
  isDhcpServerEnding,
  lockDhcpServer,
} from "./record/locks.ts";
import { recordTime } from "./record/store.ts";
import type { Difference, HostOptions, VmRecord } from "./types.ts";

/** Of install.ts; the second is of an earlier version. */
const UNITS = ["tapkit.service", "tapkit-dhcp.service"];
/** Where systemd has units. */
export const UNIT_DIRS: readonly string[] = ["/etc", "/run", "/usr/local/lib", "/usr/lib"].map((
  at,
) => `${at}/systemd/system`);

/**
 * Starts the host's resident, which answers DHCP, unless one runs: the installed systemd unit, else a
 * transient unit, else a detached process. Does not wait for it. If it cannot be started, `note` gets a
 * warning.
 *
 * @param command the program and arguments of the resident, for the last two
 */
export async function ensureServed(
  options: HostOptions,
  command: readonly string[],
): Promise<void> {
  const host = hostPaths(options);
  try {
    await startResident(host, command);
  } catch (error) {
    host.note(
      `warning: guests get no lease, because the resident did not start: ${describe(error)}: ` +
        "run serve when that is repaired",
    );
  }
}

async function startResident(host: HostPaths, command: readonly string[]): Promise<void> {
  if (!hasVms(host)) return;
  {
    using free = lockDhcpServer(host);
    // Who is started now waits for one that ends.
    if (free === undefined && !isDhcpServerEnding(host)) {
      const former = formerDhcpServer(host);
      if (former !== undefined) host.note(`warning: ${former} ${FORMER}`);
      return;
    }
  }
  const { residentVariables, spawnDetached } = await import("../exec.ts");
  const [program = "", ...args] = command;
  if (!underSystemd()) {
    return spawnDetached(program, [...args, `--log-file=${dhcpFile(host, "log")}`]);
  }
  const isInstalled = (unit: string) => UNIT_DIRS.some((dir) => isThere(`${dir}/${unit}`));
  const installed = UNITS.find(isInstalled);
  if (installed !== undefined) {
    return spawnDetached("systemctl", ["start", "--no-block", installed]);
  }
  const unit = ["--quiet", "--collect", "--no-block", "--description=The resident of tapkit"];
  const again = ["--property=Restart=on-failure", "--property=RestartSec=1"];
  const variables = Object.entries(residentVariables()).map(([name, value]) =>
    `--setenv=${name}=${value}`
  );
  spawnDetached("systemd-run", [...unit, ...again, ...variables, "--", program, ...args]);
}

/** The time that a server has to start. */
const START_MS = 10_000;
const LOOK_EVERY_MS = 20;

/** Reports that no DHCP server runs for a VM. After an attach it waits for the server to start. */
export async function checkDhcp(host: HostPaths, record: VmRecord): Promise<Difference[]> {
  if (!record.interfaces.some(ipv4Of)) return [];
  const deadline = recordTime(host, record.vm) + START_MS;
  while (!isDhcpServed(host)) {
    if (Date.now() >= deadline) return [NOT_SERVED];
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
  const former = formerDhcpServer(host);
  return former === undefined ? [] : [{ ...NOT_SERVED, object: former, problem: FORMER }];
}

/** Said of the server's process. */
const FORMER =
  "is the DHCP server of an earlier version, which gives no lease to VMs attached by " +
  "this one: end it with kill, or restart its unit; the next attach-vm starts one where there is none";

const NOT_SERVED: Difference = {
  layer: "dhcp",
  object: "no DHCP server",
  problem: "runs, so guests get no lease: attach again to start one",
  repair: "live",
};

/** Whether systemd runs here, in the mount namespace of this process. */
function underSystemd(): boolean {
  if (!isThere("/run/systemd/system")) return false;
  try {
    return Deno.readLinkSync("/proc/1/ns/mnt") === Deno.readLinkSync("/proc/self/ns/mnt");
  } catch {
    return false;
  }
}
