/**
 * install-default-cni: write the CNI configuration of the default network. See
 * `install-default-cni --help`.
 *
 * @module
 */

import { type Command, exclusive, wholeNumber } from "../lib/cli/args.ts";
import { EXIT, HOST_OPTIONS, withoutUndefined } from "../lib/cli/cli.ts";
import { runScript } from "../lib/cli/main.ts";

/** The command line of install-default-cni. */
export const INSTALL_DEFAULT_CNI = {
  name: "install-default-cni",
  summary: "write the CNI configuration of the default network, if there is no other",
  usage: ["[options]", "--print | --check | --remove"],
  options: [
    {
      name: "subnet",
      metavar: "CIDR",
      help: "the subnet of the VMs; refused if the host uses a part of it",
      default: "the first of 172.18.0.0/16, 10.61.0.0/16, 10.62.0.0/16, … that is free",
    },
    { name: "bridge", metavar: "NAME", help: "the host's bridge", default: "ignite0" },
    {
      name: "mtu",
      metavar: "BYTES",
      help: "the network's MTU",
      default: "that of the default route's link, at each attach",
    },
    { name: "ipv6", metavar: "auto|CIDR", help: "add IPv6, with a random or this prefix" },
    { name: "force", help: "accept a --subnet that overlaps" },
    { name: "print", help: "print the file that would be written, and write nothing" },
    {
      name: "check",
      help: "compare the file with what tapkit writes, and with the host; change nothing",
    },
    {
      name: "remove",
      help: "remove the file; refused if it was edited, or VMs are on its network",
    },
    HOST_OPTIONS[0],
    HOST_OPTIONS[1],
  ],
  examples: [
    { does: "install the default network", command: "install-default-cni" },
    { does: "choose the subnet", command: "install-default-cni --subnet 10.99.0.0/16" },
  ],
  exitCodes: [["3", "--check found a difference"]],
} as const satisfies Command;

/** Runs install-default-cni with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(INSTALL_DEFAULT_CNI, args, async ({ flags }, cli) => {
    exclusive(flags, ["print", "check", "remove"]);
    const { subnet, bridge, ipv6, force, print, check, remove } = flags;
    const mtu = flags.mtu === undefined ? undefined : wholeNumber("--mtu", flags.mtu);
    const { installDefaultCni } = await import("../mod.ts");
    const { text, ...report } = await installDefaultCni({
      ...cli.hostOptions(flags),
      ...withoutUndefined({ subnet, bridge, ipv6, mtu }),
      ...{ force, print, check, remove },
    });
    if (text !== undefined) cli.text(text.trimEnd());
    else cli.json(report);
    return report.problems?.length ? EXIT.differs : EXIT.done;
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
