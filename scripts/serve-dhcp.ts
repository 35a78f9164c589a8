/**
 * serve-dhcp: the older name of serve.
 *
 * @module
 */

import type { Setting } from "../lib/cli/cli.ts";

/** Runs serve with `args`; returns its exit code. */
export async function main(args: readonly string[], setting?: Setting): Promise<number> {
  return await (await import("./serve.ts")).main(args, setting, "serve-dhcp");
}

if (import.meta.main) Deno.exit(await main(Deno.args));
