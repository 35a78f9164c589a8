/**
 * The effects of a command, one by one, and faults put in the place of any of them: by strace, so
 * that the command itself knows of nothing.
 *
 * An effect is a system call of the main thread that changes the kernel or the disk.
 *
 * @module
 */

import type { Machine, Outcome } from "./machine.ts";

/** A system call that changed something. */
export interface Effect {
  readonly syscall: string;
  /** The file it was about, where its name is the same each time. */
  readonly path?: string;
  /** Which of the process's calls of that name it is, on that file if there is one, from 1. */
  readonly nth: number;
  /** What it was about, shortened. */
  readonly what: string;
}

/** What happens instead of an effect. */
export type Fault = "SIGKILL" | "SIGINT" | "SIGTERM" | "SIGHUP" | "ENOSPC" | "EMFILE" | "ENOMEM";

/** Where {@linkcode traceEffects} writes; gone when it returns. */
const TRACE_FILE = "/run/effects.trace";

/** Calls on files: those of the machine's own count, not the runtime's caches. */
const FILE_CALLS = ["rename", "link", "linkat", "symlink", "unlink", "mkdir", "rmdir", "chmod"]
  .concat(["write", "ftruncate", "fchmod", "fsync", "fdatasync"]);
const OWN_FILE = /[<"]\/(proc\/sys|var|etc|run)\//;
const NAMESPACE_CALLS = ["mount", "umount2", "unshare", "setns"];

/** By system call: whether a traced one that succeeded has changed something. */
const CHANGES: Readonly<Record<string, (args: string) => boolean>> = {
  sendto: asksForChange,
  sendmsg: asksForChange,
  openat: (args) => args.includes("O_CREAT") && OWN_FILE.test(args),
  ioctl: (args) => /\bTUN\w+/.test(args),
  clone: (args) => !args.includes("CLONE_THREAD"),
  clone3: (args) => args.includes("CLONE_VFORK"),
  ...Object.fromEntries(
    FILE_CALLS.map((syscall) => [syscall, (args: string) => OWN_FILE.test(args)]),
  ),
  ...Object.fromEntries(NAMESPACE_CALLS.map((syscall) => [syscall, () => true])),
};

/** A netlink request that is no query. strace names the types of some sockets only. */
function asksForChange(args: string): boolean {
  const [, type = ""] = /nlmsg_type=([^ ,]+)/.exec(args) ?? [];
  if (!type.startsWith("0x")) return type !== "" && !type.includes("_GET");
  // linux/rtnetlink.h numbers NEW, DEL, GET, SET from 16; nf_tables' queries come with a name but one.
  const number = Number(type);
  return number < 0x100 && number % 4 !== 2;
}

/** Runs a command that must succeed; returns its effects in their order. */
export async function traceEffects(
  machine: Machine,
  command: string,
  args: readonly string[],
): Promise<Effect[]> {
  const calls = Object.keys(CHANGES).join();
  const strace = ["-y", "-s", "128", "-o", TRACE_FILE, "-e", `trace=${calls}`, "--"];
  await machine.must("strace", [...strace, command, ...args]);
  const text = await machine.readFile(TRACE_FILE);
  await machine.must("rm", [TRACE_FILE]);
  return parseTrace(text);
}

function parseTrace(text: string): Effect[] {
  const counts = new Map<string, number>();
  const count = (key: string) => {
    const nth = (counts.get(key) ?? 0) + 1;
    counts.set(key, nth);
    return nth;
  };
  return text.split("\n").flatMap((line): Effect[] => {
    // The kernel tries again by itself: a setting whose lock another namespace's change holds.
    if (line.includes("= ? ERESTART")) return [];
    const [, syscall = "", args = "", result = ""] = /^(\w+)\((.*)\)\s+= (\S+)/.exec(line) ?? [];
    const path = pathOf(syscall, args);
    const [nth, nthOnPath] = [count(syscall), count(`${syscall} ${path}`)];
    if (!/^\d/.test(result) || CHANGES[syscall]?.(args) !== true) return [];
    const what = args.slice(0, 100);
    return [path === undefined ? { syscall, nth, what } : { syscall, path, nth: nthOnPath, what }];
  });
}

/**
 * The file that a call is about. Calls on files are counted by it: the runtime writes to its own
 * descriptors too, now more often and now less. A name with a process's number is another each time.
 */
function pathOf(syscall: string, args: string): string | undefined {
  if (syscall !== "openat" && !FILE_CALLS.includes(syscall)) return undefined;
  // By its descriptor, or its name.
  const [, path] = /^\d+<(\/[^>]*)>/.exec(args) ?? /^[^"]*"(\/[^"]*)"/.exec(args) ?? [];
  return path === undefined || /\.\d+$/.test(path) ? undefined : path;
}

/**
 * Whether a run may pass without meeting an effect. Another run meets it.
 *
 * The runtime starts threads by the same call as processes, now more of them and now fewer. A resident
 * that ends meanwhile deletes its lock, so that the command finds none to look at. And what the kernel
 * lists while it changes is asked for again, by one message more.
 */
export function mayBeMissed({ syscall, path }: Effect): boolean {
  return syscall.startsWith("clone") || syscall === "sendto" ||
    path?.endsWith("/serve-dhcp.lock") === true;
}

/** How many runs are enough to meet what {@linkcode mayBeMissed}. */
export const MEETING_RUNS = 5;

/** Runs a command in which a fault takes the place of an effect. */
export async function runWithFault(
  machine: Machine,
  { syscall, path, nth }: Effect,
  fault: Fault,
  command: string,
  args: readonly string[],
): Promise<Outcome> {
  const action = fault.startsWith("SIG") ? `signal=${fault}` : `error=${fault}`;
  const files = path === undefined ? [] : ["-P", path];
  const strace = ["-o", "/dev/null", ...files, "-e", `trace=${syscall}`];
  const inject = ["-e", `inject=${syscall}:${action}:when=${nth}`, "--"];
  return await machine.run("strace", [...strace, ...inject, command, ...args]);
}
