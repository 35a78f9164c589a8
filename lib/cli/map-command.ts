/**
 * map-port's command line: its table and its rules.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import { type Command, exclusive, type Parsed } from "./args.ts";
import type { PortTarget } from "../vm/types.ts";
import { HOST_OPTIONS } from "./cli.ts";
import { refuseVerbs } from "./verbs.ts";

/** What map-port does. */
export type MapVerb = "map" | "remove" | "list" | "check";

/** A valid command line of map-port. */
export interface MapCommand {
  readonly verb: MapVerb;
  /** A VM or an address; absent for a list of all. */
  readonly target?: PortTarget;
  readonly ports: readonly string[];
}

/** The command line of map-port. */
export const MAP_PORT = {
  name: "map-port",
  summary: "publish and withdraw ports of a VM while it runs",
  usage: [
    "VM HOST:VM[/PROTO]… [--remove]",
    "VM --list | --check",
    "--list",
    "--to ADDR HOST:VM[/PROTO]… [--remove | --list | --check]",
  ],
  words: {
    metavar: "HOST:VM",
    help: "8080:80, 8080:80/udp, 127.0.0.1:8080:80, [2001:db8::1]:8080:80, 9000-9009:9000-9009, " +
      "or 0:80 for a free host port; tcp, udp and sctp",
    complete: "vm",
  },
  options: [
    {
      name: "to",
      metavar: "ADDR",
      help: "map to this address, which tapkit did not attach, instead of to a VM; it sees the " +
        "host's address instead of the client's, and needs no route back",
    },
    {
      name: "open-firewall",
      help: "open all of its ports to other machines under ufw and firewalld",
    },
    {
      name: "remove",
      alias: ["--rm", "--delete", "--del"],
      help: "remove these mappings, including those of attach-vm",
    },
    {
      name: "list",
      alias: ["-l", "--ls", "--show"],
      help: "print the mappings of one VM, or of all",
    },
    {
      name: "dry-run",
      help:
        "print what mapping or --remove would do, and the mappings that there would be; change " +
        "nothing",
    },
    { name: "check", help: "compare the VM's mappings with the kernel; change nothing" },
    HOST_OPTIONS[0],
  ],
  examples: [
    { does: "publish the VM's port 80 as the host's port 8080", command: "map-port web 8080:80" },
    {
      does: "publish a range, and DNS on one address",
      command: "map-port web 9000-9009:1-10 192.0.2.1:53:53/udp",
    },
    {
      does: "map to another machine",
      command: "map-port --to 192.0.2.7 8080:80",
    },
    { does: "remove a mapping", command: "map-port web 8080:80 --remove" },
  ],
  exitCodes: [["3", "--check found a difference"]],
} as const satisfies Command;

/** Checks which flags and words go together. Throws {@linkcode InputError}. */
export function readMapCommand({ flags, words }: Parsed<typeof MAP_PORT>): MapCommand {
  exclusive(flags, ["remove", "list", "check"]);
  const verb = (["remove", "list", "check"] as const).find((name) => flags[name]) ?? "map";
  if (verb !== "map" && flags["open-firewall"]) {
    throw new InputError(`--open-firewall does not go with --${verb}`, { mend: "leave it out" });
  }
  if (flags["dry-run"] && (verb === "list" || verb === "check")) {
    throw new InputError(`--dry-run does not go with --${verb}`, { mend: "leave it out" });
  }
  const ports = flags.to === undefined ? words.slice(1) : words;
  const target = flags.to === undefined ? words[0] : { to: flags.to };
  if (target === undefined) {
    if (verb === "list") return { verb, ports };
    throw new InputError("no VM is named", { mend: "see map-port --help" });
  }
  if (verb === "map" && flags.to === undefined) refuseVerbs([words[0]!], "map-port");
  if ((verb === "list" || verb === "check") && ports.length > 0) {
    throw new InputError(`${JSON.stringify(ports[0])} does not go with --${verb}`, {
      mend: "it is for all ports of one VM or address",
    });
  }
  return { verb, target, ports };
}
