/**
 * Commands and requests that the resident does, guests that ask it meanwhile, what it heals, and what it
 * needs itself.
 *
 * @module
 */

import { connect } from "../../mod.ts";
import { ResidentServer } from "../support/resident.ts";
import { Host } from "../support/host.ts";
import { eventually, ROOT } from "../support/machine.ts";
import { BESIDE, Booth, pause, takeTurns } from "./booth.ts";
import type { SingleFigures } from "./report.ts";

/** What was measured. */
export interface ResidentFigures {
  /** Whole processes, the peers among them. */
  readonly commands: ReadonlyMap<string, SingleFigures>;
  /** Milliseconds of requests of one client that stays connected. */
  readonly warm: Requests;
  /** The same, each a moment after the one before. */
  readonly rested: Requests;
  /** Microseconds from DISCOVER to OFFER, alone and while VMs are attached. */
  readonly dhcp: { readonly alone: readonly number[]; readonly busy: readonly number[] };
  /** Milliseconds from the beginning of `nft flush ruleset` until all of so many VMs are healed. */
  readonly heal: { readonly vms: number; readonly ms: readonly number[] };
  /**
   * With so many VMs: anonymous memory in MiB, the share of a core in percent, and the milliseconds for
   * each when all are removed in one request.
   */
  readonly size: Readonly<Record<"vms" | "memory" | "idle" | "clearMs", number>>;
}

/** How long requests took, in milliseconds. */
export interface Requests {
  readonly attach: readonly number[];
  readonly remove: readonly number[];
}

const WARM = 200;
const RESTED = 60;
const HEALED = 100;
/** It is patient with so many repairs of a thing in a row. */
const HEAL_ROUNDS = 3;
const EXCHANGES = 500;
const IDLE_MS = 30_000;
/** V8 gives memory back some twenty seconds after the last work, once. */
const QUIET_MS = 15_000;

/**
 * @param bin where the installed commands are
 * @param peers who takes turns with them
 */
export async function measureResident(
  bin: string,
  peers: readonly Booth[],
  { rounds, settleMs, most }: { rounds: number; settleMs: number; most: number },
): Promise<ResidentFigures> {
  const start = (host: Host) => ResidentServer.start(host, { program: `${bin}/serve` });
  await using stack = new AsyncDisposableStack();
  const open = async (...how: Parameters<typeof Booth.open>) => stack.use(await Booth.open(...how));
  const command = [`${bin}/attach-vm`] as const;
  const own = [
    await open("attach-vm, by the resident", { kind: "tapkit", command, byResident: true }),
    await open("curl, by the resident", { kind: "curl" }),
    await open("an empty Deno script", { kind: "empty" }),
  ];
  for (const { host } of own.slice(0, 2)) {
    stack.use(await start(host));
  }
  const booths = [...own, ...peers];
  for (const booth of own.slice(0, 2)) await booth.do({ do: "attach", vm: BESIDE });
  await takeTurns(booths, 1, settleMs);
  const commands = await takeTurns(booths, rounds, settleMs);
  await using host = await Host.create({ name: "bench" });
  await host.addLan();
  await using server = await start(host);
  return {
    commands,
    ...await measureRequests(server),
    dhcp: await measureDhcp(host, server),
    heal: await measureHeal(host, server),
    size: await measureSize(host, server, most),
  };
}

async function measureRequests({ client }: ResidentServer) {
  const timed = async (list: number[], act: () => Promise<unknown>) => {
    const begun = performance.now();
    await act();
    list.push(performance.now() - begun);
  };
  const [attach, remove]: number[][] = [[], []];
  const add = (list: number[], vm: number) =>
    timed(list, () => client.attachVm({ name: `vm${vm}`, ports: [`${10_000 + vm}:80`] }));
  const take = (list: number[], vm: number) => timed(list, () => client.removeVm(`vm${vm}`));
  // The one beside.
  await add([], 0);
  for (let vm = 1; vm <= WARM; vm++) await add(attach!, vm);
  for (let vm = 1; vm <= WARM; vm++) await take(remove!, vm);
  const rested = { attach: [] as number[], remove: [] as number[] };
  for (let vm = 1; vm <= RESTED; vm++) {
    await pause(150);
    await add(rested.attach, vm);
    await pause(150);
    await take(rested.remove, vm);
  }
  return { warm: { attach: attach!, remove: remove! }, rested };
}

async function measureDhcp(host: Host, { client }: ResidentServer) {
  const { record } = await client.attachVm({ name: "guest" });
  const { mac, tap } = record.interfaces[0]!;
  const ask = async () => {
    const script = `${ROOT}/tests/bench/dhcp-latency.ts`;
    const args = ["run", "-A", script, record.netns, tap, mac, String(EXCHANGES)];
    return (await host.must(Deno.execPath(), args)).trim().split("\n").map(Number);
  };
  await pause(500);
  const alone = await ask();
  const asking = ask();
  const requests = Array.from({ length: HEALED }, (_, index) => ({ name: `heal${index}` }));
  for await (const { name, error } of client.attachVms(requests)) {
    if (error !== undefined) throw new Error(`${name}: ${error}`);
  }
  return { alone, busy: await asking };
}

/** The VMs are there. */
async function measureHeal(host: Host, { client }: ResidentServer) {
  const ms: number[] = [];
  for (let round = 0; round < HEAL_ROUNDS; round++) {
    await pause(3000);
    const stop = new AbortController();
    const left = new Set((await client.listVms()).map(({ vm }) => vm));
    const events = client.events({ signal: stop.signal });
    let begun = 0;
    const healing = (async () => {
      for await (const { event, vm = "" } of events) {
        if (event === "healed") left.delete(vm);
        if (left.size === 0) return ms.push(performance.now() - begun);
      }
    })();
    await pause(500);
    begun = performance.now();
    await host.must("nft", ["flush", "ruleset"]);
    await healing;
    stop.abort();
  }
  return { vms: HEALED, ms };
}

async function measureSize(host: Host, { client, path }: ResidentServer, vms: number) {
  const { pid, vms: there } = await client.health();
  const count = vms - there;
  const requests = Array.from({ length: count }, (_, index) => ({ name: `many${index}` }));
  for await (const { name, error } of client.attachVms(requests)) {
    if (error !== undefined) throw new Error(`${name}: ${error}`);
  }
  const ticks = async () => {
    const stat = await host.readFile(`/proc/${pid}/stat`);
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return Number(fields[11]) + Number(fields[12]);
  };
  await eventually(120_000, "it has looked at all of them", async () => {
    const before = await ticks();
    await pause(QUIET_MS);
    return await ticks() - before < 10;
  });
  const before = await ticks();
  await pause(IDLE_MS);
  const used = await ticks() - before;
  const rollup = await host.readFile(`/proc/${pid}/smaps_rollup`);
  const memory = Number(/^Anonymous:\s+(\d+) kB/m.exec(rollup)![1]) / 1024;
  using again = await connect({ socket: path });
  const names = (await again.listVms()).map(({ vm }) => vm);
  const begun = performance.now();
  for await (const { name, error } of again.removeVms(names)) {
    if (error !== undefined) throw new Error(`${name}: ${error}`);
  }
  const clearMs = (performance.now() - begun) / names.length;
  // A tick is a hundredth of a second.
  return { vms, memory, idle: used / (IDLE_MS / 1000), clearMs };
}
