/**
 * tapkit's command line: the scripts by their names.
 *
 * @module
 */

import type { Command } from "./args.ts";

/** What each script does. */
const SCRIPTS = {
  "install-default-cni": "write the CNI configuration of the default network",
  "attach-vm": "attach virtual machines to CNI networks",
  "bridge-legacy": "attach virtual machines to a network of Docker's (deprecated)",
  "map-port": "map ports of the host to a running VM",
  "setup-weave": "connect this host's VMs to those of other hosts by Weave Net",
  "doctor": "examine this host, and say what keeps VMs from working",
  "serve": "answer DHCP for every attached VM, repair, and take requests on a socket",
  "serve-dhcp": "the older name of serve",
} as const;

/** The name of a script. */
export type ScriptName = keyof typeof SCRIPTS;

/** The names of the scripts. */
export const SCRIPT_NAMES = Object.keys(SCRIPTS) as readonly ScriptName[];

/** The command line of tapkit. */
export const TAPKIT = {
  name: "tapkit",
  summary: "connect virtual machines to Linux networks",
  usage: ["NAME ARG…", "NAME --help"],
  words: {
    metavar: "NAME",
    help: Object.entries(SCRIPTS).map(([name, does]) => `${name}: ${does}`).join("; "),
    complete: SCRIPT_NAMES,
  },
  options: [],
  examples: [{ does: "attach a VM to the default network", command: "tapkit attach-vm web" }],
} as const satisfies Command;
