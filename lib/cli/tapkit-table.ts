/**
 * tapkit's command line: the scripts by their names, and what it does beside them.
 *
 * @module
 */

import type { Command, Row } from "./args.ts";

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

/** What tapkit does beside the scripts. */
const WORDS = {
  "ls": "list the attached VMs",
  "inspect": "print all that is known of VMs",
  "rm": "remove VMs from their networks",
  "events": "print what happens to VMs, until Ctrl-C",
  "install": "install tapkit, compare and remove what was installed",
  "help": "print the help of a command",
} as const;

/** The name of a script. */
export type ScriptName = keyof typeof SCRIPTS;

/** The name of what tapkit does beside the scripts. */
export type WordName = keyof typeof WORDS;

/** The names of the scripts. */
export const SCRIPT_NAMES = Object.keys(SCRIPTS) as readonly ScriptName[];

/** All that follows `tapkit`. */
export const COMMAND_NAMES: readonly (ScriptName | WordName)[] = [
  ...SCRIPT_NAMES,
  ...Object.keys(WORDS) as readonly WordName[],
];

const ALL = { ...SCRIPTS, ...WORDS };
const rows = (...names: readonly (keyof typeof ALL)[]) =>
  names.map((name): Row => [name, ALL[name]]);

/** The command line of tapkit. */
export const TAPKIT = {
  name: "tapkit",
  summary: "connect virtual machines to Linux networks",
  usage: ["NAME ARG…", "NAME --help"],
  words: { metavar: "NAME", help: "a command", complete: COMMAND_NAMES },
  commands: [
    { title: "every day", rows: rows("attach-vm", "map-port", "ls", "inspect", "rm", "events") },
    { title: "the host", rows: rows("doctor", "serve", "install-default-cni", "setup-weave") },
    { title: "others", rows: rows("install", "help", "bridge-legacy", "serve-dhcp") },
  ],
  options: [],
  examples: [
    { does: "attach a VM to the default network", command: "tapkit attach-vm web" },
    { does: "see how it is", command: "tapkit ls" },
  ],
} as const satisfies Command;
