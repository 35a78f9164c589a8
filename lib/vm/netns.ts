/**
 * A VM's network namespace: opening it only if its path still leads to the same namespace.
 *
 * @module
 */

import { SyscallError, TapkitError } from "../errors.ts";
import { isThere } from "../files.ts";
import { type Finding, sentence } from "../finding.ts";
import { isSameNetns, type NetnsIdentity, netnsIdentity } from "../netlink/identity.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { Errno } from "../sys/libc.ts";
import { type Netns, openNetns, withNetns } from "../sys/netns.ts";
import type { Facts } from "./record/attachment.ts";
import { isHostsOwn } from "./record/netns-path.ts";

/** The namespace of an attachment, as recorded. */
export type KnownNetns = Facts["netns"];

/**
 * Opens the namespace at a path; undefined if there is none.
 *
 * @throws {SyscallError} when it cannot be opened for another reason
 */
export function openIfThere(path: string): Netns | undefined {
  try {
    return openNetns(path);
  } catch (error) {
    if (error instanceof SyscallError && error.errno !== Errno.ENOENT) throw error;
    return undefined;
  }
}

/**
 * Opens a connection in a VM's namespace; undefined if its path leads to nothing or to another
 * namespace.
 *
 * @throws {SyscallError} when it cannot be opened for another reason
 */
export function openVm(stack: DisposableStack, vm: KnownNetns): NetlinkConnection | undefined {
  using netns = openIfThere(vm.path);
  if (netns === undefined) return undefined;
  const nl = withNetns(netns, () => NetlinkConnection.open());
  if (isThatOf(vm, netns, nl)) return stack.use(nl);
  nl[Symbol.dispose]();
  return undefined;
}

/** Whether the path of a VM's namespace leads to another namespace now. */
export function leadsElsewhere(vm: KnownNetns): boolean {
  if (!isThere(vm.path)) return false;
  using stack = new DisposableStack();
  if (openVm(stack, vm) !== undefined) return false;
  try {
    openNetns(vm.path)[Symbol.dispose]();
    return true;
  } catch (error) {
    // A crash left the file of a namespace.
    if (error instanceof TapkitError) return false;
    throw error;
  }
}

/** Why the namespace of a VM cannot be opened. */
export function netnsProblem(vm: KnownNetns): Finding {
  return leadsElsewhere(vm)
    ? {
      object: vm.path,
      problem: "leads to another network namespace than the VM's, which no longer exists",
    }
    : { object: `network namespace ${vm.path}`, problem: "is missing" };
}

/**
 * Refuses to repair an attachment in a namespace other than its own. After a reboot every namespace
 * is another one. Then a given namespace is taken by its path again, if that cannot be a mistake.
 *
 * @throws {TapkitError} when the path leads to no namespace, or to another one
 */
export function requireSuccessor(name: string, vm: KnownNetns): void {
  const { path, given } = vm;
  if (given) openNetns(path)[Symbol.dispose]();
  if (!leadsElsewhere(vm) || given && isOfNewBoot(vm)) return;
  throw new TapkitError(sentence(netnsProblem(vm)), {
    mend: given
      ? `run attach-vm ${name} --remove, then attach it to the namespace that you want`
      : `find out what uses it, delete its name (ip netns delete tapkit-${name}), then try again`,
  });
}

/** Process ids mean nothing after a reboot. */
function isOfNewBoot({ path, is }: KnownNetns): boolean {
  if (is === undefined || path.startsWith("/proc/") || isHostsOwn(path)) return false;
  using netns = openNetns(path);
  return identify(netns).boot !== is.boot;
}

/** The identity of an open namespace. */
export function identify(netns: Netns): NetnsIdentity {
  using nl = withNetns(netns, () => NetlinkConnection.open());
  return netnsIdentity(netns, nl);
}

/** Whether an open namespace is the VM's. */
export function isThatOf({ path, is }: KnownNetns, netns: Netns, nl: NetlinkConnection): boolean {
  if (is !== undefined) return isSameNetns(is, netnsIdentity(netns, nl));
  // Recorded by a version that did not store the identity. It is never the host's.
  return !isHostsOwn(path);
}
