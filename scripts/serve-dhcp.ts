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
  logTo,
  printJson,
  requireRoot,
  runScript,
  stopSignal,
} from "../lib/cli/main.ts";

/** The command line of serve-dhcp. */
export const SERVE_DHCP = {
  name: "serve-dhcp",
  summary: "answer DHCP on the TAP of every attached VM of this host, from one process",
  usage: ["[--exit-when-idle] [--log-file FILE]", "--list"],
  options: [
    { name: "exit-when-idle", help: "exit when no VM is attached" },
    { name: "log-file", metavar: "FILE", help: "write messages to this file, not to stderr" },
    { name: "list", help: "print which guests were given their address, and when; do not serve" },
    HOST_OPTIONS[0],
  ],
  examples: [
    { does: "serve until Ctrl-C", command: "serve-dhcp" },
    { does: "serve until the last VM is removed", command: "serve-dhcp --exit-when-idle" },
    { does: "list the guests that asked", command: "serve-dhcp --list" },
  ],
} as const satisfies Command;

/** Runs serve-dhcp with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(SERVE_DHCP, args, async ({ flags }) => {
    const options = hostOptions(SERVE_DHCP.name, flags);
    const { listLeases, serveDhcp } = await import("../mod.ts");
    if (flags.list) {
      listLeases(options).forEach(printJson);
      return EXIT.done;
    }
    requireRoot(["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]);
    if (flags["log-file"] !== undefined) await logTo(flags["log-file"]);
    // Otherwise the directory of the process that started it could not be unmounted.
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
