/**
 * bridge-legacy's command line as a table.
 *
 * @module
 */

import { ATTACH_VM, type AttachTable } from "./attach-table.ts";

/** The command line of bridge-legacy. */
export const BRIDGE_LEGACY: AttachTable = {
  ...ATTACH_VM,
  name: "bridge-legacy",
  summary: "attach virtual machines to a bridge network of Docker's; deprecated: see attach-vm",
  usage: [
    "NAME… [options] [-- VMM ARG…]",
    "NAME… --check | --remove | --list [--output FORMAT]",
  ],
  asks: { networkPlugin: "docker-bridge" },
  without: [
    ...["network-plugin", "plugins", "capability", "cni-arg", "netns", "mtu", "bandwidth"],
    ...["exclusive", "cni-conf-dir", "cni-bin-dir"],
  ],
  examples: [
    {
      does: "attach a VM, and let Docker publish its port 80 as the host's port 8080",
      command: "bridge-legacy web --ports 8080:80",
    },
    {
      does: "use a network of one's own, and choose the address",
      command: "bridge-legacy web --network backend --ip 10.5.0.7",
    },
    {
      does: "give the VM the interface of a container",
      command: "bridge-legacy web --container c1",
    },
    { does: "remove a VM", command: "bridge-legacy web --remove" },
  ],
};
