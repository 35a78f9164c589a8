/** The processor time of this process, which other work on the machine adds nothing to. */

/** proc_pid_stat(5): the fields utime, stime, cutime and cstime, counted behind the name. */
const [FIRST, LAST] = [11, 15];
/** USER_HZ is 100 on all that Deno runs on. */
const TICK_MS = 10;

/** What has been used so far, in milliseconds. */
export interface ProcessorTime {
  readonly own: number;
  /** By the children that have ended. */
  readonly children: number;
}

/** The time until now. */
export function processorTime(): ProcessorTime {
  const fields = Deno.readTextFileSync("/proc/self/stat").replace(/^.*\) /s, "").split(" ");
  const [user, system, childUser, childSystem] = fields.slice(FIRST, LAST)
    .map((ticks) => TICK_MS * Number(ticks)) as [number, number, number, number];
  return { own: user + system, children: childUser + childSystem };
}
