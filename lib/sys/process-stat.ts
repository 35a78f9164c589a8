/**
 * What the kernel tells of a process.
 *
 * @module
 */

import { tolerate } from "./libc.ts";
import { readText } from "./text.ts";

/**
 * The fields of `/proc/PID/stat` from the third on, the process's state: the second is its name, which
 * may contain anything (proc_pid_stat(5)).
 *
 * @returns undefined if it has ended, or the caller may not see it
 */
export function processStat(pid: number): string[] | undefined {
  // ESRCH: it ended between opening and reading. The others: /proc is mounted with hidepid.
  const stat = tolerate(["ESRCH", "EPERM", "EACCES"], () => readText(`/proc/${pid}/stat`));
  return stat?.slice(stat.lastIndexOf(")") + 2).split(" ");
}

const PF_EXITING = 0x4; // linux/sched.h
const SIGKILL_BIT = 1 << 8;

/** Whether a process has ended, or was killed and is being taken down. */
export function isDying(pid: number): boolean {
  const fields = processStat(pid);
  if (fields === undefined) return true;
  const [state = "", flags, pending] = [0, 6, 28].map((index) => fields[index]);
  return "ZX".includes(state) || (Number(flags) & PF_EXITING) !== 0 ||
    (Number(pending) & SIGKILL_BIT) !== 0;
}

/** When a process started, in ticks since the machine did; undefined as of {@linkcode processStat}. */
export function startOf(pid: number): number | undefined {
  const start = processStat(pid)?.[19];
  return start === undefined ? undefined : Number(start);
}
