/**
 * tapkit: every script under one name, `tapkit NAME ARG…`. Only the one that runs is loaded.
 *
 * @module
 */

import { type Command, unknownWord } from "../lib/cli/args.ts";
import { argumentsAsCalled } from "../lib/cli/called-as.ts";
import { BECOME_SERVE_DHCP, printError, runScript } from "../lib/cli/main.ts";
import { InputError } from "../lib/errors.ts";

type Main = (args: readonly string[]) => Promise<number>;

/** What each script does, and how it is loaded. */
const SCRIPTS: Readonly<Record<string, readonly [does: string, () => Promise<{ main: Main }>]>> = {
  "install-default-cni": [
    "write the CNI configuration of the default network",
    () => import("./install-default-cni.ts"),
  ],
  "attach-vm": ["attach virtual machines to CNI networks", () => import("./attach-vm.ts")],
  "bridge-legacy": [
    "attach virtual machines to a network of Docker's (deprecated)",
    () => import("./bridge-legacy.ts"),
  ],
  "map-port": ["map ports of the host to a running VM", () => import("./map-port.ts")],
  "setup-weave": [
    "connect this host's VMs to those of other hosts by Weave Net",
    () => import("./setup-weave.ts"),
  ],
  "doctor": ["examine this host, and say what keeps VMs from working", () => import("./doctor.ts")],
  "serve": [
    "answer DHCP for every attached VM, and take requests on a socket",
    () => import("./serve.ts"),
  ],
  "serve-dhcp": ["answer DHCP for every attached VM", () => import("./serve-dhcp.ts")],
};

export const TAPKIT = {
  name: "tapkit",
  summary: "connect virtual machines to Linux networks",
  usage: ["NAME ARG…", "NAME --help"],
  words: {
    metavar: "NAME",
    help: Object.entries(SCRIPTS).map(([name, [does]]) => `${name}: ${does}`).join("; "),
    complete: Object.keys(SCRIPTS),
  },
  options: [],
  examples: [{ does: "attach a VM to the default network", command: "tapkit attach-vm web" }],
} as const satisfies Command;

/** Runs the script that the first argument names with the others. Returns its exit code. */
export async function main(args: readonly string[]): Promise<number> {
  // A binary of one script has its name before what it is given.
  const becomes = args.slice(0, 2).indexOf(BECOME_SERVE_DHCP);
  const [first, ...rest] = becomes === -1 ? args : args.slice(becomes);
  const name = becomes === -1 ? first : "serve-dhcp";
  if (name === undefined || name.startsWith("-")) {
    return await runScript(TAPKIT, args, () => {
      throw new InputError("no script is named", { mend: "see tapkit --help" });
    });
  }
  const script = Object.hasOwn(SCRIPTS, name) ? SCRIPTS[name] : undefined;
  if (script === undefined) {
    const message = `there is no script called ${JSON.stringify(name)}`;
    return printError(TAPKIT.name, unknownWord(message, name, Object.keys(SCRIPTS), TAPKIT));
  }
  return await (await script[1]()).main(rest);
}

if (import.meta.main) {
  Deno.exit(await main(argumentsAsCalled((name) => Object.hasOwn(SCRIPTS, name))));
}
