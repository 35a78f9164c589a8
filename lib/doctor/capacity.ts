/**
 * What the kernel has room for, for all VMs together.
 *
 * @module
 */

import { countFlows } from "../netlink/conntrack.ts";
import { openNetfilter } from "../netlink/nfnetlink.ts";
import { readSysctl, writeSysctl } from "../sys/sysctl.ts";
import { type Check, count, fine, type Fix, type Problem, verdict } from "./check.ts";

/** Neighbours of an interface of a VM: the guest's addresses, and those that the guest looks for. */
const NEIGHBOURS_EACH = 2;
/** A guest has the host look for so many at once (firewall/limits-table.ts). */
const NEIGHBOURS_SOUGHT = 256;

const neighbours: Check = {
  name: "neighbours",
  run({ interfaces }) {
    const needed = NEIGHBOURS_SOUGHT + NEIGHBOURS_EACH * interfaces;
    const limits = [4, 6].flatMap((family) => {
      const path = `net/ipv${family}/neigh/default/gc_thresh3`;
      const text = readSysctl(path);
      return text === undefined ? [] : [{ path, limit: Number(text) }];
    });
    if (limits.length === 0) {
      return fine("the limit (gc_thresh3) can be seen in the first network namespace only");
    }
    const who = `${count(interfaces, "interface")} of VMs may need ${needed} neighbours`;
    return raised(limits.filter(({ limit }) => limit < needed), {
      needed,
      why: who,
      good: `there is room: ${who}`,
    });
  },
};

/** Tracked connections that each VM should have room for. */
const CONNECTIONS_EACH = 512;
const CONNTRACK_MAX = "net/netfilter/nf_conntrack_max";
/** From this part on, the table is nearly full. */
const NEARLY_FULL = 0.9;

const connections: Check = {
  name: "tracked connections",
  run({ attached }) {
    const text = readSysctl(CONNTRACK_MAX);
    if (text === undefined) return fine("none is tracked yet");
    const limit = Number(text);
    const used = tracked();
    const needed = Math.max(
      CONNECTIONS_EACH * attached.length,
      used > limit * NEARLY_FULL ? 2 * limit : 0,
    );
    const who = `${used} are in use, and ${count(attached.length, "VM")} may need ${needed}`;
    return raised(limit < needed ? [{ path: CONNTRACK_MAX, limit }] : [], {
      needed,
      why: who,
      good: `there is room for ${limit}: ${who}`,
    });
  },
};

function tracked(): number {
  try {
    using netfilter = openNetfilter();
    return countFlows(netfilter) ?? 0;
  } catch {
    // That the kernel does not tell has a check of its own.
    return 0;
  }
}

/** The verdict on settings that are too low, which are raised live. */
function raised(
  short: readonly { readonly path: string; readonly limit: number }[],
  { needed, why, good }: { readonly needed: number; readonly why: string; readonly good: string },
) {
  const value = String(2 ** Math.ceil(Math.log2(needed)));
  const nameOf = (path: string) => path.replaceAll("/", ".");
  const problems = short.map(({ path, limit }): Problem => ({
    what: `${nameOf(path)} is ${limit}, and ${why}`,
    mend: `run sysctl -w ${nameOf(path)}=${value}, and write that to a file of /etc/sysctl.d`,
  }));
  const fix: Fix = () => {
    return Promise.resolve(
      short.filter(({ path }) => writeSysctl(path, value))
        .map(({ path }) => `set ${nameOf(path)}=${value} until the next boot`),
    );
  };
  return verdict(problems, good, fix);
}

export const CAPACITY_CHECKS: readonly Check[] = [neighbours, connections];
