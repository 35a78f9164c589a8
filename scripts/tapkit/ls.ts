/**
 * tapkit ls: the attached VMs at a glance. See `tapkit ls --help`.
 *
 * @module
 */

import { EXIT, type Setting } from "../../lib/cli/cli.ts";
import { runScript } from "../../lib/cli/main.ts";
import { screen, type Style } from "../../lib/cli/style.ts";
import { type Cell, formatAge, formatTable, shortPorts } from "../../lib/cli/table.ts";
import { LS } from "../../lib/cli/words-table.ts";
import type { VmState, VmSummary } from "../../mod.ts";

const HEAD = ["NAME", "STATE", "ADDRESSES", "PORTS", "NETWORK", "AGE", "LEASE"] as const;

/** What is as it should be, and what is not. */
const STYLES: Partial<Record<VmState, Style>> = { attached: "green", running: "green" };

/** Runs `tapkit ls` with `args`; returns its exit code. */
export function main(args: readonly string[], setting?: Setting): Promise<number> {
  return runScript(LS, args, async ({ flags }, cli) => {
    const vms = (await cli.library()).summarizeVms(cli.hostOptions(flags));
    const { isTerminal, paint } = screen();
    if ((flags.output ?? (isTerminal ? "table" : "json")) === "json") {
      for (const vm of vms) cli.json(vm);
      return EXIT.done;
    }
    const head = HEAD.map((title): Cell => [title, "bold"]);
    for (const line of formatTable([head, ...vms.map(rowOf)], paint)) cli.painted(line);
    return EXIT.done;
  }, setting);
}

function rowOf({ name, state, pid, addresses, ports, networks, since, leased }: VmSummary): Cell[] {
  return [
    name,
    [pid === undefined ? state : `${state} (${pid})`, STYLES[state] ?? "red"],
    addresses.join(", ") || "-",
    shortPorts(ports) || "-",
    networks.join(", ") || "-",
    formatAge(since),
    leased === null ? "-" : `${formatAge(leased)} ago`,
  ];
}
