/**
 * attach-vm: put virtual machines on CNI networks. See `attach-vm --help`.
 *
 * @module
 */

import { ATTACH_VM, flagOptions, readAttachCommand } from "../lib/cli/attach-command.ts";
import type { AttachTable } from "../lib/cli/attach-table.ts";
import {
  BECOME_SERVE_DHCP,
  EXIT,
  forEachVm,
  hostOptions,
  once,
  printJson,
  printProblems,
  printText,
  requireRoot,
  runScript,
  serveDhcpCommand,
  validateEach,
} from "../lib/cli/main.ts";
import type { Attached, AttachRequest, Collected, Restored, VmRecord } from "../mod.ts";

/** Runs attach-vm, or a command of its kind, with `args`; returns its exit code. */
export async function main(args: readonly string[], command: AttachTable = ATTACH_VM) {
  if (args[0] === BECOME_SERVE_DHCP) {
    return await (await import("./serve-dhcp.ts")).main(args.slice(1));
  }
  return await runScript(command, args, async (parsed, heed) => {
    const { verb, requests, all, output, vmm } = await readAttachCommand(parsed, command);
    const tapkit = await import("../mod.ts");
    validateEach(verb, requests, tapkit.validateAttach);
    // What only looks ends at once, and a VMM gets its signals itself.
    const signal = ["list", "check", "run"].includes(verb) ? undefined : await heed();
    const host = hostOptions(command.name, parsed.flags, signal);
    const vms = all ? tapkit.vmNames(host).map((name) => ({ name })) : requests;
    using session = verb === "list" ? undefined : await tapkit.openSession(vms.length);
    const options = { ...host, ...flagOptions(parsed.flags), ...session && { session } };
    const ensureDhcp = once(() => tapkit.ensureDhcpServer(options, serveDhcpCommand(parsed.flags)));
    const print = (record: VmRecord) => printText(tapkit.formatRecord(record, output));
    const report = (vm: Attached) => (printText(tapkit.formatAttached(vm, output)), ensureDhcp());
    const failed = verb === "run" ? EXIT.notStarted : EXIT.failed;
    const doing = { script: command.name, verb, failed, signal };
    const forEach = (act: (vm: AttachRequest, now: typeof options) => Promise<number | void>) =>
      forEachVm(doing, vms, (vm, waits) => (requireRoot(), act(vm, { ...options, waits })));
    switch (verb) {
      case "list":
        if (all) return tapkit.listVms(options).forEach(print), EXIT.done;
        return await forEachVm(doing, requests, ({ name }) => print(tapkit.getVm(name, options)));
      case "attach":
        return await forEach(async (vm, now) => report(await tapkit.attachVm(vm, now)));
      case "restore":
      case "gc": {
        const all = verb === "restore" ? tapkit.restoreVms : tapkit.collectVms;
        const vms: AsyncIterable<Restored | Collected> = (requireRoot(), all(options));
        return await forEachVm(doing, vms, (vm) => {
          if (vm.error !== undefined) throw vm.error;
          return vm.record === undefined ? printJson({ vm: vm.name, removed: true }) : report(vm);
        });
      }
      case "check":
        return await forEach(async ({ name: vm }, now) =>
          printProblems({ vm }, (await tapkit.checkVm(vm, now)).map(tapkit.sentence))
        );
      case "remove": {
        const remove = async ({ name: vm }: AttachRequest, now: typeof options) =>
          printJson({ vm, removed: await tapkit.removeVm(vm, now) });
        return await tapkit.removeTogether(options, () => forEach(remove));
      }
      case "run":
        return await forEach((request, now) =>
          tapkit.runVmm(request, vmm, { ...now, onAttached: ensureDhcp })
        );
    }
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
