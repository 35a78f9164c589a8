/**
 * doctor's command line as a table.
 *
 * @module
 */

import type { Command } from "./args.ts";
import { HOST_OPTIONS } from "./cli.ts";

/** The command line of doctor. */
export const DOCTOR = {
  name: "doctor",
  summary: "examine this host, and say what keeps VMs from working, and what to do about it",
  usage: ["[--fix] [--output FORMAT]"],
  options: [
    {
      name: "fix",
      help:
        "also repair what can be repaired without harm to a guest that runs, and say what was " +
        "repaired",
    },
    {
      name: "output",
      metavar: "FORMAT",
      choices: ["table", "json"],
      help: "a table for people, or one line of JSON",
      default: "table on a terminal, otherwise json",
    },
    {
      name: "socket",
      metavar: "PATH",
      help: "where the resident takes requests; none does not ask it",
      default: "$TAPKIT_SOCKET, then /run/tapkit/tapkit.sock",
    },
    ...HOST_OPTIONS,
  ],
  examples: [
    { does: "examine the host", command: "doctor" },
    { does: "repair what is safe to repair", command: "doctor --fix" },
    { does: "list what is wrong", command: "doctor | jq '.checks[] | select(.ok | not)'" },
  ],
  exitCodes: [["3", "a check failed"]],
} as const satisfies Command;
