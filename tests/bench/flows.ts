/**
 * What one command takes on a machine whose kernel tracks many connections of others: its table is one
 * for all network namespaces.
 *
 * @module
 */

import { Host } from "../support/host.ts";
import { eventually, ROOT } from "../support/machine.ts";
import type { Booth } from "./booth.ts";
import type { Lap } from "./report.ts";

/** Laps of one VM with one port, without connections of others and with them. */
export interface FlowFigures {
  readonly flows: number;
  readonly none: FlowLaps;
  readonly many: FlowLaps;
}

interface FlowLaps {
  readonly attach: Lap[];
  readonly remove: Lap[];
}

/** In so many turns, without and with. */
const TURNS = 3;
/** The kernel's limit holds for each network namespace, and is less than half a million here. */
const PER_NETNS = 150_000;
const COUNT = "/proc/sys/net/netfilter/nf_conntrack_count";

/**
 * Attaches and removes one VM in a booth, `rounds` times without flows of others and with so many. Another
 * VM is there all the time: the kernel itself looks at all flows when a namespace begins to track some.
 */
export async function measureFlows(
  booth: Booth,
  { flows, rounds }: { readonly flows: number; readonly rounds: number },
): Promise<FlowFigures> {
  const none: FlowLaps = { attach: [], remove: [] };
  const many: FlowLaps = { attach: [], remove: [] };
  // Another port each time: one that is given out again is another matter.
  let vm = 9000;
  await booth.do({ do: "attach", vm });
  const measure = async (laps: FlowLaps) => {
    for (let round = 0; round < Math.ceil(rounds / TURNS); round++) {
      vm++;
      for (const what of ["attach", "remove"] as const) {
        const { ms, cpuMs } = await booth.do({ do: what, vm });
        laps[what].push({ ms, cpuMs });
      }
    }
  };
  for (let turn = 0; turn < TURNS; turn++) {
    await measure(none);
    await using _others = await openFlows(flows);
    await measure(many);
  }
  return { flows, none, many };
}

/** Namespaces with so many tracked connections, which end with them. */
async function openFlows(flows: number): Promise<AsyncDisposable> {
  await using stack = new AsyncDisposableStack();
  for (let left = flows; left > 0; left -= PER_NETNS) {
    const host = stack.use(await Host.create({ name: "others" }));
    await host.sh(`
      nft 'table ip t { chain c { type filter hook output priority 0; ct state new accept; }; }'
      echo 600 >/proc/sys/net/netfilter/nf_conntrack_udp_timeout`);
    await using flood = host.spawn(
      Deno.execPath(),
      ["run", "-A", `${ROOT}/tests/support/flood.ts`, "datagrams", "127.1.0.0/16"],
    );
    await flood.line((line) => line === "ready");
    const wanted = Math.min(left, PER_NETNS);
    await eventually(
      60_000,
      `${wanted} flows`,
      async () => Number(await host.must("cat", [COUNT])) >= wanted,
    );
  }
  return stack.move();
}
