/**
 * map-port: map ports of the host to a VM while it runs. See `map-port --help`.
 *
 * @module
 */

import { EXIT, type Setting } from "../lib/cli/cli.ts";
import { requireRoot, runScript } from "../lib/cli/main.ts";
import { MAP_PORT, readMapCommand } from "../lib/cli/map-command.ts";
import { start } from "../lib/cli/start.ts";

/** Runs map-port with `args`; returns its exit code. */
export async function main(args: readonly string[], setting?: Setting): Promise<number> {
  return await runScript(MAP_PORT, args, async (parsed, cli) => {
    const { verb, target, ports } = readMapCommand(parsed);
    const tapkit = await cli.library();
    const signal = verb === "map" || verb === "remove" ? await cli.heed() : undefined;
    const options = cli.hostOptions(parsed.flags, signal);
    if (target === undefined || verb === "list") {
      for (const mapped of await tapkit.listPorts(target, options)) cli.json(mapped);
      return EXIT.done;
    }
    const name = typeof target === "string" ? target : target.to;
    using _progress = cli.progress(() => `${verb} ports of ${JSON.stringify(name)}`);
    try {
      if (verb === "check") {
        requireRoot();
        const object = typeof target === "string" ? { vm: target } : target;
        const found = await tapkit.checkPorts(target, options);
        return cli.problems(object, found.map(tapkit.sentence));
      }
      const openFirewall = parsed.flags["open-firewall"];
      if (parsed.flags["dry-run"]) {
        const remove = verb === "remove";
        cli.json(await tapkit.planPorts(target, ports, { ...options, openFirewall, remove }));
        return EXIT.done;
      }
      cli.json(
        verb === "map"
          ? await tapkit.mapPorts(target, ports, { ...options, openFirewall })
          : await tapkit.unmapPorts(target, ports, options),
      );
      return EXIT.done;
    } catch (error) {
      const doing = verb === "remove" ? "unmap ports of" : `${verb} ports of`;
      return cli.error(error, `cannot ${doing} ${JSON.stringify(name)}`);
    }
  }, setting);
}

if (import.meta.main) Deno.exit(await start(["map-port", ...Deno.args], main));
