/**
 * Every script, and what tapkit does beside them, by its name. Only the one that runs is loaded.
 *
 * @module
 */

import { unknownWord } from "../lib/cli/args.ts";
import { Cli, type Setting } from "../lib/cli/cli.ts";
import { BECOME_SERVE, runScript } from "../lib/cli/main.ts";
import { COMMAND_NAMES, type ScriptName, TAPKIT, type WordName } from "../lib/cli/tapkit-table.ts";
import { HELP } from "../lib/cli/words-table.ts";
import { InputError } from "../lib/errors.ts";

type Main = (args: readonly string[], setting?: Setting) => Promise<number>;

type Loaded = Promise<{ readonly main: Main }>;

const COMMANDS: Readonly<Record<Exclude<ScriptName | WordName, "help">, () => Loaded>> = {
  "install-default-cni": () => import("./install-default-cni.ts"),
  "attach-vm": () => import("./attach-vm.ts"),
  "bridge-legacy": () => import("./bridge-legacy.ts"),
  "map-port": () => import("./map-port.ts"),
  "setup-weave": () => import("./setup-weave.ts"),
  "doctor": () => import("./doctor.ts"),
  "serve": () => import("./serve.ts"),
  "serve-dhcp": () => import("./serve-dhcp.ts"),
  "ls": () => import("./tapkit/ls.ts"),
  "inspect": () => import("./tapkit/inspect.ts"),
  "rm": () => import("./tapkit/rm.ts"),
  "events": () => import("./tapkit/events.ts"),
  "install": () => import("../install.ts"),
};

/** Runs the script that the first argument names with the others. Returns its exit code. */
export async function main(
  args: readonly string[],
  setting: Setting = {},
): Promise<number> {
  // A binary of one script has its name before what it is given.
  const becomes = args.slice(0, 2).indexOf(BECOME_SERVE);
  const [first, ...rest] = becomes === -1 ? args : args.slice(becomes);
  const name = becomes === -1 ? first : "serve";
  if (name === undefined || name.startsWith("-")) {
    return await runScript(TAPKIT, args, () => {
      throw new InputError("no command is named", { mend: "see tapkit --help" });
    }, setting);
  }
  const command = COMMAND_NAMES.find((one) => one === name);
  if (command === undefined) {
    const message = `there is no command called ${JSON.stringify(name)}`;
    return new Cli(TAPKIT.name, setting).error(unknownWord(message, name, COMMAND_NAMES, TAPKIT));
  }
  if (command === "help") return await help(rest, setting);
  return await (await COMMANDS[command]()).main(rest, setting);
}

/** Prints the help of a command, or of tapkit. Returns the exit code. */
async function help(args: readonly string[], setting: Setting): Promise<number> {
  return await runScript(HELP, args, async ({ words: [name = "--help", another] }) => {
    if (another === undefined) return await main([name, "--help"], setting);
    throw new InputError("more than one command is named", { mend: "name one" });
  }, setting);
}
