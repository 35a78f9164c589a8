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
  once,
  printJson,
  printText,
  requireRoot,
  runScript,
  serveDhcpCommand,
  withoutUndefined,
} from "../lib/cli/main.ts";
import type { AttachRequest } from "../mod.ts";

const NAME = ATTACH_VM.name;

/** Runs attach-vm with `args`; returns its exit code. */
export async function main(args: readonly string[]): Promise<number> {
  if (args[0] === BECOME_SERVE_DHCP) {
    return await (await import("./serve-dhcp.ts")).main(args.slice(1));
  }
  return await runScript(ATTACH_VM, args, async (parsed) => {
    const { verb, requests, output, vmm } = await readAttachCommand(parsed);
    const tapkit = await import("../mod.ts");
    for (const request of requests) tapkit.validateAttach(request);
    const options = hostOptions(NAME, parsed.flags);
    const serve = serveDhcpCommand(parsed.flags);
    const ensureDhcp = once(() => tapkit.ensureDhcpServer(options, serve));

    const forEach = (act: (request: AttachRequest) => Promise<number | void>) =>
      forEachVm(
        { script: NAME, verb, failed: verb === "run" ? EXIT.notStarted : EXIT.failed },
        requests,
        (request) => {
          requireRoot();
          return act(request);
        },
      );

    switch (verb) {
      case "list":
        for (const record of tapkit.listVms(options)) {
          printText(tapkit.formatRecord(record, output));
        }
        return EXIT.done;
      case "attach":
        return await forEach(async (request) => {
          const record = await tapkit.attachVm(request, options);
          ensureDhcp();
          printText(tapkit.formatRecord(record, output));
        });
      case "check":
        return await forEach(async ({ name }) => {
          const problems = await tapkit.checkVm(name, options);
          printJson({ vm: name, problems });
          return problems.length === 0 ? EXIT.done : EXIT.differs;
        });
      case "remove":
        return await forEach(async ({ name }) => {
          printJson({ vm: name, removed: await tapkit.removeVm(name, options) });
        });
      case "run": {
        const { "record-file": recordFile } = parsed.flags;
        const more = { ...withoutUndefined({ recordFile }), onAttached: ensureDhcp };
        return await forEach((request) => tapkit.runVmm(request, vmm, { ...options, ...more }));
      }
    }
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
