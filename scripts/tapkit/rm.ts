/**
 * tapkit rm: remove VMs from their networks. See `tapkit rm --help`.
 *
 * @module
 */

import type { Setting } from "../../lib/cli/cli.ts";
import { requireRoot, runScript } from "../../lib/cli/main.ts";
import { RM } from "../../lib/cli/words-table.ts";
import { InputError } from "../../lib/errors.ts";

/** Runs `tapkit rm` with `args`; returns its exit code. */
export function main(args: readonly string[], setting?: Setting): Promise<number> {
  return runScript(RM, args, async ({ words, flags }, cli) => {
    const { all, force } = flags;
    if (words.length === 0 && !all) {
      throw new InputError("no VM is named", { mend: "name VMs, or give --all" });
    }
    if (words.length > 0 && all) {
      throw new InputError("names and --all do not go together", { mend: "use one of them" });
    }
    const { openSession, removeTogether, removeVm, vmNames } = await cli.library();
    const signal = await cli.heed();
    const host = cli.hostOptions(flags, signal);
    const vms = (all ? vmNames(host) : words).map((name) => ({ name }));
    using session = await openSession(vms.length);
    const options = { ...host, session, force };
    return await removeTogether(
      options,
      () =>
        cli.forEachVm({ verb: "remove", signal }, vms, async ({ name: vm }, waits) => {
          requireRoot();
          cli.json({ vm, removed: await removeVm(vm, { ...options, waits }) });
        }),
    );
  }, setting);
}
