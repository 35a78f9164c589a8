/**
 * bridge-legacy: put a virtual machine on a bridge network of Docker's. See `bridge-legacy --help`.
 *
 * @module
 */

import { BRIDGE_LEGACY } from "../lib/cli/bridge-legacy-table.ts";
import type { Setting } from "../lib/cli/cli.ts";
import { start } from "../lib/cli/start.ts";

/** Runs bridge-legacy with `args`; returns its exit code. */
export async function main(args: readonly string[], setting?: Setting): Promise<number> {
  return await (await import("./attach-vm.ts")).main(args, setting, BRIDGE_LEGACY);
}

if (import.meta.main) Deno.exit(await start(["bridge-legacy", ...Deno.args], main));
