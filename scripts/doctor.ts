/**
 * doctor: examine this host, and say what keeps VMs from working. See `doctor --help`.
 *
 * @module
 */

import { namedSocket } from "../lib/caller.ts";
import { formatCheck, formatSummary } from "../lib/cli/check-table.ts";
import { EXIT, type Setting, withoutUndefined } from "../lib/cli/cli.ts";
import { DOCTOR } from "../lib/cli/doctor-table.ts";
import { runScript, serveCommand } from "../lib/cli/main.ts";
import { screen } from "../lib/cli/style.ts";
import type { HostCheck } from "../mod.ts";

/** Runs doctor with `args`; returns its exit code. */
export function main(args: readonly string[], setting?: Setting): Promise<number> {
  return runScript(DOCTOR, args, async ({ flags }, cli) => {
    const { examineHost } = await cli.library();
    const socket = flags.socket ?? namedSocket();
    const { isTerminal, columns, paint } = screen();
    const { fix, output = isTerminal ? "table" : "json" } = flags;
    const checks: HostCheck[] = [];
    const options = {
      ...cli.hostOptions(flags, await cli.heed()),
      ...withoutUndefined({ socket }),
      ...{ fix, serve: serveCommand(cli, flags) },
    };
    using _progress = cli.progress(() => `examining: ${checks.length} checks done`);
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
