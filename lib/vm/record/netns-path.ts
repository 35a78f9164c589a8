/**
 * Paths of network namespaces.
 *
 * @module
 */

import { InputError, SyscallError, TapkitError } from "../../errors.ts";
import { absolutePath } from "../../caller.ts";
import { Errno } from "../../sys/libc.ts";
import { openNetns } from "../../sys/netns.ts";

/**
 * The path of a namespace that is recorded: absolute, without symbolic links. `/proc/self` becomes
 * `/proc/PID`. The links below that have no text to follow.
 */
export function canonicalNetns(path: string): string {
  const absolute = absolutePath(path);
  const [, directory = "/", name = ""] = /^(.*)\/([^/]*)$/.exec(absolute) ?? [];
  for (const resolve of [() => Deno.realPathSync(absolute), () => joinReal(directory, name)]) {
    try {
      return resolve();
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
  return absolute;
}

function joinReal(directory: string, name: string): string {
  return `${Deno.realPathSync(directory || "/").replace(/\/$/, "")}/${name}`;
}

/** Whether two paths lead to the same namespace. */
export function leadToOne(one: string, other: string): boolean {
  return canonicalNetns(one) === canonicalNetns(other) || isSameFile(one, other);
}

function isSameFile(one: string, other: string): boolean {
  try {
    const [a, b] = [Deno.statSync(one), Deno.statSync(other)];
    return a.dev === b.dev && a.ino === b.ino;
  } catch {
    return false;
  }
}

/** The namespace of tapkit, and of the host's first process. */
const HOSTS_OWN = ["/proc/thread-self/ns/net", "/proc/1/ns/net"];

/** Whether a path leads to the host's own namespace. */
export function isHostsOwn(path: string): boolean {
  return HOSTS_OWN.some((own) => isSameFile(path, own));
}

/**
 * Checks the path of a namespace given for a VM.
 *
 * @throws {InputError} when it leads to no namespace, or to the host's own
 */
export function validateNetns(path: string): void {
  try {
    openNetns(path)[Symbol.dispose]();
  } catch (cause) {
    if (cause instanceof InputError || !(cause instanceof TapkitError)) throw cause;
    const { message, mend = "name one that exists: ip netns add NAME creates /run/netns/NAME" } =
      cause;
    const missing = cause instanceof SyscallError && cause.errno === Errno.ENOENT;
    throw new InputError(missing ? `there is no network namespace ${path}` : message, {
      mend,
      cause,
    });
  }
  if (!isHostsOwn(path)) return;
  throw new InputError(`${path} is the network namespace of the host itself`, {
    mend: "name a namespace for the VM, or leave out --netns",
  });
}
