/**
 * serve: the host's resident, which answers DHCP and takes requests. See `serve --help`.
 *
 * @module
 */

import type { Command } from "../lib/cli/args.ts";
import {
  EXIT,
  HOST_OPTIONS,
  hostOptions,
  logTo,
  requireRoot,
  runScript,
  stopSignal,
} from "../lib/cli/main.ts";

export const SERVE = {
  name: "serve",
  summary: "answer DHCP for every attached VM of this host, and take requests on a socket",
  usage: ["[--exit-when-idle] [--socket PATH] [--heal HOW] [--log-file FILE]"],
  options: [
    {
      name: "exit-when-idle",
      help: "exit when no VM is attached and no request is under way",
    },
    {
      name: "socket",
      metavar: "PATH",
      help: "where to take requests; none answers DHCP alone",
      default: "/run/tapkit/tapkit.sock",
    },
    {
      name: "heal",
      metavar: "HOW",
      choices: ["auto", "report", "recreate", "off"],
      help:
        "what to do about what others take away of VMs: auto repairs it while the guest runs, " +
        "recreate also makes TAPs anew, report only tells",
      default: "auto",
    },
    { name: "log-file", metavar: "FILE", help: "write messages to this file, not to stderr" },
    ...HOST_OPTIONS,
  ],
  examples: [
    { does: "serve until Ctrl-C", command: "serve" },
    {
      does: "attach a VM by a request",
      command:
        'curl --unix-socket /run/tapkit/tapkit.sock localhost/v1/vms --json \'{"name":"web"}\'',
    },
  ],
} as const satisfies Command;

/** Runs serve with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(SERVE, args, async ({ flags }) => {
    const { serve } = await import("../mod.ts");
    requireRoot(["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]);
    if (flags["log-file"] !== undefined) await logTo(flags["log-file"]);
    const here = Deno.cwd().replace(/\/$/, "");
    const absolute = (path: string) => path.startsWith("/") ? path : `${here}/${path}`;
    const { socket, heal = "auto", "exit-when-idle": exitWhenIdle } = flags;
    const { stateDir, confDir, binDirs, ...options } = hostOptions(SERVE.name, flags);
    // Otherwise the directory of the process that started it could not be unmounted.
    Deno.chdir("/");
    await serve({
      ...options,
      ...stateDir && { stateDir: absolute(stateDir) },
      ...confDir && { confDir: absolute(confDir) },
      ...binDirs && { binDirs: binDirs.map(absolute) },
      socket: socket && socket !== "none" ? absolute(socket) : socket,
      ...{ exitWhenIdle, heal, signal: stopSignal() },
    });
    return EXIT.done;
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
