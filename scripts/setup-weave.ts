/**
 * setup-weave: connect this host's VMs to those of other hosts by Weave Net. See
 * `setup-weave --help`.
 *
 * @module
 */

import {
  EXIT,
  hostOptions,
  printJson,
  printText,
  requireRoot,
  runScript,
} from "../lib/cli/main.ts";
import { readWeaveCommand, SETUP_WEAVE } from "../lib/cli/weave-command.ts";

/** Runs setup-weave with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(SETUP_WEAVE, args, async (parsed, heed) => {
    const { verb, request } = readWeaveCommand(parsed);
    const tapkit = await import("../mod.ts");
    if (verb !== "print") requireRoot();
    const signal = verb === "set up" || verb === "remove" ? await heed() : undefined;
    const options = hostOptions(SETUP_WEAVE.name, parsed.flags, signal);
    switch (verb) {
      case "print":
        printText(await tapkit.weaveCommand(request, options));
        return EXIT.done;
      case "check": {
        const state = await tapkit.checkWeave(request, options);
        printJson(state);
        return state.problems?.length ? EXIT.differs : EXIT.done;
      }
      case "remove": {
        const { purge, "restore-default": restoreDefault } = parsed.flags;
        printJson({ removed: await tapkit.removeWeave({ ...options, purge, restoreDefault }) });
        return EXIT.done;
      }
      case "set up":
        printJson(await tapkit.setupWeave(request, options));
        return EXIT.done;
    }
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
