/**
 * A layer of an attachment: one kind of thing in the kernel that it consists of. Layers stand on each
 * other, and are the only code that knows how their things are made, compared and taken away. No code.
 *
 * @module
 */

import type { UndoStack } from "../../undo.ts";
import type { Difference, LayerName } from "../types.ts";
import type { Outside } from "../../cni/plan.ts";
import type { Together } from "../../cni/plugin.ts";
import type { Host } from "../session.ts";
import type { OpenNetns } from "./open-netns.ts";

/** What the layers work with, while one attachment is changed or looked at. */
export interface Context<B> {
  readonly host: Host;
  /** The VM's namespace, opened when it is needed. */
  readonly vm: OpenNetns;
  /** Gets the undo of every step before the step is taken. */
  readonly undo: UndoStack;
  /** Whether a change was cut off: what is in the kernel may be of this side of it, too. */
  readonly cutOff?: { readonly to?: B | undefined } | undefined;
  /** What differs in the kernel. */
  readonly found: readonly Difference[];
  /** Whether networks that may give an address again keep it while they are made anew. */
  readonly keepLeases: boolean;
  /** Does what runs programs of others, and holds no lock that other VMs need meanwhile. */
  readonly outside: Outside;
  /** Gets the links that go with those of other VMs, and the rest of a namespace then goes by itself. */
  readonly together?: Together | undefined;
  /** Whether what cannot be repaired while the guest runs is left as it is, and told as an error. */
  readonly liveOnly?: boolean;
  /** Whether what is taken away is made again at once. */
  readonly remaking: boolean;
}

/** One layer of attachments of a kind. */
export interface Layer<B> {
  readonly name: LayerName;
  /** The layer that this one stands on. Where that is made anew, so is this one. */
  readonly on?: LayerName;
  /** Whether it is made last and taken away last: others need it for as long as they are there. */
  readonly outlives?: true;
  /** Other names that differences of this layer's go by. */
  readonly also?: readonly LayerName[];
  /** What of an attachment this layer makes: where it is equal on both sides, nothing is to do. Pure. */
  want(at: B): unknown;
  /** What it makes, as people call it: `TAP "vm_eth0"`. Pure. */
  describe(at: B): string;
  /**
   * Completes what is going to be made, and refuses what cannot be made, before anything is touched.
   *
   * @param before what it was, where it is made anew
   */
  plan?(context: Context<B>, to: B, before: B | undefined): B | Promise<B>;
  /**
   * Called before anything is touched, to push the undo of what other layers change of its things.
   *
   * @param from what it was; absent where this layer is made
   */
  begin?(context: Context<B>, from: B | undefined, to: B): void;
  /** Compares what is recorded with what is there. Reads only. */
  observe(context: Context<B>, at: B): Difference[] | Promise<Difference[]>;
  /**
   * Makes what is not there.
   *
   * @param before what it was, where it is made anew
   * @returns the attachment with what was given
   */
  make(context: Context<B>, to: B, before: B | undefined): B | Promise<B>;
  /**
   * Brings what is there to what is wanted, while the guest runs.
   *
   * @returns the attachment with what was given; `"recreate"` where only making it anew does
   */
  change(context: Context<B>, from: B, to: B): B | "recreate" | Promise<B | "recreate">;
  /**
   * Takes away what is there; what is not there is no error. Returns what failed. Absent where it goes
   * with the layer that it stands on.
   */
  take?(context: Context<B>, from: B): readonly unknown[] | Promise<readonly unknown[]>;
}
