/**
 * Whether a VM runs: `-- VMM` runs a VMM for it, or any process has the VM's TAP open.
 *
 * ```
 * /var/lib/tapkit/running/NAME   locked by the `-- VMM` call; contains the process id of the VMM
 * ```
 *
 * @module
 */

import { describe, TapkitError } from "../errors.ts";
import { isThere, readIfThere, removeIfThere } from "../files.ts";
import { bootId, isSameNetns, netnsIdentity } from "../netlink/identity.ts";
import { type Link, listLinks } from "../netlink/link.ts";
import { lockFile, lockHolder } from "../sys/flock.ts";
import { processStat } from "../sys/process-stat.ts";
import type { TapUser } from "../sys/tap-users.ts";
import { OpenNetns } from "./layers/open-netns.ts";
import { identify, type KnownNetns } from "./netns.ts";
import { type HostPaths, inDirectory, runningDir } from "./record/paths.ts";

/** A process. The start time tells it from a later one with the same id. */
interface Process {
  readonly pid: number;
  /** In clock ticks since boot. */
  readonly started: string;
  readonly boot: string;
}

/** The exclusive right to run a VMM for a VM. A crash of its holder releases it. */
export interface Run extends Disposable {
  /** Records the process id of the VMM. */
  started(pid: number): void;
}

const runPath = (host: HostPaths, name: string) => `${runningDir(host)}/${name}`;

/**
 * Takes the exclusive right to run a VMM for a VM. The caller holds the VM's lock.
 *
 * @throws {TapkitError} naming the process that runs the VM already
 */
export async function claimRun(
  host: HostPaths,
  name: string,
  vm: KnownNetns | undefined,
): Promise<Run> {
  const running = supervised(host, name) ?? (vm && (await tapUsersOf(vm))[0]);
  if (running !== undefined) throw alreadyRunning(name, running);
  const path = runPath(host, name);
  const lock = inDirectory(
    runningDir(host),
    () => lockFile(path, { remove: true, wait: false }),
  );
  // Another call took it at this moment.
  if (lock === undefined) throw alreadyRunning(name, supervised(host, name));
  const started = (pid: number) => {
    try {
      Deno.writeTextFileSync(path, JSON.stringify(describeProcess(pid)), { mode: 0o600 });
    } catch (error) {
      // A full disk is no reason to stop the VM.
      host.note(`warning: ${path} cannot be written: ${describe(error)}`);
    }
  };
  started(Deno.pid);
  return { started, [Symbol.dispose]: () => lock[Symbol.dispose]() };
}

function alreadyRunning(name: string, { pid }: { readonly pid?: number } = {}): TapkitError {
  return new TapkitError(`"${name}" is already running${pidInWords(pid)}`, {
    mend: "end that process first, or choose another name",
  });
}

/** The process id for a message. Undefined if it could not be written to the file. */
export const pidInWords = (pid?: number): string => pid === undefined ? "" : ` (pid ${pid})`;

/**
 * The VMM of a `-- VMM` call, or the call itself before the VMM starts and after it ends. The caller
 * holds the VM's lock.
 */
export function supervised(host: HostPaths, name: string): { readonly pid?: number } | undefined {
  const path = runPath(host, name);
  if (!isThere(path)) return undefined;
  const noted = readProcess(path);
  const lock = lockFile(path, { wait: false });
  if (lock === undefined) return noted ?? {};
  using _lock = lock;
  // The call was killed. The VMM may still run.
  if (noted !== undefined && isAlive(noted)) return noted;
  removeIfThere(path);
  return undefined;
}

/**
 * The same for who does not hold the VM's lock: it changes nothing, and takes no lock that a call would
 * be refused for.
 */
export function seenSupervised(
  host: HostPaths,
  name: string,
): { readonly pid?: number } | undefined {
  const path = runPath(host, name);
  if (!isThere(path)) return undefined;
  const noted = readProcess(path);
  if (noted !== undefined && isAlive(noted)) return { pid: noted.pid };
  return lockHolder(path) === undefined ? undefined : {};
}

function readProcess(path: string): Process | undefined {
  try {
    const { pid, started, boot } = JSON.parse(readIfThere(path) ?? "");
    return { pid: Number(pid), started: String(started), boot: String(boot) };
  } catch {
    return undefined;
  }
}

function isAlive(noted: Process): boolean {
  const now = describeProcess(noted.pid);
  return now !== undefined && now.started === noted.started && now.boot === noted.boot;
}

function describeProcess(pid: number): Process | undefined {
  const fields = processStat(pid);
  if (fields === undefined || fields[0] === "Z") return undefined;
  return { pid, started: fields[19]!, boot: bootId() };
}

/** The processes that have a TAP of a VM open, even if no path leads to its namespace any more. */
async function tapUsersOf(vm: KnownNetns, opened?: OpenNetns): Promise<TapUser[]> {
  using own = opened === undefined ? new OpenNetns() : undefined;
  const inside = (opened ?? own!).find(vm);
  // A TAP that is up and not open has no carrier.
  const isOpen = ({ name, up, running }: Link) => isTap(name) && (running || !up);
  if (inside !== undefined && !listLinks(inside.nl, { kind: "tun" }).some(isOpen)) return [];
  const identity = inside === undefined ? vm.is : netnsIdentity(inside.netns, inside.nl);
  if (identity?.boot !== bootId()) return [];
  const { tapUsers } = await import("../sys/tap-users.ts");
  return tapUsers(isTap, (netns) => isSameNetns(identity, identify(netns)));
}

const isTap = (name: string) => name.startsWith("vm_");

/**
 * The processes that have the TAP of a VM open, for a message; undefined if there are none.
 *
 * @param opened of a caller that needs the VM's namespace for more
 */
export async function describeTapUsers(
  vm: KnownNetns,
  opened?: OpenNetns,
): Promise<string | undefined> {
  const users = await tapUsersOf(vm, opened);
  if (users.length === 0) return undefined;
  return users.map(({ pid, name }) => `${name} (pid ${pid})`).join(", ");
}
