/**
 * Every script, by its name. Only the one that runs is loaded.
 *
 * @module
 */

import { thisProcess } from "../lib/caller.ts";
import { unknownWord } from "../lib/cli/args.ts";
import { Cli, type Setting } from "../lib/cli/cli.ts";
import { BECOME_SERVE, runScript } from "../lib/cli/main.ts";
import { SCRIPT_NAMES, type ScriptName, TAPKIT } from "../lib/cli/tapkit-table.ts";
import { InputError } from "../lib/errors.ts";

type Main = (args: readonly string[], setting?: Setting) => Promise<number>;

const SCRIPTS: Readonly<Record<ScriptName, () => Promise<{ readonly main: Main }>>> = {
  "install-default-cni": () => import("./install-default-cni.ts"),
  "attach-vm": () => import("./attach-vm.ts"),
  "bridge-legacy": () => import("./bridge-legacy.ts"),
  "map-port": () => import("./map-port.ts"),
  "setup-weave": () => import("./setup-weave.ts"),
  "doctor": () => import("./doctor.ts"),
  "serve": () => import("./serve.ts"),
  "serve-dhcp": () => import("./serve-dhcp.ts"),
};

/** Runs the script that the first argument names with the others. Returns its exit code. */
export async function main(
  args: readonly string[],
  setting: Setting = { caller: thisProcess },
): Promise<number> {
  // A binary of one script has its name before what it is given.
  const becomes = args.slice(0, 2).indexOf(BECOME_SERVE);
  const [first, ...rest] = becomes === -1 ? args : args.slice(becomes);
  const name = becomes === -1 ? first : "serve";
  if (name === undefined || name.startsWith("-")) {
    return await runScript(TAPKIT, args, () => {
      throw new InputError("no script is named", { mend: "see tapkit --help" });
    }, setting);
  }
  const script = SCRIPT_NAMES.find((script) => script === name);
  if (script === undefined) {
    const message = `there is no script called ${JSON.stringify(name)}`;
    return new Cli(TAPKIT.name, setting).error(unknownWord(message, name, SCRIPT_NAMES, TAPKIT));
  }
  return await (await SCRIPTS[script]()).main(rest, setting);
}
