/**
 * Undoing what was begun: every step pushes its undo before it acts.
 *
 * @module
 */

import { InterruptedError, TapkitError } from "./errors.ts";

/**
 * A stack of undo actions.
 *
 * An action must tolerate that its step never happened, since it is pushed first.
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
  #steps: { what: string; undo: () => unknown }[] = [];

  /** Adds the undo of the step that is about to be taken; it may be asynchronous. */
  push(what: string, undo: () => unknown): void {
    this.#steps.push({ what, undo });
  }

  /** Forgets every undo: what was done stays. */
  commit(): void {
    this.#steps = [];
  }

  /**
   * Runs the undo actions, last first, past failures; returns what failed, each naming its step.
   *
   * Actions that are synchronous, up to the first that is not, have run when this returns.
   */
  async unwind(): Promise<Error[]> {
    const failures: Error[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        const pending = step.undo();
        if (pending instanceof Promise) await pending;
      } catch (error) {
        const reason = error instanceof Error ? error.message : String(error);
        failures.push(new Error(`undoing ${step.what}: ${reason}`, { cause: error }));
      }
    }
    return failures;
  }

  /**
   * Unwinds because of `error` and returns what to throw: the error itself, or, where an undo
   * failed too, an {@linkcode UndoError} that names everything left behind.
   */
  async fail(error: unknown): Promise<unknown> {
    const failures = await this.unwind();
    if (failures.length > 0) return new UndoError(error, failures);
    return error instanceof InterruptedError ? error.undone() : error;
  }
}

/** A step failed, and so did undoing some of those before it. */
export class UndoError extends TapkitError {
  override readonly name: string = "UndoError";
  /** The failure that was undone, then what failed of undoing it. */
  readonly errors: readonly unknown[];

  constructor(error: unknown, failures: readonly Error[]) {
    const reason = error instanceof Error ? error.message : String(error);
    const left = failures.map(({ message }) =>
      causeOf(message) === causeOf(reason)
        ? `${message.split(": ", 1)[0]} failed for the same reason`
        : message
    ).join("; ");
    super(`${reason} (and then: ${left})`, {
      mend: error instanceof TapkitError ? error.mend : undefined,
      cause: error,
    });
    this.errors = [error, ...failures];
  }
}

/** What a message ends with: the cause, as `A: because of B: because of C` is written. */
function causeOf(message: string): string {
  return message.slice(message.lastIndexOf(": ") + 1).trim();
}
