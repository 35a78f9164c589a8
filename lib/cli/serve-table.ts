/**
 * serve's command line.
 *
 * @module
 */

import type { Command } from "./args.ts";
import { HOST_OPTIONS } from "./cli.ts";

/** The command line of serve. */
export const SERVE = {
  name: "serve",
  summary: "answer DHCP for every attached VM of this host, heal, and take requests on a socket",
  usage: ["[--exit-when-idle] [--socket PATH] [--heal HOW] [--log-file FILE]", "--list"],
  options: [
    { name: "exit-when-idle", help: "exit when no VM is attached and no request is under way" },
    {
      name: "socket",
      metavar: "PATH",
      help: "where to take requests; none answers DHCP alone",
      default: "$TAPKIT_SOCKET, then /run/tapkit/tapkit.sock",
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
    { name: "list", help: "print which guests were given their address, and when; do not serve" },
    ...HOST_OPTIONS,
  ],
  examples: [
    { does: "serve until Ctrl-C", command: "serve" },
    { does: "serve until the last VM is removed", command: "serve --exit-when-idle" },
    {
      does: "attach a VM by a request",
      command:
        'curl --unix-socket /run/tapkit/tapkit.sock localhost/v1/vms --json \'{"name":"web"}\'',
    },
  ],
} as const satisfies Command;
