/**
 * The error classes of all layers. Callers test fields and classes, never text.
 *
 * A message says which object and why; `mend` says what to do. The scripts print both on one line:
 * `attach-vm: cannot attach "web": MESSAGE: MEND`.
 *
 * @module
 */

/** What an error may have in addition to its message. */
export interface TapkitErrorOptions {
  /** What the user can do, in the imperative, without a full stop. */
  readonly mend?: string | undefined;
  /** The error that led to this one. */
  readonly cause?: unknown;
}

/** Something failed; what was begun is undone. Scripts exit 1. */
export class TapkitError extends Error {
  /** The class's name. */
  override readonly name: string = "TapkitError";
  /** What the user can do, in the imperative, without a full stop. */
  readonly mend?: string;

  /** An error that says which object and why. */
  constructor(message: string, options: TapkitErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    if (options.mend !== undefined) this.mend = options.mend;
  }
}

/** Wrong usage or input: nothing was touched. Scripts exit 2. */
export class InputError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "InputError";
}

/** What is attached or runs stands in the way. Nothing was touched. */
export class ConflictError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "ConflictError";
}

/** A signal interrupted the call; what was begun is undone. Scripts exit 128+n. */
export class InterruptedError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "InterruptedError";
  /** The signal's number. */
  readonly signal: number;

  /** An error whose `signal` is the signal's number. */
  constructor(message: string, signal: number, options: TapkitErrorOptions = {}) {
    super(message, options);
    this.signal = signal;
  }

  /** 128 plus the signal's number. */
  get exitCode(): number {
    return 128 + this.signal;
  }

  /** This error, after the undo. */
  undone(): InterruptedError {
    const mend = "what was begun is undone";
    return new InterruptedError(this.message, this.signal, { mend, cause: this });
  }
}

/** A thrown value as an error. */
export function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown));
}

/** The VMM did not start; what was attached for it is removed. */
export class VmmError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "VmmError";
  /** 125, 126 (cannot be executed) or 127 (not found), as `docker run` has them. */
  readonly exitCode: number;

  /** An error whose `exitCode` is that of the script. */
  constructor(message: string, exitCode: number, options: TapkitErrorOptions = {}) {
    super(message, options);
    this.exitCode = exitCode;
  }
}

/** A docker command failed. */
export class DockerError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "DockerError";
  /** What it wrote to its standard error. */
  readonly stderr: string;

  /** An error with what docker wrote. */
  constructor(message: string, stderr: string, mend?: string) {
    super(message, { mend });
    this.stderr = stderr;
  }
}

/** Weave Net's router did not answer, or refused. */
export class WeaveError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "WeaveError";
  /** The HTTP status of a refusal; absent when it did not answer. */
  readonly status?: number;

  /** An error, with the HTTP status of a refusal. */
  constructor(message: string, options: TapkitErrorOptions & { readonly status?: number } = {}) {
    super(message, options);
    if (options.status !== undefined) this.status = options.status;
  }
}

/** The fields of a failed system call. */
export interface SyscallFailure {
  /** The call, by its C name: `"setns"`. */
  readonly op: string;
  /** Its object: `"/run/netns/tapkit-web"`. */
  readonly object: string;
  /** The kernel's positive error number. */
  readonly errno: number;
  /** Its symbolic name: `"EEXIST"`. */
  readonly code: string;
}

/** A system call failed. */
export class SyscallError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "SyscallError";
  /** The call, by its C name: `"setns"`. */
  readonly op: string;
  /** Its object: `"/run/netns/tapkit-web"`. */
  readonly object: string;
  /** The kernel's positive error number. */
  readonly errno: number;
  /** Its symbolic name: `"EEXIST"`. */
  readonly code: string;

  /** An error whose message, unless `options` has one, is made of the failure's fields. */
  constructor(failure: SyscallFailure, options: TapkitErrorOptions & { message?: string } = {}) {
    super(options.message ?? `${failure.op} ${failure.object}: ${failure.code}`, options);
    this.op = failure.op;
    this.object = failure.object;
    this.errno = failure.errno;
    this.code = failure.code;
  }
}

/** A step failed, and so did the undo of some steps before it. */
export class UndoError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "UndoError";
  /** The first failure, then the failures of its undo. */
  readonly errors: readonly unknown[];

  /** An error of the first failure and those of its undo. It has the first one's mend. */
  constructor(error: unknown, failures: readonly Error[]) {
    const reason = asError(error).message;
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

/** The last part of a message such as `A: because of B: because of C`. */
function causeOf(message: string): string {
  return message.slice(message.lastIndexOf(": ") + 1).trim();
}

/** libnftables refused commands. None of them took effect. */
export class NftablesError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "NftablesError";
  /** The error's symbolic name where the text tells it: `"EEXIST"`. */
  readonly code?: string;
  /** All that libnftables printed, with the place in the commands. */
  readonly report: string;

  /** An error with what libnftables printed. */
  constructor(
    message: string,
    { code, report, mend }: {
      code?: string | undefined;
      report: string;
      mend?: string | undefined;
    },
  ) {
    super(message, { mend });
    if (code !== undefined) this.code = code;
    this.report = report;
  }
}

/** iptables-restore refused a change. None of it took effect in the table that it was for. */
export class XtablesError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "XtablesError";
}

/** Limits that this kernel has no means for. */
export class LimitsError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "LimitsError";
}

/** Calls `fn`. An {@linkcode InputError} of it names `where` first: `"vms.jsonl line 3"`. */
export function locating<T>(where: string, fn: () => T): T {
  try {
    return fn();
  } catch (cause) {
    if (!(cause instanceof InputError)) throw cause;
    throw new InputError(`${where}: ${cause.message}`, { mend: cause.mend, cause });
  }
}

/** The message of any thrown value on one line, followed by its `mend`, if it has one. */
export function describe(error: unknown): string {
  const { message } = asError(error);
  const mend = error instanceof TapkitError ? error.mend : undefined;
  // Deno writes the reason first, then what failed.
  const plain = message.replace(
    /(^|: )([^:]+) \(os error \d+\)(?:[:,] (.+))?$/s,
    (_, before, why, what) => what === undefined ? before + why : `${before}${what}: ${why}`,
  );
  const line = mend === undefined ? plain : `${plain}: ${mend}`;
  return line.replaceAll(/\s*\n\s*/g, " ").trim();
}
