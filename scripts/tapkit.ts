/**
 * tapkit: every script under one name, `tapkit NAME ARG…`. See `tapkit --help`.
 *
 * @module
 */

import { argumentsAsCalled } from "../lib/cli/called-as.ts";
import type { Setting } from "../lib/cli/cli.ts";
import { start } from "../lib/cli/start.ts";

if (import.meta.main) {
  // Where the resident answers, the scripts are not loaded.
  const all = async (args: readonly string[], setting?: Setting) =>
    await (await import("./all.ts")).main(args, setting);
  Deno.exit(await start(argumentsAsCalled(), all, true));
}
