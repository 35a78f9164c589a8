/**
 * Installs tapkit's commands on this host. See `deno run -A install.ts --help`.
 *
 * @module
 */

import { EXIT } from "./lib/cli/cli.ts";
import { runScript } from "./lib/cli/main.ts";
import { INSTALL, readInstallCommand } from "./lib/cli/install-command.ts";
import { Installer } from "./lib/install/installer.ts";
import { ATTACH_VM } from "./lib/cli/attach-table.ts";
import { MAP_PORT } from "./lib/cli/map-command.ts";
import { SETUP_WEAVE } from "./lib/cli/weave-command.ts";
import { BRIDGE_LEGACY } from "./scripts/bridge-legacy.ts";
import { DOCTOR } from "./scripts/doctor.ts";
import { INSTALL_DEFAULT_CNI } from "./scripts/install-default-cni.ts";
import { SERVE } from "./lib/cli/serve-table.ts";
import { TAPKIT } from "./lib/cli/tapkit-table.ts";

const COMMANDS = [
  ...[TAPKIT, ATTACH_VM, BRIDGE_LEGACY, DOCTOR, INSTALL_DEFAULT_CNI],
  ...[MAP_PORT, SERVE, { ...SERVE, name: "serve-dhcp" }, SETUP_WEAVE],
];

/** Runs the installer with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(INSTALL, args, async (parsed, cli) => {
    const { verb, ...request } = readInstallCommand(parsed);
    const note = (text: string) => cli.note(text);
    const installer = new Installer(request, { commands: COMMANDS, note });
    const { prefix } = installer;
    switch (verb) {
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
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
