/**
 * A throwaway host with one contestant of the benchmark in it.
 *
 * @module
 */

import { Host } from "../support/host.ts";
import { type Machine, ROOT } from "../support/machine.ts";
import type { Running } from "../support/running.ts";
import type { Answer, Contestant, Job } from "./contestant.ts";
import type { Lap, SingleFigures } from "./report.ts";

/** A contestant's search path: a directory with the iptables of one kind comes first. */
const BIN_DIR = "/run/bench-bin";
const IPTABLES_NAMES = ["iptables", "ip6tables"].flatMap((name) =>
  ["", "-save", "-restore"].map((suffix) => name + suffix)
);
/** The VM that is there while another one comes and goes. */
export const BESIDE = 8999;
/** How long a job may take. */
export const JOB_TIMEOUT_MS = 600_000;

/** A host with one contestant in it. */
export class Booth implements AsyncDisposable {
  readonly name: string;
  readonly host: Host;
  /** The other machine of the host's LAN. */
  readonly peer: Machine;
  readonly #process: Running;

  private constructor(name: string, host: Host, peer: Machine, process: Running) {
    this.name = name;
    this.host = host;
    this.peer = peer;
    this.#process = process;
  }

  static async open(
    name: string,
    contestant: Contestant,
    iptables: "nft" | "legacy" = "nft",
  ): Promise<Booth> {
    const host = await Host.create({ name: "bench" });
    const peer = await host.addLan();
    await Deno.mkdir(host.path(BIN_DIR));
    for (const tool of IPTABLES_NAMES) {
      await Deno.symlink(`/usr/sbin/xtables-${iptables}-multi`, host.path(`${BIN_DIR}/${tool}`));
    }
    const script = `${ROOT}/tests/bench/contestant.ts`;
    const path = `${BIN_DIR}:${Deno.env.get("PATH") ?? "/usr/bin:/bin"}:/usr/sbin:/sbin`;
    const process = host.spawn(
      Deno.execPath(),
      ["run", "-A", script, JSON.stringify(contestant)],
      { env: { PATH: path, ...contestant.byResident ? { TAPKIT_SOCKET: "" } : {} } },
    );
    await process.line((line) => line === "ready");
    return new Booth(name, host, peer, process);
  }

  async do(job: Job): Promise<Answer & { ms: number; cpuMs: number }> {
    const from = this.#process.lines.length;
    await this.#process.write(`${JSON.stringify(job)}\n`);
    const line = await this.#process.line(() => true, { from, timeoutMs: JOB_TIMEOUT_MS });
    const answer: Answer = JSON.parse(line);
    if (answer.error !== undefined) throw new Error(`${this.name}: ${answer.error}`);
    return { ...answer, ms: answer.ms!, cpuMs: answer.cpuMs! };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.host[Symbol.asyncDispose]();
  }
}

interface Laps {
  readonly attach: Lap[];
  readonly remove: Lap[];
}

export const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Attaches and removes one VM, booth after booth, round after round. */
export async function takeTurns(
  booths: readonly Booth[],
  rounds: number,
  settleMs: number,
): Promise<Map<string, SingleFigures>> {
  const laps = new Map(booths.map(({ name }) => [name, { attach: [], remove: [] } as Laps]));
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < booths.length; turn++) {
      const booth = booths[(round + turn) % booths.length]!;
      for (const what of ["attach", "remove"] as const) {
        const { ms, cpuMs } = await booth.do({ do: what, vm: 9000 });
        laps.get(booth.name)![what].push({ ms, cpuMs });
        await pause(settleMs);
      }
    }
  }
  return laps;
}
