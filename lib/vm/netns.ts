/**
 * A VM's network namespace: which one it is, as a path may lead to another one later.
 *
 * @module
 */

import { InputError, SyscallError, TapkitError } from "../errors.ts";
import { absolutePath, isThere } from "../files.ts";
import { isSameNetns, type NetnsIdentity, netnsIdentity } from "../netlink/identity.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { Errno } from "../sys/libc.ts";
import { type Netns, openNetns, withNetns } from "../sys/netns.ts";

/** What is known of the namespace of an attachment. */
export interface KnownNetns {
  readonly netns: string;
  readonly made: { readonly netnsGiven: boolean; readonly netnsIs?: NetnsIdentity };
}

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

/**
 * A connection of a VM's namespace, or `undefined` when that is gone: nothing is at its path, or
 * another one.
 *
 * @throws {SyscallError} when it cannot be opened for another reason, of which nothing follows
 */
export function openVm(stack: DisposableStack, vm: KnownNetns): NetlinkConnection | undefined {
  let netns: Netns;
  try {
    netns = openNetns(vm.netns);
  } catch (error) {
    if (error instanceof SyscallError && error.errno !== Errno.ENOENT) throw error;
    return undefined;
  }
  using _netns = netns;
  const nl = withNetns(netns, () => NetlinkConnection.open());
  if (isThatOf(vm, netns, nl)) return stack.use(nl);
  nl[Symbol.dispose]();
  return undefined;
}

/** Whether the path of a VM's namespace leads to another one by now. */
export function leadsElsewhere(vm: KnownNetns): boolean {
  if (!isThere(vm.netns)) return false;
  using stack = new DisposableStack();
  if (openVm(stack, vm) !== undefined) return false;
  try {
    openNetns(vm.netns)[Symbol.dispose]();
    return true;
  } catch (error) {
    // The file of one, as a crash leaves it.
    if (error instanceof TapkitError) return false;
    throw error;
  }
}

/** Why the namespace of a VM is not there, as a sentence. */
export function netnsProblem(vm: KnownNetns): string {
  return leadsElsewhere(vm)
    ? `${vm.netns} leads to another network namespace than that of the VM, which is gone`
    : `network namespace ${vm.netns} is missing`;
}

/**
 * Refuses to make an attachment over in a namespace that is another one than it had. After a reboot
 * all are others: one that was given is looked for by its path again, if that can be meant for it.
 *
 * @throws {TapkitError} when none is there, or another one
 */
export function requireSuccessor(name: string, vm: KnownNetns): void {
  const { netns: path, made: { netnsGiven } } = vm;
  if (netnsGiven) openNetns(path)[Symbol.dispose]();
  if (!leadsElsewhere(vm) || netnsGiven && isOfNewBoot(vm)) return;
  throw new TapkitError(netnsProblem(vm), {
    mend: netnsGiven
      ? `run attach-vm ${name} --remove, then attach it where it is to be`
      : `see what that is, delete its name (ip netns delete tapkit-${name}), then try again`,
  });
}

/** Process numbers mean nothing after a reboot. */
function isOfNewBoot({ netns: path, made: { netnsIs } }: KnownNetns): boolean {
  if (netnsIs === undefined || path.startsWith("/proc/") || isHostsOwn(path)) return false;
  using netns = openNetns(path);
  using nl = withNetns(netns, () => NetlinkConnection.open());
  return netnsIdentity(netns, nl).boot !== netnsIs.boot;
}

function isThatOf({ netns: path, made }: KnownNetns, netns: Netns, nl: NetlinkConnection): boolean {
  if (made.netnsIs !== undefined) return isSameNetns(made.netnsIs, netnsIdentity(netns, nl));
  // Recorded by a version that did not look: never the host's.
  return !isHostsOwn(path);
}
