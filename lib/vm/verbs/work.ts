/**
 * What every verb that changes a VM does around its work: the locks, and the state's directory.
 *
 * @module
 */

import { checkpoint } from "../../checkpoint.ts";
import { tidyDefaultCni } from "../../cni/default-network.ts";
import type { Outside } from "../../cni/plan.ts";
import { PortConflictError } from "../../inet/ports.ts";
import { UndoStack } from "../../undo.ts";
import type { Context } from "../layers/layer.ts";
import { OpenNetns } from "../layers/open-netns.ts";
import type { Attachment, Both } from "../record/attachment.ts";
import { type Identity, identityOf, validateName } from "../record/identity.ts";
import { HostLock, lockVm, tidyState } from "../record/locks.ts";
import { hasVm } from "../record/store.ts";
import { type Host, openHost } from "../session.ts";
import type { HostOptions } from "../types.ts";

/** A host of which this process may change what VMs share. */
export interface Work {
  readonly host: Host;
  /** Does what runs a program of others, while other VMs are changed. */
  readonly outside: Outside;
}

/** A VM that this process alone changes. */
export interface VmWork extends Work {
  readonly id: Identity;
}

/**
 * Does something with the locks of a VM and of what VMs share. Where the VM has no record in the end,
 * what the state no longer needs goes.
 *
 * @throws {InputError} when the name is malformed
 */
export async function changingVm<T>(
  name: string,
  options: HostOptions,
  act: (work: VmWork) => Promise<T>,
): Promise<T> {
  validateName(name);
  using host = openHost(options);
  try {
    await checkpoint(host.signal);
    using _vm = await lockVm(host, name);
    using lock = await HostLock.take(host);
    return await act({ host, id: identityOf(name), outside: lock.outside });
  } catch (error) {
    throw await explained(error);
  } finally {
    if (!hasVm(host, name)) {
      tidyState(host);
      tidyDefaultCni(host.confDir);
    }
  }
}

/** Does what changes things of the host that are no VM's, under the host's lock. */
export async function changingHost<T>(
  options: HostOptions,
  act: (work: Work) => Promise<T>,
): Promise<T> {
  using host = openHost(options);
  try {
    using lock = await HostLock.take(host);
    return await act({ host, outside: lock.outside });
  } catch (error) {
    throw await explained(error);
  } finally {
    tidyState(host);
  }
}

/** An error, by now with no lock held, with what programs of others know of it. */
export async function explained(error: unknown): Promise<unknown> {
  if (!(error instanceof PortConflictError)) return error;
  const { nameContainer } = await import("../../firewall/docker-ports.ts");
  return nameContainer(error);
}

/**
 * What layers work with.
 *
 * @param stored what is recorded; while that is changing, either side may be there
 */
export function contextOf<B>(
  { host, outside }: Work,
  stored: Attachment<B> | undefined,
): Context<B> & Disposable {
  const cutOff = stored?.is === "changing" ? { to: stored.to } : undefined;
  const vm = new OpenNetns((cutOff?.to as Partial<Both> | undefined)?.facts?.netns);
  return {
    host,
    outside,
    vm,
    undo: new UndoStack(),
    cutOff,
    found: [],
    keepLeases: false,
    remaking: false,
    [Symbol.dispose]: () => vm[Symbol.dispose](),
  };
}

/** Does something without a lock, which changes nothing: {@linkcode lookingAt}. */
export async function onlyLooking<T>(
  options: HostOptions,
  act: (work: Work) => Promise<T>,
): Promise<T> {
  using host = openHost(options);
  try {
    return await act(lookingAt(host));
  } catch (error) {
    throw await explained(error);
  }
}

/** Of who only looks at a host: nothing is locked, and planning installs nothing. */
export function lookingAt(host: Host): Work {
  return { host: { ...host, onlyLooks: true }, outside: (act) => (host.waits?.(), act()) };
}
