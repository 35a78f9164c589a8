/**
 * Running a VMM inside its VM's namespace.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import { describe, InterruptedError, VmmError } from "../errors.ts";
import { spawnInherited } from "../exec.ts";
import { interruptedBy, listenTo, SIGNALS } from "../signals.ts";
import { closeFd, libc, O_RDONLY, openFd } from "../sys/libc.ts";
import { asUser } from "../sys/credentials.ts";
import { openNetns, withNetns } from "../sys/netns.ts";
import { attachVm } from "./verbs/attach.ts";
import { fillIn, formatRecord } from "./output.ts";
import { removeRun } from "./verbs/remove.ts";
import { validateAttach } from "./request.ts";
import { claimRun, type Run } from "./running.ts";
import { type HostPaths, hostPaths } from "./record/paths.ts";
import { lockVm, tidyState } from "./record/locks.ts";
import { readVm, sideOf } from "./record/store.ts";
import type { AttachRequest, HostOptions, VmRecord } from "./types.ts";
import { resolveUser, type RunAs, userOf } from "./users.ts";

/** The exit codes of `docker run`. */
const EXIT = { FAILED: 125, NOT_EXECUTABLE: 126, NOT_FOUND: 127 } as const;

/** Signals that are passed on to the VMM. */
type PassedSignal = keyof typeof SIGNALS;
const PASSED = Object.keys(SIGNALS) as PassedSignal[];
/** Signals that a terminal sends to the VMM too, since it is in the same process group. */
const TERMINAL_SIGNALS: readonly string[] = ["SIGINT", "SIGQUIT"];

/** How to run a VMM. */
export interface VmmOptions extends HostOptions {
  /** A file to write the record to, as one line of JSON. */
  readonly recordFile?: string | undefined;
  /** The `USER[:GROUP]`, by name or number, that the VMM runs as and that may open the TAP. */
  readonly user?: string | undefined;
  /** Whether the VM stays attached when the VMM ends. */
  readonly keep?: boolean | undefined;
  /** Called when the VM is attached, before the VMM starts. */
  readonly onAttached?: (record: VmRecord) => void | Promise<void>;
}

/**
 * Attaches a VM, runs the VMM in its namespace on this process's stdio, and passes signals on. When
 * the VMM ends, it removes the VM, unless the VM was attached before or `keep` is set.
 *
 * @param argv the program and its arguments; `{tap}`, `{mac}`, `{eth1.tap}`, … are replaced in them
 * @returns the VMM's exit code, 128+n when signal n ended it
 * @throws {VmmError} when the VMM did not start
 * @throws {InterruptedError} when a signal came before the VMM started
 */
export async function runVmm(
  request: AttachRequest,
  argv: readonly string[],
  options: VmmOptions = {},
): Promise<number> {
  // Before the VMM runs, a signal cancels the call, and what was begun is undone.
  const early = new AbortController();
  let child: Deno.ChildProcess | undefined;
  using _signals = listenTo(PASSED, (signal) => {
    if (child === undefined) early.abort(interruptedBy(signal));
    else passOn(child, signal);
  });
  const { user, keep = false } = options;
  const runAs = user === undefined ? undefined : resolveUser(user);
  const host = hostPaths({ ...options, signal: early.signal });
  const asked = user === undefined ? request : { tapOwner: userOf(user), ...request };
  const id = crypto.randomUUID();
  try {
    using run = await claim(host, asked);
    const { record } = await attachVm(
      asked,
      { ...options, signal: early.signal },
      keep ? {} : { run: id },
    )
      .catch((error) => {
        throw notStarted(error);
      });
    try {
      await options.onAttached?.(record);
      writeRecordFile(record, options.recordFile);
      await checkpoint(early.signal);
      child = start(record, argv, runAs);
      run.started(child.pid);
      return (await child.status).code;
    } finally {
      // No signal interrupts this: it was meant for the VMM, whose exit code is returned.
      await removeRun(request.name, id, options);
    }
  } finally {
    // Only now, without the file in running/, can the directory go.
    tidyState(host);
  }
}

/** Takes the exclusive right to run the VM. */
async function claim(host: HostPaths, request: AttachRequest): Promise<Run> {
  try {
    validateAttach(request);
    using _vm = await lockVm(host, request.name);
    const stored = readVm(host, request.name);
    const at = stored && sideOf(stored);
    return await claimRun(host, request.name, at?.facts.netns);
  } catch (error) {
    throw notStarted(error);
  }
}

function notStarted(error: unknown): Error {
  if (error instanceof InterruptedError) return error;
  return new VmmError(describe(error), EXIT.FAILED, { cause: error });
}

function writeRecordFile(record: VmRecord, path: string | undefined): void {
  if (path === undefined) return;
  try {
    Deno.writeTextFileSync(path, `${formatRecord(record, "json")}\n`);
  } catch (cause) {
    throw new VmmError(`the record file ${path} cannot be written`, EXIT.FAILED, {
      mend: "name a file in a directory that exists and can be written",
      cause,
    });
  }
}

function start(record: VmRecord, argv: readonly string[], runAs?: RunAs): Deno.ChildProcess {
  const [program = "", ...args] = wordsOf(record, argv);
  using netns = openNetns(record.netns);
  try {
    const spawn = () => spawnInherited(program, args, runAs?.env);
    return withNetns(netns, () => runAs === undefined ? spawn() : asUser(runAs, spawn));
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) {
      throw new VmmError(`the VMM "${program}" is not found`, EXIT.NOT_FOUND, {
        mend: "install it, or give its path",
        cause,
      });
    }
    const { reason, mend } = whyNotExecuted(cause, runAs);
    throw new VmmError(`the VMM "${program}" cannot be executed: ${reason}`, EXIT.NOT_EXECUTABLE, {
      mend,
      cause,
    });
  }
}

function wordsOf(record: VmRecord, argv: readonly string[]): string[] {
  try {
    return fillIn(record, argv);
  } catch (error) {
    throw notStarted(error);
  }
}

/** A program starts in this process's directory, which its user may not be able to enter. */
function whyNotExecuted(cause: unknown, runAs?: RunAs): { reason: string; mend: string } {
  const reason = cause instanceof Error ? cause.message : String(cause);
  if (runAs === undefined) return { reason, mend: "name an executable file" };
  const directory = Deno.cwd();
  try {
    asUser(runAs, () => Deno.statSync(`${directory}/.`));
    return { reason, mend: `name a file that user ${runAs.user} may execute` };
  } catch {
    return {
      reason: `user ${runAs.user} cannot enter the current directory ${directory}`,
      mend: "change to a directory that this user can enter, then run attach-vm again",
    };
  }
}

function passOn(child: Deno.ChildProcess, signal: PassedSignal): void {
  if (TERMINAL_SIGNALS.includes(signal) && inForeground()) return;
  try {
    child.kill(signal);
  } catch {
    // The VMM has ended.
  }
}

/** Whether this is the foreground process group of its terminal: Ctrl-C reaches all of it. */
function inForeground(): boolean {
  let terminal: number;
  try {
    terminal = openFd("/dev/tty", O_RDONLY);
  } catch {
    return false;
  }
  const foreground = libc().tcgetpgrp(terminal) === libc().getpgrp();
  closeFd(terminal);
  return foreground;
}
