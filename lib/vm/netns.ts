/**
 * A VM's network namespace: which one it is, as a path may lead to another one later.
 *
 * @module
 */

import { SyscallError, TapkitError } from "../errors.ts";
import { isThere } from "../files.ts";
import { type Finding, sentence } from "../finding.ts";
import { isSameNetns, netnsIdentity } from "../netlink/identity.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { Errno } from "../sys/libc.ts";
import { type Netns, openNetns, withNetns } from "../sys/netns.ts";
import type { Facts } from "./record/attachment.ts";
import { isHostsOwn } from "./record/netns-path.ts";

/** What is known of the namespace of an attachment. */
export type KnownNetns = Facts["netns"];

/**
 * Opens the namespace at a path; undefined where none is there.
 *
 * @throws {SyscallError} when it cannot be opened for another reason, of which nothing follows
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
 * A connection of a VM's namespace, or `undefined` when that is gone: nothing is at its path, or
 * another one.
 *
 * @throws {SyscallError} when it cannot be opened for another reason, of which nothing follows
 */
export function openVm(stack: DisposableStack, vm: KnownNetns): NetlinkConnection | undefined {
  using netns = openIfThere(vm.path);
  if (netns === undefined) return undefined;
  const nl = withNetns(netns, () => NetlinkConnection.open());
  if (isThatOf(vm, netns, nl)) return stack.use(nl);
  nl[Symbol.dispose]();
  return undefined;
}

/** Whether the path of a VM's namespace leads to another one by now. */
export function leadsElsewhere(vm: KnownNetns): boolean {
  if (!isThere(vm.path)) return false;
  using stack = new DisposableStack();
  if (openVm(stack, vm) !== undefined) return false;
  try {
    openNetns(vm.path)[Symbol.dispose]();
    return true;
  } catch (error) {
    // The file of one, as a crash leaves it.
    if (error instanceof TapkitError) return false;
    throw error;
  }
}

/** Why the namespace of a VM is not there. */
export function netnsProblem(vm: KnownNetns): Finding {
  return leadsElsewhere(vm)
    ? {
      object: vm.path,
      problem: "leads to another network namespace than that of the VM, which is gone",
    }
    : { object: `network namespace ${vm.path}`, problem: "is missing" };
}

/**
 * Refuses to make an attachment over in a namespace that is another one than it had. After a reboot
 * all are others: one that was given is looked for by its path again, if that can be meant for it.
 *
 * @throws {TapkitError} when none is there, or another one
 */
export function requireSuccessor(name: string, vm: KnownNetns): void {
  const { path, given } = vm;
  if (given) openNetns(path)[Symbol.dispose]();
  if (!leadsElsewhere(vm) || given && isOfNewBoot(vm)) return;
  throw new TapkitError(sentence(netnsProblem(vm)), {
    mend: given
      ? `run attach-vm ${name} --remove, then attach it where it is to be`
      : `see what that is, delete its name (ip netns delete tapkit-${name}), then try again`,
  });
}

/** Process numbers mean nothing after a reboot. */
function isOfNewBoot({ path, is }: KnownNetns): boolean {
  if (is === undefined || path.startsWith("/proc/") || isHostsOwn(path)) return false;
  using netns = openNetns(path);
  using nl = withNetns(netns, () => NetlinkConnection.open());
  return netnsIdentity(netns, nl).boot !== is.boot;
}

/** Whether an open namespace is that of a VM. */
export function isThatOf({ path, is }: KnownNetns, netns: Netns, nl: NetlinkConnection): boolean {
  if (is !== undefined) return isSameNetns(is, netnsIdentity(netns, nl));
  // Recorded by a version that did not look: never the host's.
  return !isHostsOwn(path);
}
