/**
 * The command lines of what `tapkit` does beside the scripts, for people at a terminal.
 *
 * @module
 */

import type { Command, Option } from "./args.ts";
import { HOST_OPTIONS } from "./cli.ts";

const [STATE_DIR] = HOST_OPTIONS;

const OUTPUT = {
  name: "output",
  alias: ["-o", "--format"],
  metavar: "FORMAT",
  choices: ["table", "json"],
  help: "a table for people, or a line of JSON for each VM",
  default: "table on a terminal, otherwise json",
} as const satisfies Option;

const SOCKET = {
  name: "socket",
  metavar: "PATH",
  help: "where the resident takes requests",
  default: "$TAPKIT_SOCKET, then /run/tapkit/tapkit.sock",
} as const satisfies Option;

const VMS = { metavar: "NAME…", help: "names of VMs", complete: "vms" } as const;

export const LS = {
  name: "tapkit ls",
  summary: "list the attached VMs: state, addresses, ports, network, age, lease",
  usage: ["[--output FORMAT]"],
  options: [OUTPUT, STATE_DIR],
  examples: [
    { does: "list the VMs", command: "tapkit ls" },
    {
      does: "the names of those that lost their namespace",
      command: "tapkit ls | jq -r 'select(.state == \"lost\").name'",
    },
  ],
} as const satisfies Command;

export const INSPECT = {
  name: "tapkit inspect",
  summary: "print all that is known of VMs: record, state, lease, and what differs from the record",
  usage: ["NAME…"],
  words: VMS,
  options: [...HOST_OPTIONS],
  examples: [{ does: "look at a VM", command: "tapkit inspect web" }],
} as const satisfies Command;

export const RM = {
  name: "tapkit rm",
  summary: "remove VMs from their networks, as attach-vm NAME… --remove does",
  usage: ["NAME… [--force]", "--all [--force]"],
  words: VMS,
  options: [
    { name: "all", alias: ["-a"], help: "every attached VM" },
    { name: "force", alias: ["-f"], help: "also VMs whose VMM attach-vm runs" },
    ...HOST_OPTIONS,
  ],
  examples: [{ does: "remove two VMs", command: "tapkit rm web db" }],
} as const satisfies Command;

export const EVENTS = {
  name: "tapkit events",
  summary: "print what happens to VMs from now on: attached, changed, removed, leases, repairs",
  usage: ["[NAME…] [--output FORMAT]"],
  words: { ...VMS, help: "only events of these VMs" },
  options: [{ ...OUTPUT, help: "lines for people, or a line of JSON for each event" }, SOCKET],
  examples: [
    { does: "watch, until Ctrl-C", command: "tapkit events" },
    { does: "watch one VM", command: "tapkit events web" },
  ],
} as const satisfies Command;

export const HELP = {
  name: "tapkit help",
  summary: "print the help of a command",
  usage: ["[NAME]"],
  words: { metavar: "NAME", help: "a command, as attach-vm or ls" },
  options: [],
  examples: [{ does: "all flags of attach-vm", command: "tapkit help attach-vm" }],
} as const satisfies Command;
