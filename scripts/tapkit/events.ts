/**
 * tapkit events: what happens to VMs from now on. See `tapkit events --help`.
 *
 * @module
 */

import { namedSocket } from "../../lib/caller.ts";
import type { Setting } from "../../lib/cli/cli.ts";
import { EXIT, withoutUndefined } from "../../lib/cli/cli.ts";
import { runScript } from "../../lib/cli/main.ts";
import { screen, type Style } from "../../lib/cli/style.ts";
import { type Cell, formatTable, shortPorts } from "../../lib/cli/table.ts";
import { EVENTS } from "../../lib/cli/words-table.ts";
import type { ResidentEvent } from "../../mod.ts";

const STYLES: Partial<Record<ResidentEvent["event"], Style>> = {
  attached: "green",
  removed: "yellow",
  healed: "yellow",
  denied: "red",
  problem: "red",
  dropped: "red",
};

/** Runs `tapkit events` with `args`, until it is interrupted; returns its exit code. */
export function main(args: readonly string[], setting?: Setting): Promise<number> {
  return runScript(EVENTS, args, async ({ words, flags }, cli) => {
    const { connect } = await cli.library();
    const socket = flags.socket ?? namedSocket();
    const { isTerminal, paint } = screen();
    const asJson = (flags.output ?? (isTerminal ? "table" : "json")) === "json";
    using resident = await connect(withoutUndefined({ socket }));
    for await (const event of resident.events({ signal: await cli.heed() })) {
      if (words.length > 0 && !words.includes(event.vm ?? "")) continue;
      if (asJson) cli.json(event);
      else for (const line of formatTable([rowOf(event)], paint)) cli.painted(line);
    }
    return EXIT.done;
  }, setting);
}

const [TIME_WIDTH, EVENT_WIDTH] = [8, 8];

function rowOf({ time, event, vm = "", record, ...more }: ResidentEvent): Cell[] {
  const { interface: link, message } = more;
  const addresses = record?.interfaces.flatMap(({ addresses }) => addresses)
    .map(({ address }) => address.replace(/\/.*/, ""));
  const told = [
    link,
    addresses?.join(", "),
    record && shortPorts(record.ports),
    message,
    more.tapReplaced && "its VMM has to open the TAP again",
  ];
  const clock = new Date(time).toTimeString().slice(0, TIME_WIDTH);
  const name: Cell = [event.padEnd(EVENT_WIDTH), STYLES[event] ?? "bold"];
  return [clock, name, vm, told.filter(Boolean).join("  ")];
}
