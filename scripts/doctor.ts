/**
 * doctor: examine this host, and say what keeps VMs from working. See `doctor --help`.
 *
 * @module
 */

import type { Command } from "../lib/cli/args.ts";
import { formatCheck, formatSummary } from "../lib/cli/check-table.ts";
import { EXIT, HOST_OPTIONS, type Setting, withoutUndefined } from "../lib/cli/cli.ts";
import { runScript, serveCommand } from "../lib/cli/main.ts";
import { screen } from "../lib/cli/style.ts";
import type { HostCheck } from "../mod.ts";

export const DOCTOR = {
  name: "doctor",
  summary: "examine this host, and say what keeps VMs from working, and what to do about it",
  usage: ["[--fix] [--output FORMAT]"],
  options: [
    {
      name: "fix",
      help:
        "also repair what can be repaired without harm to a guest that runs, and say what was " +
        "repaired",
    },
    {
      name: "output",
      metavar: "FORMAT",
      choices: ["table", "json"],
      help: "a table for people, or one line of JSON",
      default: "table on a terminal, otherwise json",
    },
    {
      name: "socket",
      metavar: "PATH",
      help: "where the resident takes requests; none does not ask it",
      default: "$TAPKIT_SOCKET, then /run/tapkit/tapkit.sock",
    },
    ...HOST_OPTIONS,
  ],
  examples: [
    { does: "examine the host", command: "doctor" },
    { does: "repair what is safe to repair", command: "doctor --fix" },
    { does: "list what is wrong", command: "doctor | jq '.checks[] | select(.ok | not)'" },
  ],
  exitCodes: [["3", "a check failed"]],
} as const satisfies Command;

/** Runs doctor with `args`; returns its exit code. */
export function main(args: readonly string[], setting?: Setting): Promise<number> {
  return runScript(DOCTOR, args, async ({ flags }, cli) => {
    const { examineHost } = await cli.library();
    const socket = flags.socket ?? (Deno.env.get("TAPKIT_SOCKET") || undefined);
    const { isTerminal, columns, paint } = screen();
    const { fix, output = isTerminal ? "table" : "json" } = flags;
    const checks: HostCheck[] = [];
    const options = {
      ...cli.hostOptions(flags, await cli.heed()),
      ...withoutUndefined({ socket }),
      ...{ fix, serve: serveCommand(cli, flags) },
    };
    for await (const check of examineHost(options)) {
      checks.push(check);
      if (output === "table") cli.painted(formatCheck(check, columns, paint));
    }
    if (output === "table") cli.text(formatSummary(checks));
    else cli.json({ checks });
    return checks.every(({ ok }) => ok) ? EXIT.done : EXIT.differs;
  }, setting);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
