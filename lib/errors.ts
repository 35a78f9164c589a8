/**
 * The error classes every layer builds on. Callers test fields and classes, never text.
 *
 * A message says which object and why; `mend` says what to do about it. The scripts print
 * both on one line: `attach-vm: cannot attach "web": MESSAGE: MEND`.
 *
 * @module
 */

/** What an error may carry beside its message. */
export interface TapkitErrorOptions {
  /** What the person can do about it, in the imperative, without a final full stop. */
  readonly mend?: string | undefined;
  /** The error that led to this one. */
  readonly cause?: unknown;
}

/** Something failed, and what was begun has been undone. Scripts exit 1. */
export class TapkitError extends Error {
  override readonly name: string = "TapkitError";
  readonly mend?: string;

  constructor(message: string, options: TapkitErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    if (options.mend !== undefined) this.mend = options.mend;
  }
}

/** Wrong usage or input: nothing was touched. Scripts exit 2. */
export class InputError extends TapkitError {
  override readonly name: string = "InputError";
}

/** A signal ended what was being done; what was begun has been undone. Scripts exit 128+n. */
export class InterruptedError extends TapkitError {
  override readonly name: string = "InterruptedError";
  /** The signal's number. */
  readonly signal: number;

  constructor(message: string, signal: number, options: TapkitErrorOptions = {}) {
    super(message, options);
    this.signal = signal;
  }

  /** 128 and the signal's number. */
  get exitCode(): number {
    return 128 + this.signal;
  }

  /** This, after what was begun has been undone. */
  undone(): InterruptedError {
    const mend = "what was begun is undone";
    return new InterruptedError(this.message, this.signal, { mend, cause: this });
  }
}

/** What was thrown, as an error. */
export function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown));
}

/** The VMM did not start; its attachment is removed again. */
export class VmmError extends TapkitError {
  override readonly name: string = "VmmError";
  /** 125, 126 (cannot be executed) or 127 (not found), as `docker run` has them. */
  readonly exitCode: number;

  constructor(message: string, exitCode: number, options: TapkitErrorOptions = {}) {
    super(message, options);
    this.exitCode = exitCode;
  }
}

/** What a failed system call is described by. */
export interface SyscallFailure {
  /** The call, by its C name: `"setns"`. */
  readonly op: string;
  /** What it was applied to: `"/run/netns/tapkit-web"`. */
  readonly object: string;
  /** The kernel's positive error number. */
  readonly errno: number;
  /** Its symbolic name: `"EEXIST"`. */
  readonly code: string;
}

/** A system call failed. */
export class SyscallError extends TapkitError {
  override readonly name: string = "SyscallError";
  readonly op: string;
  readonly object: string;
  readonly errno: number;
  readonly code: string;

  constructor(failure: SyscallFailure, options: TapkitErrorOptions & { message?: string } = {}) {
    super(options.message ?? `${failure.op} ${failure.object}: ${failure.code}`, options);
    this.op = failure.op;
    this.object = failure.object;
    this.errno = failure.errno;
    this.code = failure.code;
  }
}

/** The message of any thrown value on one line, followed by its mend where it has one. */
export function describe(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  const mend = error instanceof TapkitError ? error.mend : undefined;
  // Deno has what failed behind why.
  const plain = message.replace(
    /(^|: )([^:]+) \(os error \d+\)(?:[:,] (.+))?$/s,
    (_, before, why, what) => what === undefined ? before + why : `${before}${what}: ${why}`,
  );
  const line = mend === undefined ? plain : `${plain}: ${mend}`;
  return line.replaceAll(/\s*\n\s*/g, " ").trim();
}
