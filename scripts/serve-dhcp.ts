/**
 * serve-dhcp: answer DHCP for every attached VM of the host. See `serve-dhcp --help`.
 *
 * @module
 */

import type { Command } from "../lib/cli/args.ts";
import {
  EXIT,
  HOST_OPTIONS,
  hostOptions,
  requireRoot,
  runScript,
  stopSignal,
} from "../lib/cli/main.ts";

const SERVE_DHCP = {
  name: "serve-dhcp",
  summary: "answer DHCP on the TAP of every attached VM of this host, from one process",
  usage: ["[--exit-when-idle]"],
  options: [
    { name: "exit-when-idle", help: "end when no VM is attached" },
    HOST_OPTIONS[0],
  ],
  examples: [
    { does: "serve until Ctrl-C", command: "serve-dhcp" },
    { does: "as attach-vm starts it", command: "serve-dhcp --exit-when-idle" },
  ],
} as const satisfies Command;

/** Runs serve-dhcp with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(SERVE_DHCP, args, async ({ flags }) => {
    requireRoot(["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]);
    const { serveDhcp } = await import("../mod.ts");
    const options = hostOptions(SERVE_DHCP.name, flags);
    // The directory of whoever started it could not be unmounted.
    Deno.chdir("/");
    await serveDhcp({
      ...options,
      exitWhenIdle: flags["exit-when-idle"],
      signal: stopSignal(),
    });
    return EXIT.done;
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
