/**
 * attach-vm: put virtual machines on CNI networks. See `attach-vm --help`.
 *
 * @module
 */

import { ATTACH_VM, readAttachCommand } from "../lib/cli/attach-command.ts";
import {
  BECOME_SERVE_DHCP,
  EXIT,
  forEachVm,
  hostOptions,
  printError,
  printJson,
  printText,
  requireRoot,
  runScript,
  withoutUndefined,
} from "../lib/cli/main.ts";

/** Runs attach-vm with `args`; returns its exit code. */
export async function main(args: readonly string[]): Promise<number> {
  if (args[0] === BECOME_SERVE_DHCP) {
    return await (await import("./serve-dhcp.ts")).main(args.slice(1));
  }
  return await runScript(ATTACH_VM, args, async (parsed) => {
    const { verb, requests, output, vmm } = await readAttachCommand(parsed);
    const tapkit = await import("../mod.ts");
    for (const request of requests) tapkit.validateAttach(request);
    const options = hostOptions(ATTACH_VM.name, parsed.flags);

    switch (verb) {
      case "list":
        for (const record of tapkit.listVms(options)) {
          printText(tapkit.formatRecord(record, output));
        }
        return EXIT.done;
      case "attach":
        requireRoot();
        return await forEachVm("attach-vm", "attach", requests, async (request) => {
          printText(tapkit.formatRecord(await tapkit.attachVm(request, options), output));
        });
      case "check":
        requireRoot();
        return await forEachVm("attach-vm", "check", requests, async ({ name }) => {
          const problems = await tapkit.checkVm(name, options);
          printJson({ vm: name, problems });
          return problems.length === 0 ? EXIT.done : EXIT.differs;
        });
      case "remove":
        requireRoot();
        return await forEachVm("attach-vm", "remove", requests, async ({ name }) => {
          printJson({ vm: name, removed: await tapkit.removeVm(name, options) });
        });
      case "run":
        return await run();
    }

    async function run(): Promise<number> {
      const [request] = requests;
      if (request === undefined) return EXIT.usage;
      try {
        requireRoot();
        const recordFile = parsed.flags["record-file"];
        return await tapkit.runVmm(request, vmm, {
          ...options,
          ...withoutUndefined({ recordFile }),
        });
      } catch (error) {
        printError("attach-vm", error, `cannot run ${JSON.stringify(request.name)}`);
        return EXIT.notStarted;
      }
    }
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
