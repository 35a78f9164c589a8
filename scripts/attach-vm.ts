/**
 * attach-vm: put virtual machines on CNI networks. See `attach-vm --help`.
 *
 * @module
 */

import { ATTACH_VM, flagOptions, readAttachCommand } from "../lib/cli/attach-command.ts";
import type { AttachTable } from "../lib/cli/attach-table.ts";
import { EXIT, type Setting, validateEach } from "../lib/cli/cli.ts";
import { once, requireRoot, runScript, serveCommand } from "../lib/cli/main.ts";
import { start } from "../lib/cli/start.ts";
import type { Attached, AttachRequest, Collected, Restored, VmRecord } from "../mod.ts";

/** Runs attach-vm, or a command of its kind, with `args`; returns its exit code. */
export async function main(
  args: readonly string[],
  setting?: Setting,
  command: AttachTable = ATTACH_VM,
): Promise<number> {
  return await runScript(command, args, async (parsed, cli) => {
    const { verb, requests, all, output, vmm } = await readAttachCommand(parsed, cli, command);
    const tapkit = await cli.library();
    validateEach(verb, requests, tapkit.validateAttach);
    // What only looks ends at once, and a VMM gets its signals itself.
    const signal = ["list", "check", "run"].includes(verb) ? undefined : await cli.heed();
    const host = cli.hostOptions(parsed.flags, signal);
    const vms = all ? tapkit.vmNames(host).map((name) => ({ name })) : requests;
    using session = verb === "list" ? undefined : await tapkit.openSession(vms.length);
    const options = { ...host, ...flagOptions(parsed.flags), ...session && { session } };
    const ensureServed = once(() => tapkit.ensureServed(options, serveCommand(cli, parsed.flags)));
    const print = (record: VmRecord) => cli.text(tapkit.formatRecord(record, output));
    const report = (vm: Attached) => (cli.text(tapkit.formatAttached(vm, output)), ensureServed());
    const failed = verb === "run" ? EXIT.notStarted : EXIT.failed;
    const doing = { verb, failed, signal };
    const forEach = (act: (vm: AttachRequest, now: typeof options) => Promise<number | void>) =>
      cli.forEachVm(doing, vms, (vm, waits) => (requireRoot(), act(vm, { ...options, waits })));
    switch (verb) {
      case "list":
        if (all) return tapkit.listVms(options).forEach(print), EXIT.done;
        return await cli.forEachVm(doing, requests, ({ name }) => print(tapkit.getVm(name, host)));
      case "attach":
        if (parsed.flags["dry-run"]) {
          return await forEach(async (vm, now) =>
            cli.json({ vm: vm.name, ...await tapkit.planAttach(vm, now) })
          );
        }
        return await forEach(async (vm, now) => report(await tapkit.attachVm(vm, now)));
      case "restore":
      case "gc": {
        const all = verb === "restore" ? tapkit.restoreVms : tapkit.collectVms;
        const vms: AsyncIterable<Restored | Collected> = (requireRoot(), all(options));
        return await cli.forEachVm(doing, vms, (vm) => {
          if (vm.error !== undefined) throw vm.error;
          return vm.record === undefined ? cli.json({ vm: vm.name, removed: true }) : report(vm);
        });
      }
      case "check":
        return await forEach(async ({ name: vm }, now) =>
          cli.problems({ vm }, (await tapkit.checkVm(vm, now)).map(tapkit.sentence))
        );
      case "remove": {
        if (parsed.flags["dry-run"]) {
          return await forEach(async ({ name: vm }, now) =>
            cli.json({ vm, ...await tapkit.planRemove(vm, now) })
          );
        }
        const remove = async ({ name: vm }: AttachRequest, now: typeof options) =>
          cli.json({ vm, removed: await tapkit.removeVm(vm, now) });
        return await tapkit.removeTogether(options, () => forEach(remove));
      }
      case "run":
        return await forEach((request, now) =>
          tapkit.runVmm(request, vmm, { ...now, onAttached: ensureServed })
        );
    }
  }, setting);
}

if (import.meta.main) Deno.exit(await start(["attach-vm", ...Deno.args], main));
