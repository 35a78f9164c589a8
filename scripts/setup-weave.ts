/**
 * setup-weave: connect this host's VMs to those of other hosts by Weave Net. See
 * `setup-weave --help`.
 *
 * @module
 */

import { EXIT } from "../lib/cli/cli.ts";
import { requireRoot, runScript } from "../lib/cli/main.ts";
import { readWeaveCommand, SETUP_WEAVE } from "../lib/cli/weave-command.ts";

/** Runs setup-weave with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(SETUP_WEAVE, args, async (parsed, cli) => {
    const { verb, request } = readWeaveCommand(parsed);
    const tapkit = await import("../mod.ts");
    if (verb !== "print") requireRoot();
    const signal = verb === "set up" || verb === "remove" ? await cli.heed() : undefined;
    const options = cli.hostOptions(parsed.flags, signal);
    using _progress = cli.progress(() => verb);
    switch (verb) {
      case "print":
        cli.text(await tapkit.weaveCommand(request, options));
        return EXIT.done;
      case "check": {
        const state = await tapkit.checkWeave(request, options);
        cli.json(state);
        return state.problems?.length ? EXIT.differs : EXIT.done;
      }
      case "remove": {
        const { purge, "restore-default": restoreDefault } = parsed.flags;
        cli.json({ removed: await tapkit.removeWeave({ ...options, purge, restoreDefault }) });
        return EXIT.done;
      }
      case "set up":
        cli.json(await tapkit.setupWeave(request, options));
        return EXIT.done;
    }
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
