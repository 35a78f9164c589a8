/**
 * What every script does around its one library call: parse the command line, answer `--help` and
 * `--version`, and turn errors into messages and exit codes.
 *
 * @module
 */

import { type Capability, missingCapabilities } from "../caller.ts";
import { InterruptedError, TapkitError } from "../errors.ts";
import { type Command, helpText, parseCommand, type Parsed } from "./args.ts";
import { screen } from "./style.ts";
import { Cli, EXIT, NotHereError, type Setting } from "./cli.ts";

/**
 * Runs a command: parses `args` by its table, answers `--help` and `--version`, calls `run`, and
 * prints an error that it throws. Returns the exit code: 128+n if `run` was interrupted by signal
 * n.
 *
 * @param setting where it runs: in this process alone, unless given
 * @throws {NotHereError} when it may not run there; it has done nothing
 */
export async function runScript<const C extends Command>(
  command: C,
  args: readonly string[],
  run: (parsed: Parsed<C>, cli: Cli) => Promise<number> | number,
  setting: Setting = {},
): Promise<number> {
  const cli = new Cli(command.name, setting);
  const code = await runParsed(command, args, run, cli);
  const reason = (await cli.heeded)?.reason;
  return reason instanceof InterruptedError ? reason.exitCode : code;
}

async function runParsed<const C extends Command>(
  command: C,
  args: readonly string[],
  run: (parsed: Parsed<C>, cli: Cli) => Promise<number> | number,
  cli: Cli,
): Promise<number> {
  try {
    const parsed = parseCommand(command, args);
    if (parsed === "help") {
      const { paint } = screen();
      cli.painted(helpText(command, (text) => paint(text, "bold")));
      return EXIT.done;
    }
    if (parsed === "version") {
      const { default: { version } } = await import("../../deno.json", { with: { type: "json" } });
      cli.text(`${command.name} ${version}`);
      return EXIT.done;
    }
    return await run(parsed, cli);
  } catch (error) {
    if (error instanceof NotHereError) throw error;
    return cli.error(error);
  }
}

/** A function that calls `act` the first time only. */
export function once<T>(act: () => Promise<T>): () => Promise<T> {
  let result: Promise<T> | undefined;
  return () => result ??= act();
}

/** An AbortSignal that SIGINT and SIGTERM abort. */
export function stopSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(name, () => controller.abort());
  }
  return controller.signal;
}

/** With this first word, tapkit runs serve, by whatever name it is called. */
export const BECOME_SERVE = "--serve";

/**
 * The command that starts the resident. It executes this program again, which may be compiled,
 * bundled, or run from source.
 */
export function serveCommand(
  cli: Cli,
  flags: { readonly "state-dir"?: string | undefined },
): string[] {
  const stateDir = flags["state-dir"] ?? Deno.env.get("TAPKIT_STATE_DIR");
  const args = [
    "--exit-when-idle",
    ...stateDir === undefined || stateDir === "" ? [] : [`--state-dir=${cli.path(stateDir)}`],
  ];
  if (Deno.build.standalone) return [Deno.execPath(), BECOME_SERVE, ...args];
  const ours = /\/tapkit\.[a-z]+$/.test(Deno.mainModule);
  const program = ours
    ? [Deno.mainModule, BECOME_SERVE]
    : [new URL("../../scripts/serve.ts", import.meta.url).href];
  return [Deno.execPath(), "run", "-A", ...program, ...args];
}

/** Throws if this process lacks capabilities to change the host's networks, and names them. */
export function requireRoot(
  needed: readonly Capability[] = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"],
  status?: string,
): void {
  const missing = missingCapabilities(needed, status);
  if (missing.length > 0) {
    throw new TapkitError(`this process lacks ${missing.join(" and ")}`, {
      mend: "run it as root",
    });
  }
}
