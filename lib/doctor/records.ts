/**
 * Records, and whether what they say is so.
 *
 * @module
 */

import { sentence } from "../finding.ts";
import { isThere } from "../files.ts";
import { lockHolder } from "../sys/flock.ts";
import { locksDir, recordPath } from "../vm/record/paths.ts";
import { readAddress, readBridge, readVm, unfinished } from "../vm/record/store.ts";
import { seenSupervised } from "../vm/running.ts";
import { checkBridge } from "../vm/verbs/bridge.ts";
import { checkVm } from "../vm/verbs/check.ts";
import { checkPorts, restoreAddress } from "../vm/verbs/map-ports.ts";
import type { Difference } from "../vm/types.ts";
import { type Check, count, fine, type Fix, type Problem, problemOf, verdict } from "./check.ts";
import { healing, restoring } from "./heal.ts";
import type { Examined, Recorded } from "./host.ts";

const records: Check = {
  name: "records",
  run({ records: readable, unreadable, everywhere, addresses, bridges, names }) {
    const problems = unreadable.map(({ error, host, name }) =>
      problemOf(error, `move ${recordPath(host, name)} away`)
    );
    for (const host of everywhere) {
      for (const to of addresses) problems.push(...unreadableOf(() => readAddress(host, to)));
      for (const link of bridges) problems.push(...unreadableOf(() => readBridge(host, link)));
    }
    const places = Map.groupBy([...readable, ...unreadable], ({ name }) => name);
    for (const [name, [first, ...others]] of places) {
      problems.push(...others.map(({ host }) => ({
        what: `VM "${name}" has a record in ${first!.host.stateDir} and one in ${host.stateDir}`,
        mend: "move the record away that is not of the VM that runs",
      })));
    }
    const others = count(addresses.length + bridges.length, "mapped address");
    return verdict(problems, `${count(names.size, "VM")} and ${others} are recorded`);
  },
};

function unreadableOf(read: () => unknown): Problem[] {
  try {
    read();
    return [];
  } catch (error) {
    return [problemOf(error, "move it away")];
  }
}

const interrupted: Check = {
  name: "interrupted changes",
  twice: true,
  run(host) {
    const left = host.records.filter(({ at }) => at === undefined).flatMap((record) => {
      if (isBeingChanged(record)) return [];
      const stored = readVm(record.host, record.name);
      return stored?.is === "changing" ? [{ record, how: unfinished(stored) }] : [];
    });
    const problems = left.map(({ record, how }) => ({
      what: `VM "${record.name}" ${how}`,
      mend: `run attach-vm --restore, or ${commandOf(record, host)} --remove`,
    }));
    const names = left.map(({ record }) => record.name);
    return verdict(problems, "every record is of a change that ended", restoring(host, names));
  },
};

/** A command about a VM, with the flag for where its record is: `"attach-vm web --state-dir DIR"`. */
function commandOf({ host, name }: Recorded, own: Examined): string {
  const { stateDir } = host;
  return `attach-vm ${name}${stateDir === own.host.stateDir ? "" : ` --state-dir ${stateDir}`}`;
}

/** Whether a command has the VM's lock: what is recorded of it is what that command does. */
function isBeingChanged({ host, name }: Recorded): boolean {
  return lockHolder(`${locksDir(host)}/${name}`) !== undefined;
}

const vms: Check = {
  name: "VMs",
  needs: "capabilities",
  twice: true,
  async run(host) {
    const live: string[] = [];
    const gone: string[] = [];
    const problems: Problem[] = [];
    for (const record of host.records.filter(({ at }) => at !== undefined)) {
      const found = await differences(host, record);
      if (found.length === 0 || isBeingChanged(record)) continue;
      const { name } = record;
      problems.push({
        what: `VM "${name}": ${found.map(sentence).join(", ")}`,
        mend: found.every(({ repair }) => repair === "live")
          ? `run ${commandOf(record, host)}`
          : `run ${commandOf(record, host)}: its VMM has to open its TAP again`,
      });
      // Without its namespace no guest runs; `-- VMM` makes its own anew.
      if (found.some(({ layer }) => layer === "netns")) {
        if (record.at?.spec.run === undefined) gone.push(name);
      } else if (found.some(({ repair }) => repair === "live")) live.push(name);
    }
    const fix: Fix = async () => [
      ...await healing(host, live)(),
      ...await restoring(host, gone)(),
    ];
    const any = live.length + gone.length > 0;
    return verdict(
      problems,
      `${count(host.attached.length, "VM")} attached, each as recorded`,
      any ? fix : undefined,
    );
  },
};

/** What passes other firewalls, and DHCP, have checks of their own. */
const OF_OTHERS: readonly string[] = ["passes", "dhcp"];

async function differences(host: Examined, { name, host: { stateDir } }: Recorded) {
  const { session } = host.host;
  const own: Difference[] = await checkVm(name, { ...host.options, stateDir, session });
  return own.filter(({ layer }) => !OF_OTHERS.includes(layer));
}

const abandoned: Check = {
  name: "VMMs that ended",
  twice: true,
  run(host) {
    const dead = host.records.filter((record) =>
      record.at?.spec.run !== undefined && !seenSupervised(record.host, record.name) &&
      !isBeingChanged(record)
    );
    const problems = dead.map((record) => ({
      what:
        `VM "${record.name}" was to be removed when its VMM ended, and the attach-vm that ran ` +
        "it is gone",
      mend: `run ${commandOf(record, host)} --remove, or attach-vm --gc`,
    }));
    return verdict(problems, "none left anything");
  },
};

const mapped: Check = {
  name: "mapped addresses",
  needs: "capabilities",
  twice: true,
  async run({ everywhere, addresses, bridges, options, host: { session } }) {
    if (addresses.length + bridges.length === 0) return fine("there are none");
    const problems: Problem[] = [];
    const lost: { readonly to: string; readonly stateDir: string }[] = [];
    for (const { stateDir } of everywhere) {
      const at = { ...options, stateDir, session };
      for (const to of addresses.filter((to) => isThere(`${stateDir}/addresses/${to}.json`))) {
        const found = await checkPorts({ to }, at);
        if (found.length === 0) continue;
        lost.push({ to, stateDir });
        const what = `${to}: ${found.map(sentence).join(", ")}`;
        problems.push({ what, mend: "run attach-vm --restore" });
      }
      for (const link of bridges.filter((link) => isThere(`${stateDir}/bridges/${link}.json`))) {
        const found = await checkBridge(link, at);
        if (found.length === 0) continue;
        const what = `bridge "${link}": ${found.map(sentence).join(", ")}`;
        problems.push({ what, mend: "run attach-vm --restore" });
      }
    }
    const fix: Fix = async () => {
      for (const { to, stateDir } of lost) await restoreAddress(to, { ...options, stateDir });
      return lost.map(({ to }) => `restored the ports of ${to}`);
    };
    return verdict(problems, "all ports are mapped", lost.length > 0 ? fix : undefined);
  },
};

export const RECORD_CHECKS: readonly Check[] = [records, interrupted, vms, abandoned, mapped];
