/**
 * The resident: whether it answers, and whether DHCP is served.
 *
 * @module
 */

import { ownNamespaces } from "../caller.ts";
import { TapkitError } from "../errors.ts";
import { isThere, namesIn } from "../files.ts";
import { ResidentClient, type ResidentHealth } from "../resident/client.ts";
import { ensureServed, UNIT_DIRS } from "../vm/dhcp-start.ts";
import { interfacesOf, ipv4Of } from "../vm/record/derive.ts";
import { formerDhcpServer, isDhcpServed } from "../vm/record/locks.ts";
import type { HostPaths } from "../vm/record/paths.ts";
import type { Examined } from "./host.ts";
import { type Check, count, fine, type Fix, problemOf, verdict } from "./check.ts";

/** How long it may take to answer, in milliseconds. */
const PATIENCE_MS = 5000;

/**
 * Asks the resident for its health.
 *
 * @throws {TapkitError} when nothing answers
 */
export async function askHealth(socket: string | undefined): Promise<ResidentHealth> {
  if (socket === "none") throw new TapkitError("it is not asked, because the socket is none");
  using client = new ResidentClient(socket === undefined ? {} : { socket });
  return await client.health({ signal: AbortSignal.timeout(PATIENCE_MS) });
}

const resident: Check = {
  name: "resident",
  async run(examined) {
    const { host, attached, options: { socket } } = examined;
    let health: ResidentHealth;
    try {
      health = await askHealth(socket);
    } catch (error) {
      const { what } = problemOf(error, "");
      if (attached.length === 0) return fine(`${what}; it is started with the first VM`);
      if (toServe(examined).every(isDhcpServed)) {
        return fine(`${what}; DHCP is served without it`);
      }
      const mend = "run serve, or install its unit so that it starts at boot";
      return { ok: false, detail: what, mend };
    }
    const { version, pid, vms, problems, stateDir, namespaces } = health;
    const { default: own } = await import("../../deno.json", { with: { type: "json" } });
    const again = "restart it: systemctl restart its unit, or kill it and attach again";
    return verdict([
      ...version === own.version ? [] : [{
        what: `the resident (pid ${pid}) is of version ${version}, and this is ${own.version}`,
        mend: again,
      }],
      ...stateDir === host.stateDir ? [] : [{
        what: `the resident (pid ${pid}) serves ${stateDir}, not ${host.stateDir}`,
        mend: `name that directory with --state-dir, or run serve --state-dir ${host.stateDir}`,
      }],
      ...isHere(namespaces) ? [] : [{
        what: `the resident (pid ${pid}) runs in other namespaces than this process`,
        mend: "run it where VMs are attached, without options that give its unit its own mounts",
      }],
      ...problems === 0 ? [] : [{
        what: `${count(problems, "TAP")} get no DHCP from the resident`,
        mend: "see what the resident wrote to its journal",
      }],
    ], `version ${version} (pid ${pid}) answers, and knows ${count(vms, "VM")}`);
  },
};

function isHere({ net, mnt }: ResidentHealth["namespaces"]): boolean {
  const own = ownNamespaces();
  return net === own.net && mnt === own.mnt;
}

/** The state directories that have VMs that need DHCP. */
function toServe({ everywhere, records }: Examined): readonly HostPaths[] {
  return everywhere.filter(({ stateDir }) =>
    records.some((record) =>
      record.host.stateDir === stateDir && record.at !== undefined &&
      interfacesOf(record.at).some(ipv4Of)
    )
  );
}

const dhcp: Check = {
  name: "DHCP",
  run(examined) {
    const { host, options } = examined;
    const served = toServe(examined);
    const problems = served.flatMap((each) => {
      const former = formerDhcpServer(each);
      if (former !== undefined) {
        const what = `${former} is the DHCP server of an earlier version`;
        return [{ what, mend: "end it with kill, or restart its unit: then attach again" }];
      }
      if (isDhcpServed(each)) return [];
      const what = `no DHCP server runs for the VMs of ${each.stateDir}, so guests get no lease`;
      return [{ what, mend: "run serve, or attach-vm --restore" }];
    });
    const fix = options.serve !== undefined && problems.length > 0 && !isDhcpServed(host)
      ? starting(host, options.serve)
      : undefined;
    const good = served.length === 0 ? "no VM needs it" : "is served";
    return verdict(problems, good, fix);
  },
};

/** How long a server may take to start, in milliseconds. */
const START_MS = 10_000;

function starting(host: HostPaths, command: readonly string[]): Fix {
  return async () => {
    const notes: string[] = [];
    await ensureServed({ ...host, note: (text) => notes.push(text) }, command);
    const deadline = Date.now() + START_MS;
    while (!isDhcpServed(host) && notes.length === 0 && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    return notes.length > 0 ? [] : ["started the DHCP server"];
  };
}

/** What install.ts installs for systemd. */
const UNITS = ["tapkit.service", "tapkit-restore.service"];

const boot: Check = {
  name: "start at boot",
  run() {
    if (!isThere("/run/systemd/system")) return fine("systemd does not run here");
    const units = UNITS.filter((unit) => UNIT_DIRS.some((place) => isThere(`${place}/${unit}`)));
    if (units.length === 0) {
      return fine("no unit is installed: after a boot, attach-vm --restore brings VMs back");
    }
    const idle = units.filter((unit) => !isEnabled(unit));
    const problems = idle.map((unit) => ({
      what: `${unit} is installed, and does not start at boot`,
      mend: `systemctl enable --now ${unit}`,
    }));
    return verdict(problems, `${units.join(" and ")} start at boot`);
  },
};

/** Whether a target of systemd wants a unit. */
function isEnabled(unit: string): boolean {
  return UNIT_DIRS.some((place) =>
    namesIn(place).filter((name) => name.endsWith(".wants") || name.endsWith(".requires"))
      .some((target) => isThere(`${place}/${target}/${unit}`))
  );
}

export const RESIDENT_CHECKS: readonly Check[] = [resident, dhcp, boot];
