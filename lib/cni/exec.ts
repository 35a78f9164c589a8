/**
 * Executing a plugin by the specification: environment, standard input, and what its end means.
 *
 * @see https://www.cni.dev/docs/spec/#section-2-execution-protocol
 * @module
 */

import { describe, TapkitError, type TapkitErrorOptions } from "../errors.ts";
import { type PipedOutcome, runPiped } from "../exec.ts";
import { findPlugin, type PluginHost } from "./plan.ts";
import { CniCode, CniError, type CniFailure } from "./types.ts";

/** The specification's verbs. */
export type Verb = "ADD" | "DEL" | "CHECK" | "GC" | "STATUS" | "VERSION";

/** One call of a plugin. */
export interface PluginCall {
  readonly verb: Verb;
  /** The name of its program: `"bridge"`. */
  readonly type: string;
  /** What it reads on its standard input. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly host: PluginHost;
  /** Empty with GC, STATUS and VERSION, which concern no attachment. */
  readonly containerId?: string;
  /** The namespace's path; empty when it is gone. */
  readonly netns?: string;
  readonly ifName?: string;
  readonly cniArgs?: Readonly<Record<string, string>>;
}

const DEFAULT_TIMEOUT_MS = 120_000;
/** How long DEL may take after a signal. */
const DEL_GRACE_MS = 10_000;
const MAX_STDOUT = 4 * 1024 * 1024;
/** Characters of a plugin's error that are printed; TAPKIT_DEBUG shows the whole. */
const MAX_MESSAGE = 300;
/** After how long a note says which plugin is waited for. */
const PATIENCE_MS = 1000;

/**
 * Runs a plugin and returns what it printed.
 *
 * @throws {CniError} when it fails, does not end in time, dies by a signal, or prints too much
 * @throws the reason of `host.signal`, where that was raised and the plugin killed
 */
export async function callPlugin(call: PluginCall): Promise<string> {
  const { verb, type, host, containerId = "", netns = "", ifName = "", cniArgs = {} } = call;
  const program = findPlugin(type, host.binDirs);
  if (program === undefined) {
    throw new TapkitError(`plugin "${type}" is in none of ${host.binDirs.join(", ")}`, {
      mend: "install it there, or say where it is with --cni-bin-dir",
    });
  }
  const timeoutMs = host.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  let outcome: PipedOutcome;
  const network = call.config.name === undefined ? "" : ` of network "${call.config.name}"`;
  const waiting = setTimeout(
    () => host.note?.(`waiting for the plugin "${type}"${network} (${verb})`),
    PATIENCE_MS,
  );
  try {
    outcome = await runPiped(program, {
      env: {
        CNI_COMMAND: verb,
        CNI_CONTAINERID: containerId,
        CNI_NETNS: netns,
        CNI_IFNAME: ifName,
        CNI_ARGS: Object.entries(cniArgs).map(([key, value]) => `${key}=${value}`).join(";"),
        CNI_PATH: host.binDirs.join(":"),
      },
      stdin: JSON.stringify(call.config),
      timeoutMs,
      maxStdout: MAX_STDOUT,
      signal: host.signal,
      // DEL is given time to finish, though not without end.
      graceMs: verb === "DEL" ? DEL_GRACE_MS : 0,
    });
  } catch (cause) {
    throw failure(call, `${program} cannot be executed: ${describe(cause)}`, {
      mend: "see to it that it is an executable program for this machine",
      cause,
    });
  } finally {
    clearTimeout(waiting);
  }
  if (outcome.killed === "interrupted" && verb !== "DEL") throw host.signal?.reason;
  const [what, mend] = violentEnd(outcome, timeoutMs) ?? [];
  if (what !== undefined) throw failure(call, what, { mend, outcome });
  if (outcome.code !== 0) throw refusal(call, outcome);
  return outcome.stdout;
}

/** Why a plugin did not end by itself, and what can be done; undefined where it did. */
function violentEnd(
  { killed, signal }: PipedOutcome,
  timeoutMs: number,
): [what: string, mend: string] | undefined {
  switch (killed) {
    case "timeout":
      return [
        `did not end within ${timeoutMs / 1000} s, and was killed`,
        "look at what it waits for, or set TAPKIT_PLUGIN_TIMEOUT to more seconds",
      ];
    case "output":
      return [
        `printed more than ${MAX_STDOUT >> 20} MiB, and was killed`,
        "run it by hand to see what it prints",
      ];
    case "interrupted":
      return [
        `did not end within ${DEL_GRACE_MS / 1000} s of a signal, and was killed`,
        "see that what the network runs on this host is up, then run attach-vm NAME --remove",
      ];
  }
  if (signal === undefined) return undefined;
  return [
    `was ended by ${signal}`,
    "see the kernel's log: memory may be short, or the program is broken",
  ];
}

