/**
 * Installs tapkit's commands on this host. See `deno run -A install.ts --help`.
 *
 * @module
 */

import { EXIT, type Setting } from "./lib/cli/cli.ts";
import { runScript } from "./lib/cli/main.ts";
import { INSTALL, readInstallCommand } from "./lib/cli/install-command.ts";
import { Installer } from "./lib/install/installer.ts";
import { ATTACH_VM } from "./lib/cli/attach-table.ts";
import { MAP_PORT } from "./lib/cli/map-command.ts";
import { SETUP_WEAVE } from "./lib/cli/weave-command.ts";
import { BRIDGE_LEGACY } from "./lib/cli/bridge-legacy-table.ts";
import { DOCTOR } from "./lib/cli/doctor-table.ts";
import { INSTALL_DEFAULT_CNI } from "./lib/cli/default-cni-table.ts";
import { SERVE } from "./lib/cli/serve-table.ts";
import { TAPKIT } from "./lib/cli/tapkit-table.ts";
import { EVENTS, HELP, INSPECT, LS, RM } from "./lib/cli/words-table.ts";
import type { Command } from "./lib/cli/args.ts";

const COMMANDS: readonly Command[] = [
  ...[TAPKIT, ATTACH_VM, BRIDGE_LEGACY, DOCTOR, INSTALL_DEFAULT_CNI],
  ...[MAP_PORT, SERVE, { ...SERVE, name: "serve-dhcp" }, SETUP_WEAVE],
];

/** The same is a command of tapkit. */
const TAPKIT_INSTALL = { ...INSTALL, name: "tapkit install" };

const TABLES = { commands: COMMANDS, words: [LS, INSPECT, RM, EVENTS, TAPKIT_INSTALL, HELP] };

/** Runs the installer with `args`; returns its exit code. */
export function main(args: readonly string[], setting?: Setting): Promise<number> {
  return runScript(import.meta.main ? INSTALL : TAPKIT_INSTALL, args, async (parsed, cli) => {
    const { verb, cloud, ...request } = readInstallCommand(parsed);
    const note = (text: string) => cli.note(text);
    const installer = new Installer(request, { tables: TABLES, note });
    const { prefix } = installer;
    switch (verb) {
      case "cloud-init":
        cli.text((await import("./lib/install/cloud-init.ts")).cloudConfig(cloud!).trimEnd());
        return EXIT.done;
      case "print":
        cli.text(installer.print());
        return EXIT.done;
      case "check":
        return cli.problems({ prefix }, await installer.check());
      case "uninstall":
        cli.json({ prefix, removed: await installer.uninstall() });
        return EXIT.done;
      case "install":
        cli.json({ prefix, ...await installer.install() });
        return EXIT.done;
    }
  }, setting);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
