/**
 * bridge-legacy: put a virtual machine on a bridge network of Docker's. See `bridge-legacy --help`.
 *
 * @module
 */

import { ATTACH_VM, type AttachTable } from "../lib/cli/attach-table.ts";
import type { Setting } from "../lib/cli/cli.ts";
import { start } from "../lib/cli/start.ts";

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

/** Runs bridge-legacy with `args`; returns its exit code. */
export async function main(args: readonly string[], setting?: Setting): Promise<number> {
  return await (await import("./attach-vm.ts")).main(args, setting, BRIDGE_LEGACY);
}

if (import.meta.main) Deno.exit(await start(["bridge-legacy", ...Deno.args], main));
