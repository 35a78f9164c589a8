/**
 * tapkit inspect: all that is known of VMs. See `tapkit inspect --help`.
 *
 * @module
 */

import { EXIT, type Setting } from "../../lib/cli/cli.ts";
import { runScript } from "../../lib/cli/main.ts";
import { screen } from "../../lib/cli/style.ts";
import { INSPECT } from "../../lib/cli/words-table.ts";
import { InputError } from "../../lib/errors.ts";

/** Runs `tapkit inspect` with `args`; returns its exit code. */
export function main(args: readonly string[], setting?: Setting): Promise<number> {
  return runScript(INSPECT, args, async ({ words, flags }, cli) => {
    if (words.length === 0) throw new InputError("no VM is named", { mend: "see tapkit ls" });
    const { checkVm, getVm, sentence, summarizeVms } = await cli.library();
    const options = cli.hostOptions(flags);
    const summaries = summarizeVms(options);
    const space = screen().isTerminal ? 2 : 0;
    const vms = words.map((name) => ({ name }));
    return await cli.forEachVm({ verb: "inspect" }, vms, async ({ name }) => {
      const record = getVm(name, options);
      const { state, pid, since, leased } = summaries.find((vm) => vm.name === name) ?? {};
      const problems = (await checkVm(name, options)).map(sentence);
      const all = { ...record, state, pid, since, leased, problems };
      cli.text(JSON.stringify(all, null, space));
      return EXIT.done;
    });
  }, setting);
}
