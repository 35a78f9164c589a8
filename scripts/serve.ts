/**
 * serve: the host's resident, which answers DHCP, heals, and takes requests. See `serve --help`.
 *
 * @module
 */

import { namedSocket } from "../lib/caller.ts";
import { EXIT, NotHereError, type Setting } from "../lib/cli/cli.ts";
import { requireRoot, runScript, stopSignal } from "../lib/cli/main.ts";
import { SERVE } from "../lib/cli/serve-table.ts";
import type { RunCommand } from "../mod.ts";

/** The commands that hand their work over. */
const TAKEN = {
  "attach-vm": () => import("./attach-vm.ts"),
  "bridge-legacy": () => import("./bridge-legacy.ts"),
  "map-port": () => import("./map-port.ts"),
};

const runCommand: RunCommand = async (command, args, setting) => {
  try {
    return await (await TAKEN[command]()).main(args, setting);
  } catch (error) {
    if (error instanceof NotHereError) return undefined;
    throw error;
  }
};

/** Drops Deno's warning that it aborts a request's signal even after the answer was read. */
function hushDeno(): void {
  const { warn } = console;
  console.warn = (...words) => /^Deno\.serve: request\.signal/.test(words[0]) || warn(...words);
}

/** Runs serve, by this or its older name, with `args`; returns its exit code. */
export function main(
  args: readonly string[],
  setting?: Setting,
  name = "serve",
): Promise<number> {
  return runScript({ ...SERVE, name }, args, async ({ flags }, cli) => {
    const { listLeases, serve } = await cli.library();
    const { stateDir, confDir, binDirs, ...options } = cli.hostOptions(flags);
    const directories = { ...stateDir && { stateDir }, ...confDir && { confDir } };
    if (flags.list) return listLeases(directories).forEach((lease) => cli.json(lease)), EXIT.done;
    requireRoot(["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]);
    if (flags["log-file"] !== undefined) await cli.logTo(flags["log-file"]);
    const socket = flags.socket ?? namedSocket();
    const place = socket === undefined || socket === "none" ? socket : cli.path(socket);
    const { heal = "auto", "exit-when-idle": exitWhenIdle } = flags;
    hushDeno();
    // Otherwise the directory of the process that started it could not be unmounted.
    Deno.chdir("/");
    const how = { socket: place, heal, exitWhenIdle, signal: stopSignal(), runCommand };
    await serve({ ...options, ...directories, ...binDirs && { binDirs }, ...how });
    return EXIT.done;
  }, setting);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
