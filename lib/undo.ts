/**
 * Undo: every step pushes its undo before it acts.
 *
 * @module
 */

import { asError, InterruptedError, UndoError } from "./errors.ts";

/**
 * A stack of undo actions.
 *
 * An action is pushed before its step, so it must tolerate that the step never happened.
 *
 * @example
 * ```ts
 * const undo = new UndoStack();
 * try {
 *   undo.push('link "ignite0"', () => deleteLink(nl, "ignite0"));
 *   createBridge(nl, { name: "ignite0" });
 *   undo.commit();
 * } catch (error) {
 *   throw await undo.fail(error);
 * }
 * ```
 */
export class UndoStack {
  #steps: { what: string; undo: (failures: readonly Error[]) => unknown }[] = [];

  /**
   * Adds the undo of the next step. It may be asynchronous.
   *
   * @param undo is given the failures of the undo actions that ran before it
   */
  push(what: string, undo: (failures: readonly Error[]) => unknown): void {
    this.#steps.push({ what, undo });
  }

  /** Forgets every undo: what was done stays. */
  commit(): void {
    this.#steps = [];
  }

  /**
   * Runs the undo actions, last first, and goes on after failures. Returns the failures; each names
   * its step.
   *
   * The actions before the first asynchronous one have run when this returns.
   */
  async unwind(): Promise<Error[]> {
    const failures: Error[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        const pending = step.undo(failures);
        if (pending instanceof Promise) await pending;
      } catch (error) {
        const message = `undoing ${step.what}: ${asError(error).message}`;
        failures.push(new Error(message, { cause: error }));
      }
    }
    return failures;
  }

  /**
   * Unwinds because of `error`, and returns what to throw: the error itself, or, if an undo failed
   * too, an {@linkcode UndoError} that names everything left behind.
   */
  async fail(error: unknown): Promise<unknown> {
    const failures = await this.unwind();
    if (failures.length > 0) return new UndoError(error, failures);
    return error instanceof InterruptedError ? error.undone() : error;
  }
}
