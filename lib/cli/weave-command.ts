/**
 * setup-weave's command line.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import type { WeaveRequest } from "../weave/types.ts";
import { type Command, exclusive, type Parsed, wholeNumber } from "./args.ts";
import { HOST_OPTIONS, withoutUndefined } from "./cli.ts";

/** Its table. */
export const SETUP_WEAVE = {
  name: "setup-weave",
  summary: "connect this host's VMs to those of other hosts by Weave Net, which runs in Docker",
  usage: [
    "[--peers A,B] [options]",
    "--print | --check",
    "--remove [--purge] [--restore-default]",
  ],
  options: [
    {
      name: "peers",
      metavar: "A,B",
      help:
        "the hosts of the network, by address or name; given again with others, it connects to " +
        "those and to no others",
      default: "$KUBE_PEERS, then as before, then this host alone",
    },
    {
      name: "image",
      metavar: "IMAGE",
      help: "Weave Net's image for Kubernetes",
      default: "weaveworks/weave-kube:2.5.2",
    },
    {
      name: "ipalloc-range",
      metavar: "CIDR",
      help: "what addresses are given from, the same on all hosts",
      default: "10.32.0.0/12",
    },
    { name: "mtu", metavar: "BYTES", help: "the MTU of the bridge and the VMs", default: "1376" },
    {
      name: "password-file",
      metavar: "FILE",
      help: "a file with the password of the network, the same on all hosts; none for no password",
    },
    {
      name: "wait",
      metavar: "SECONDS",
      help: "how long to wait until addresses are given out; the router goes on afterwards",
      default: "60",
    },
    { name: "print", help: "print the docker command, and change nothing" },
    { name: "check", help: "compare with what is wanted, and show the connections" },
    { name: "remove", help: "leave the network; refused while VMs are on it" },
    { name: "purge", help: "with --remove: remove the router's data too" },
    { name: "restore-default", help: "with --remove: install the default network again" },
    ...HOST_OPTIONS,
  ],
  examples: [
    { does: "on each of two hosts", command: "setup-weave --peers 192.0.2.10,192.0.2.11" },
    { does: "see what it would run", command: "setup-weave --print" },
    { does: "leave", command: "setup-weave --remove --restore-default" },
  ],
  exitCodes: [["3", "--check found a difference"]],
} as const satisfies Command;

/** What setup-weave is to do. */
export interface WeaveCommand {
  readonly verb: "set up" | "print" | "check" | "remove";
  readonly request: WeaveRequest;
}

/**
 * Reads the parsed command line.
 *
 * @throws {InputError} when flags do not go together, or a number is malformed
 */
export function readWeaveCommand({ flags }: Parsed<typeof SETUP_WEAVE>): WeaveCommand {
  exclusive(flags, ["print", "check", "remove"]);
  for (const flag of ["purge", "restore-default"] as const) {
    if (!flags[flag] || flags.remove) continue;
    throw new InputError(`--${flag} is for --remove`, {
      mend: `add --remove, or leave out --${flag}`,
    });
  }
  const number = (flag: "mtu" | "wait") =>
    flags[flag] === undefined ? undefined : wholeNumber(`--${flag}`, flags[flag]);
  return {
    verb: flags.print ? "print" : flags.check ? "check" : flags.remove ? "remove" : "set up",
    request: withoutUndefined({
      peers: flags.peers?.split(","),
      image: flags.image,
      range: flags["ipalloc-range"],
      mtu: number("mtu"),
      passwordFile: flags["password-file"],
      wait: number("wait"),
    }),
  };
}
