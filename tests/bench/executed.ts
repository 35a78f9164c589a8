/**
 * What executed plugins cost: the reference chain beside a bare loop of process starts, and a VM with
 * three networks beside one with one.
 *
 * @module
 */

import { Host } from "../support/host.ts";
import { ROOT } from "../support/machine.ts";

/** Milliseconds, one figure for each round. */
export interface ExecutedFigures {
  /** ADD and DEL of the chain, in a process that lives on. */
  readonly chain: { readonly tapkit: readonly number[]; readonly bare: readonly number[] };
  /** `attach-vm` and its removal, from process start to exit. */
  readonly networks: { readonly one: readonly number[]; readonly three: readonly number[] };
}

const NETWORKS = ["a", "b", "c"];
const ATTACH_VM = ["run", "-A", `${ROOT}/scripts/attach-vm.ts`];

/** Measures both, what is compared taking turns. */
export async function measureExecuted(rounds: number): Promise<ExecutedFigures> {
  await using host = await Host.create({ name: "bench" });
  await host.addLan();
  const program = `${ROOT}/tests/bench/exec-chain.ts`;
  const chain = JSON.parse(
    await host.must(Deno.execPath(), ["run", "-A", program, String(rounds)], {
      timeoutMs: 600_000,
    }),
  );
  for (const [index, name] of NETWORKS.entries()) {
    const plugin = {
      type: "bridge",
      bridge: `bench-${name}`,
      ipam: { type: "host-local", subnet: `10.${80 + index}.0.0/16` },
    };
    const list = { cniVersion: "1.0.0", name, plugins: [plugin] };
    await host.writeFile(`/etc/cni/net.d/${name}.conflist`, JSON.stringify(list));
  }
  const networks = { one: [] as number[], three: [] as number[] };
  const turns = [["one", NETWORKS.slice(0, 1)], ["three", NETWORKS]] as const;
  for (let round = -1; round < rounds; round++) {
    for (const [kind, names] of round % 2 === 0 ? turns : turns.toReversed()) {
      const words = names.flatMap((name) => ["--network", name]);
      const start = performance.now();
      await host.must(Deno.execPath(), [...ATTACH_VM, "vm", ...words]);
      await host.must(Deno.execPath(), [...ATTACH_VM, "vm", "--remove"]);
      if (round >= 0) networks[kind].push(performance.now() - start);
    }
  }
  return { chain, networks };
}
