/**
 * Running a VMM inside its VM's namespace, for as long as it lives.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import { describe, InterruptedError, VmmError } from "../errors.ts";
import { spawnInherited } from "../exec.ts";
import { interruptedBy, listenTo, SIGNALS } from "../signals.ts";
import { closeFd, libc, O_RDONLY, openFd } from "../sys/libc.ts";
import { openNetns, withNetns } from "../sys/netns.ts";
import { attachVm } from "./attach.ts";
import { formatRecord, placeholders } from "./output.ts";
import { removeVm } from "./remove.ts";
import type { AttachRequest, HostOptions, VmRecord } from "./types.ts";

/** Exit codes as `docker run` has them. */
const EXIT = { FAILED: 125, NOT_EXECUTABLE: 126, NOT_FOUND: 127 } as const;

/** Signals passed on to the VMM. */
type PassedSignal = keyof typeof SIGNALS;
const PASSED = Object.keys(SIGNALS) as PassedSignal[];
/** Those that a terminal sends to the VMM itself, as it is in the same process group. */
const TERMINAL_SIGNALS: readonly string[] = ["SIGINT", "SIGQUIT"];

/** How to run a VMM. */
export interface VmmOptions extends HostOptions {
  /** Where the record goes, as one line of JSON. */
  readonly recordFile?: string | undefined;
  /** Called when the VM is attached, before the VMM starts. */
  readonly onAttached?: (record: VmRecord) => void;
}

/**
 * Attaches a VM, runs the VMM in its namespace on this process's stdio, passes signals on, and
 * removes the attachment when the VMM ends.
 *
 * @param argv the program and its arguments, in which `{tap}`, `{mac}`, `{ip}`, … are replaced
 * @returns the VMM's exit code, 128+n when signal n ended it
 * @throws {VmmError} when it did not start
 * @throws {InterruptedError} when a signal came before it did
 */
export async function runVmm(
  request: AttachRequest,
  argv: readonly string[],
  options: VmmOptions = {},
): Promise<number> {
  // A signal that comes before the VMM runs keeps it from being started; nothing is left half made.
  const early = new AbortController();
  let child: Deno.ChildProcess | undefined;
  using _signals = listenTo(PASSED, (signal) => {
    if (child === undefined) early.abort(interruptedBy(signal));
    else passOn(child, signal);
  });
  const record = await attachVm(request, { ...options, signal: early.signal }).catch((error) => {
    if (error instanceof InterruptedError) throw error;
    throw new VmmError(describe(error), EXIT.FAILED, { cause: error });
  });
  try {
    options.onAttached?.(record);
    writeRecordFile(record, options.recordFile);
    await checkpoint(early.signal);
    child = start(record, argv);
    return (await child.status).code;
  } finally {
    // The signals are the VMM's, and so is the exit code.
    await removeVm(request.name, options);
  }
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

function start(record: VmRecord, argv: readonly string[]): Deno.ChildProcess {
  const values = placeholders(record);
  const [program = "", ...args] = argv.map((argument) =>
    argument.replaceAll(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole)
  );
  using netns = openNetns(record.netns);
  try {
    return withNetns(netns, () => spawnInherited(program, args));
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) {
      throw new VmmError(`the VMM "${program}" is not found`, EXIT.NOT_FOUND, {
        mend: "install it, or give its path",
        cause,
      });
    }
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new VmmError(`the VMM "${program}" cannot be executed: ${reason}`, EXIT.NOT_EXECUTABLE, {
      mend: "name an executable file",
      cause,
    });
  }
}

function passOn(child: Deno.ChildProcess, signal: PassedSignal): void {
  if (TERMINAL_SIGNALS.includes(signal) && inForeground()) return;
  try {
    child.kill(signal);
  } catch {
    // It has ended meanwhile.
  }
}

/** Whether this process group is its terminal's foreground, which a Ctrl-C reaches as a whole. */
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
