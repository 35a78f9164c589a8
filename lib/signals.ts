/**
 * Signals that ask this process to end, and what becomes of what it is doing.
 *
 * @module
 */

import { InterruptedError } from "./errors.ts";

/** The numbers of the signals that a process is sent by others, the same on all of Linux. */
export const SIGNALS = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGUSR1: 10,
  SIGUSR2: 12,
  SIGTERM: 15,
} as const;

/** Signals that end a process in good order. */
const ENDING = ["SIGHUP", "SIGINT", "SIGTERM"] as const;

/** Calls `act` for each of these signals, which do nothing else until the result is disposed of. */
export function listenTo<S extends keyof typeof SIGNALS>(
  signals: readonly S[],
  act: (signal: S) => void,
): Disposable {
  const stack = new DisposableStack();
  for (const signal of signals) {
    const listener = () => act(signal);
    Deno.addSignalListener(signal, listener);
    stack.defer(() => Deno.removeSignalListener(signal, listener));
  }
  return stack;
}

/**
 * From now on SIGHUP, SIGINT and SIGTERM do not end this process, but raise the signal that is
 * returned, with an {@linkcode InterruptedError} as its reason. Those that nohup, or the shell of a
 * background job, keeps from this process are kept from it still.
 */
export function heedSignals(): AbortSignal {
  const controller = new AbortController();
  const ignored = ignoredSignals();
  // Once Deno listens to any signal, it ends at SIGHUP, ignored or not.
  listenTo(ENDING, (signal) => {
    if (!ignored.includes(signal)) controller.abort(interruptedBy(signal));
  });
  return controller.signal;
}

/** What is thrown because of a signal. */
export function interruptedBy(signal: keyof typeof SIGNALS): InterruptedError {
  return new InterruptedError(`interrupted by ${signal}`, SIGNALS[signal]);
}

function ignoredSignals(): readonly (keyof typeof SIGNALS)[] {
  const status = readStatus();
  const ignored = BigInt(`0x${/^SigIgn:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`);
  return ENDING.filter((signal) => (ignored >> BigInt(SIGNALS[signal] - 1) & 1n) === 1n);
}

/** Empty where Deno does not let it be read: what is to be done will tell of that. */
function readStatus(): string {
  try {
    return Deno.readTextFileSync("/proc/self/status");
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) return "";
    throw error;
  }
}
