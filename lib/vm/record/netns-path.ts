/**
 * The paths that lead to network namespaces.
 *
 * @module
 */

import { InputError, SyscallError, TapkitError } from "../../errors.ts";
import { absolutePath } from "../../files.ts";
import { Errno } from "../../sys/libc.ts";
import { openNetns } from "../../sys/netns.ts";

/**
 * The one path of those that lead to a namespace which is recorded: absolute, without links.
 * `/proc/self` becomes `/proc/PID`; what is below is no link that could be followed by text.
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

/** Whether two paths lead to one namespace. */
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

/** By which paths the namespace of the host is known: tapkit's own, and that of its first process. */
const HOSTS_OWN = ["/proc/thread-self/ns/net", "/proc/1/ns/net"];

/** Whether a path leads to the namespace of the host itself. */
export function isHostsOwn(path: string): boolean {
  return HOSTS_OWN.some((own) => isSameFile(path, own));
}

/**
 * Checks a namespace that is given for a VM.
 *
 * @throws {InputError} when there is none, or it is the host's own
 */
export function validateNetns(path: string): void {
  try {
    openNetns(path)[Symbol.dispose]();
  } catch (cause) {
    if (cause instanceof InputError || !(cause instanceof TapkitError)) throw cause;
    const { message, mend = "name one that is there: ip netns add NAME makes /run/netns/NAME" } =
      cause;
    const missing = cause instanceof SyscallError && cause.errno === Errno.ENOENT;
    throw new InputError(missing ? `there is no network namespace ${path}` : message, {
      mend,
      cause,
    });
  }
  if (!isHostsOwn(path)) return;
  throw new InputError(`${path} is the network namespace of the host itself`, {
    mend: "name one of the VM's own, or leave --netns out",
  });
}
