/**
 * install-default-cni's command line as a table.
 *
 * @module
 */

import type { Command } from "./args.ts";
import { HOST_OPTIONS } from "./cli.ts";

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
