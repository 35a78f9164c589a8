/**
 * map-port: map ports of the host to a VM while it runs. See `map-port --help`.
 *
 * @module
 */

import {
  EXIT,
  hostOptions,
  printError,
  printJson,
  printProblems,
  requireRoot,
  runScript,
} from "../lib/cli/main.ts";
import { MAP_PORT, readMapCommand } from "../lib/cli/map-command.ts";

/** Runs map-port with `args`; returns its exit code. */
export async function main(args: readonly string[]): Promise<number> {
  return await runScript(MAP_PORT, args, async (parsed, heed) => {
    const { verb, target, ports } = readMapCommand(parsed);
    const tapkit = await import("../mod.ts");
    const signal = verb === "map" || verb === "remove" ? await heed() : undefined;
    const options = hostOptions(MAP_PORT.name, parsed.flags, signal);
    if (target === undefined || verb === "list") {
      for (const mapped of await tapkit.listPorts(target, options)) printJson(mapped);
      return EXIT.done;
    }
    try {
      if (verb === "check") {
        requireRoot();
        const object = typeof target === "string" ? { vm: target } : target;
        const found = await tapkit.checkPorts(target, options);
        return printProblems(object, found.map(tapkit.sentence));
      }
      const openFirewall = parsed.flags["open-firewall"];
      printJson(
        verb === "map"
          ? await tapkit.mapPorts(target, ports, { ...options, openFirewall })
          : await tapkit.unmapPorts(target, ports, options),
      );
      return EXIT.done;
    } catch (error) {
      const name = typeof target === "string" ? target : target.to;
      const doing = verb === "remove" ? "unmap ports of" : `${verb} ports of`;
      return printError(MAP_PORT.name, error, `cannot ${doing} ${JSON.stringify(name)}`);
    }
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
