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
