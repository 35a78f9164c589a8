/**
 * Network drivers: ways in which a VM's interfaces get their addresses. No code.
 *
 * @module
 */

import type { Dns } from "../../cni/types.ts";
import type { Netns } from "../../sys/netns.ts";
import type { Context } from "../layers/layer.ts";
import type { Both, NetworkFact } from "../record/attachment.ts";
import type { Difference } from "../types.ts";

/** An interface that was made. */
export interface MadeNetwork {
  /** With its link, and how the host reaches it. */
  readonly fact: NetworkFact;
  /** The resolvers that the network names. */
  readonly dns?: Dns | undefined;
}

/** What a driver is asked for an interface. */
export interface WantedNetwork {
  /** Its place: eth0 is the first. */
  readonly index: number;
  /** The VM's interfaces before it. */
  readonly earlier: readonly NetworkFact[];
  /** What it was before, where it is made anew: its address and MAC are asked for again. */
  readonly before: NetworkFact | undefined;
}

/** One way to put a VM on networks. */
export interface NetworkDriver {
  /**
   * Finds the networks, and what is going to run for them. Nothing is touched.
   *
   * @throws {TapkitError} for a network that is not there, or cannot do what is asked
   */
  plan(context: Context<Both>, to: Both, before: Both | undefined): Promise<NetworkFact[]>;
  /**
   * Makes the VM's own namespace, where the network makes it, with its interfaces.
   *
   * @returns the open namespace, which gets the VM's name, and the attachment with what was given
   */
  makeNetns?(
    context: Context<Both>,
    to: Both,
    before: Both | undefined,
  ): Promise<{ readonly netns: Netns; readonly at: Both }>;
  /** Makes one interface; every step pushes its undo. */
  add(context: Context<Both>, to: Both, wanted: WantedNetwork): Promise<MadeNetwork>;
  /** Compares the interfaces of a VM, whose namespace is there, with what was given. */
  check(context: Context<Both>, at: Both): Promise<Difference[]>;
  /** Repairs what was found to differ, and tells of other ports; see Layer.change. */
  change(context: Context<Both>, from: Both, to: Both): Promise<Both | "recreate">;
  /** Takes all interfaces away, past failures; returns those. */
  del(context: Context<Both>, from: Both): Promise<unknown[]>;
  /** Called when all interfaces are there: refuses what others have, and asks once more. */
  settle(context: Context<Both>, at: Both): Promise<Both>;
}