function failure(
  { type, verb, host }: PluginCall,
  what: string,
  options: TapkitErrorOptions & Partial<CniFailure> & { readonly outcome?: PipedOutcome },
): CniError {
  const { mend, outcome, cause, ...kind } = options;
  const said = outcome === undefined ? "" : lastWords(outcome.stderr);
  const whole = `${verb} ${what}${said === "" || what.includes(said) ? "" : ` (it said: ${said})`}`;
  const short = shorten(whole);
  if (short !== whole) host.detail?.(`${type}: ${whole}`);
  return new CniError(short, { plugin: type, code: CniCode.INTERNAL, ...kind }, { mend, cause });
}

/** The beginning of a long text and its end, which mostly is the cause. */
function shorten(text: string): string {
  if (text.length <= MAX_MESSAGE) return text;
  const half = (MAX_MESSAGE - 3) >> 1;
  return `${text.slice(0, half).trimEnd()} … ${text.slice(-half).trimStart()}`;
}

/** The last lines of what a plugin said; of a Go program's panic the reason, not the stack. */
function lastWords(stderr: string): string {
  const [said = ""] = stderr.split(/^(?:\[signal |goroutine \d+ \[)/m, 1);
  return said.trim().split(/\s*\n\s*/).slice(-5).join(" | ");
}

/** A plugin that fails prints `{"code": 7, "msg": "…", "details": "…"}`. */
function refusal(call: PluginCall, outcome: PipedOutcome): CniError {
  let error: { code?: unknown; msg?: unknown; details?: unknown } | null = null;
  try {
    error = JSON.parse(outcome.stdout);
  } catch {
    // Handled below.
  }
  if (typeof error?.msg !== "string") {
    const printed = outcome.stdout.trim().slice(0, 200);
    return failure(
      call,
      `failed with exit code ${outcome.code} and ` +
        (printed === "" ? "no message" : `what is not a CNI error: ${printed}`),
      { refused: true, mend: "run it by hand to see why", outcome },
    );
  }
  const code = typeof error.code === "number" ? error.code : CniCode.INTERNAL;
  const more = typeof error.details === "string" ? error.details : "";
  const details = more === "" || error.msg.includes(more) ? "" : `: ${more}`;
  return failure(call, `failed with code ${code}: ${error.msg}${details}`, {
    code,
    refused: true,
    taken: TAKEN.test(`${error.msg}${details}`),
    mend: MENDS[code] ?? (UNHEARD.test(`${error.msg}${details}`) ? daemonMend(call) : undefined),
    outcome,
  });
}

/** The specification has no code for it. host-local, ipvlan, Weave Net and the kernel say it so. */
const TAKEN = /\b(?:already|duplicate|(?<!not |n't |no longer )exists?)\b/i;

/** What plugins say when their daemon does not answer. */
const UNHEARD = /connection refused|dial (?:tcp|unix)|no such host/i;
const DAEMON_MEND = "see that what the network runs on this host is up";

function daemonMend({ type }: PluginCall): string {
  if (type !== "weave-net") return DAEMON_MEND;
  return "start Weave Net's router: docker start weave, or setup-weave, whose --check says what it lacks";
}

const MENDS: Readonly<Record<number, string>> = {
  [CniCode.INCOMPATIBLE_CNI_VERSION]:
    "write a cniVersion into the configuration that the plugin knows, or install a newer plugin",
  [CniCode.UNSUPPORTED_FIELD]: "take the key that it names out of the configuration",
  [CniCode.UNKNOWN_CONTAINER]: "run attach-vm NAME --remove, then attach it again",
  [CniCode.INVALID_ENVIRONMENT_VARIABLES]:
    "the plugin wants other arguments: see its documentation",
  [CniCode.IO_FAILURE]: "see that disk and network are well, then try again",
  [CniCode.DECODING_FAILURE]: "correct the network's configuration",
  [CniCode.INVALID_NETWORK_CONFIG]: "correct the network's configuration",
  [CniCode.TRY_AGAIN_LATER]: "try again in a while",
  [CniCode.PLUGIN_NOT_AVAILABLE]: DAEMON_MEND,
  [CniCode.PLUGIN_NOT_AVAILABLE_LIMITED_CONNECTIVITY]: DAEMON_MEND,
};
