/**
 * Signals that ask this process to end.
 *
 * @module
 */

import { InterruptedError } from "./errors.ts";

/** Numbers of signals that other processes send. They are the same on x86_64 and aarch64. */
export const SIGNALS = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGUSR1: 10,
  SIGUSR2: 12,
  SIGTERM: 15,
} as const;

/** Signals that ask a process to end. */
const ENDING = ["SIGHUP", "SIGINT", "SIGTERM"] as const;

/**
 * Calls `act` for each of these signals, instead of the default action, until the result is
 * disposed of.
 */
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
 * From now on, SIGHUP, SIGINT and SIGTERM abort the returned signal, with an {@linkcode
 * InterruptedError} as its reason, instead of ending this process. Signals that nohup, or the shell
 * of a background job, made this process ignore are still ignored.
 */
export function heedSignals(): AbortSignal {
  const controller = new AbortController();
  const ignored = ignoredSignals();
  // Once Deno listens to any signal, it ends at SIGHUP, even if that is ignored.
  listenTo(ENDING, (signal) => {
    if (!ignored.includes(signal)) controller.abort(interruptedBy(signal));
  });
  return controller.signal;
}

/** The error for a signal. */
export function interruptedBy(signal: keyof typeof SIGNALS): InterruptedError {
  return new InterruptedError(`interrupted by ${signal}`, SIGNALS[signal]);
}

function ignoredSignals(): readonly (keyof typeof SIGNALS)[] {
  const status = readStatus();
  const ignored = BigInt(`0x${/^SigIgn:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`);
  return ENDING.filter((signal) => (ignored >> BigInt(SIGNALS[signal] - 1) & 1n) === 1n);
}

/** Empty if Deno does not permit reading: the call itself will report that. */
function readStatus(): string {
  try {
    return Deno.readTextFileSync("/proc/self/status");
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) return "";
    throw error;
  }
}
