/**
 * What many mappings cost: adding one more, adding them all, and connecting to the last of them;
 * the last beside the chains of the CNI plugin portmap and of netavark. Alone:
 * `deno run -A tests/bench/port-maps.ts [--mappings N] [--rounds N] [--write]`, which with `--write`
 * puts its part of results.md in the place of the old one.
 *
 * The peers' rules are those of their own programs, made for one container with fifteen ports, as
 * many as portmap puts into one rule, and repeated for the other ports: their programs would take
 * hours to make them.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";
import { Host } from "../support/host.ts";
import { type Machine, ROOT } from "../support/machine.ts";
import { ensureRequirements } from "../support/requirements.ts";
import { Booth } from "./booth.ts";

/** Who has a port, and how long a connection takes, in microseconds. */
export interface ConnectFigures {
  readonly name: string;
  /** To the only mapping there is. */
  readonly alone: readonly number[];
  /** To the last of many. */
  readonly last: readonly number[];
}

/** Everything measured of mappings. */
export interface PortMapFigures {
  readonly mappings: number;
  /** Milliseconds of `map-port` with one port, with none there and with many. */
  readonly process: { readonly none: readonly number[]; readonly many: readonly number[] };
  /** The same in a process that lives on: the library's call, and what of it is the firewall's. */
  readonly inProcess: { readonly none: InProcess; readonly many: InProcess };
  /** Milliseconds of one `map-port` with all of them, as one range and one by one. */
  readonly bulk: { readonly range: readonly number[]; readonly single: readonly number[] };
  readonly connect: readonly ConnectFigures[];
  /** How many processes wanted to run meanwhile, on average of a quarter of an hour. */
  readonly load: number;
}

/** Milliseconds of each. */
export interface InProcess {
  readonly call: readonly number[];
  readonly firewall: readonly number[];
}

/** How many ports portmap puts into one rule. */
const GROUP = 15;
const FIRST_PORT = 10_000;
const CONNECTS = 400;
const LATENCY = ["run", "-A", `${ROOT}/tests/bench/connect-latency.ts`];
const MAP_PORT = ["run", "-A", `${ROOT}/scripts/map-port.ts`];

/** Measures all of it, what is compared taking turns. */
export async function measurePortMaps(mappings: number, rounds: number): Promise<PortMapFigures> {
  await using none = await Host.create({ name: "bench" });
  await using many = await Host.create({ name: "bench" });
  for (const host of [none, many]) {
    await host.addLan();
    await host.mustTapkit("attach-vm", "web", "full");
  }
  const last = FIRST_PORT + mappings - 1;
  const range = `${FIRST_PORT}-${last}:${FIRST_PORT}-${last}`;
  const ports = Array.from({ length: mappings }, (_, index) => `${FIRST_PORT + index}:80`);
  const bulk = { range: [] as number[], single: [] as number[] };
  for (let round = 0; round < 3; round++) {
    for (const [kind, words] of [["single", ports], ["range", [range]]] as const) {
      bulk[kind].push(await timed(many, "full", ...words));
      await many.mustTapkit("map-port", "full", ...words, "--remove");
    }
  }
  await many.mustTapkit("map-port", "full", range);
  const process = { none: [] as number[], many: [] as number[] };
  for (let round = -2; round < rounds; round++) {
    const turns = [["none", none], ["many", many]] as const;
    for (const [kind, host] of round % 2 === 0 ? turns : turns.toReversed()) {
      const ms = await timed(host, "web", "30000:80");
      if (round >= 0) process[kind].push(ms);
      await host.mustTapkit("map-port", "web", "30000:80", "--remove");
    }
  }
  const inProcess = async (host: Host): Promise<InProcess> =>
    JSON.parse(
      await host.must(Deno.execPath(), ["run", "-A", `${ROOT}/tests/bench/map-in-process.ts`]),
    );
  return {
    mappings,
    process,
    inProcess: { none: await inProcess(none), many: await inProcess(many) },
    bulk,
    load: Deno.loadavg()[2] ?? 0,
    connect: [
      await connectTapkit(mappings),
      await connectPeer("CNI portmap, iptables-nft", "cni", "nft", mappings),
      await connectPeer("CNI portmap, iptables-legacy", "cni", "legacy", mappings),
      await connectPeer("netavark, iptables-nft", "netavark", "nft", mappings),
      await connectPeer("netavark, iptables-legacy", "netavark", "legacy", mappings),
    ],
  };
}

async function timed(host: Host, ...words: string[]): Promise<number> {
  const start = performance.now();
  await host.must(Deno.execPath(), [...MAP_PORT, ...words]);
  return performance.now() - start;
}

/** Connections from the LAN to a port, before and after the others are there, in turn. */
async function compare(
  name: string,
  peer: Machine,
  port: number,
  others: { add: () => Promise<unknown>; remove: () => Promise<unknown> },
): Promise<ConnectFigures> {
  const connect = async () => {
    const args = [...LATENCY, "192.0.2.1", String(port), String(CONNECTS)];
    const lines = (await peer.must(Deno.execPath(), args)).trim().split("\n");
    return lines.map(Number).slice(CONNECTS / 4);
  };
  const [alone, last]: [number[], number[]] = [[], []];
  for (let round = 0; round < 4; round++) {
    alone.push(...await connect());
    await others.add();
    last.push(...await connect());
    await others.remove();
  }
  return { name, alone, last };
}

async function connectTapkit(mappings: number): Promise<ConnectFigures> {
  await using host = await Host.create({ name: "bench" });
  const peer = await host.addLan();
  await host.mustTapkit("attach-vm", "web");
  // Without the way to the TAP the namespace, which has the guest's address, is the guest.
  await host.must("tc", ["-n", "tapkit-web", "qdisc", "delete", "dev", "eth0", "ingress"]);
  const last = FIRST_PORT + mappings - 1;
  await host.mustTapkit("map-port", "web", `${last}:80`);
  await serve(host, "tapkit-web");
  const others = `${FIRST_PORT}-${last - 1}:${FIRST_PORT}-${last - 1}`;
  return await compare("tapkit", peer, last, {
    add: () => host.mustTapkit("map-port", "web", others),
    remove: () => host.mustTapkit("map-port", "web", others, "--remove"),
  });
}

async function connectPeer(
  name: string,
  kind: "cni" | "netavark",
  iptables: "nft" | "legacy",
  mappings: number,
): Promise<ConnectFigures> {
  await using booth = await Booth.open(name, { kind }, iptables);
  const { host } = booth;
  const tool = (verb: string) => `/usr/sbin/iptables-${iptables}-${verb}`;
  const groups = Math.ceil(mappings / GROUP);
  await booth.do({ do: "attach", vm: 0, ports: GROUP });
  await serve(host, "bench-0");
  const saved = await host.must(tool("save"), ["-t", "nat"]);
  await host.writeFile("/run/saved", saved);
  await host.writeFile("/run/many", repeated(saved, groups));
  await host.writeFile("/run/one", shifted(saved, groups - 1));
  const restore = async (path: string, ...args: string[]) => {
    await host.sh(`${tool("restore")} ${args.join(" ")} <${path}`, { timeoutMs: 600_000 });
  };
  await restore("/run/one");
  return await compare(name, booth.peer, FIRST_PORT + (groups - 1) * GROUP, {
    add: () => restore("/run/many"),
    remove: () => restore("/run/one"),
  });
}

/** A container's server, which accepts on port 80. */
async function serve(host: Host, netns: string): Promise<void> {
  const command = ["netns", "exec", netns, Deno.execPath(), ...LATENCY, "serve", "80"];
  await host.spawn("ip", command).line((line) => line === "ready");
}

const HOST_PORTS = /(--dports? )([\d,]+)/;

/** The rules with their host ports moved on by a number of groups. */
function shifted(saved: string, groups: number): string {
  return saved.replaceAll(new RegExp(HOST_PORTS, "g"), (_, flag: string, list: string) => {
    const ports = list.split(",").map((port) => Number(port) + groups * GROUP);
    return `${flag}${ports.join(",")}`;
  });
}

/** The rules, those with host ports once for each group, one group after the other. */
function repeated(saved: string, groups: number): string {
  return saved.split("\n*").map((table) => {
    const lines = table.split("\n");
    const first = lines.findIndex((line) => line.startsWith("-A"));
    if (first < 0) return table;
    const chains = Map.groupBy(
      lines.slice(first).filter((line) => line.startsWith("-A")),
      (line) => line.split(" ", 2)[1],
    );
    const rules = [...chains.values()].flatMap((chain) => {
      const own = chain.filter((line) => HOST_PORTS.test(line));
      const start = chain.findIndex((line) => HOST_PORTS.test(line));
      if (start < 0) return chain;
      const all = Array.from(
        { length: groups },
        (_, group) => own.map((line) => shifted(line, group)),
      ).flat();
      const others = chain.filter((line) => !HOST_PORTS.test(line));
      return [...others.slice(0, start), ...all, ...others.slice(start)];
    });
    const rest = lines.slice(first).filter((line) => !line.startsWith("-A"));
    return [...lines.slice(0, first), ...rules, ...rest].join("\n");
  }).join("\n*");
}

if (import.meta.main) {
  const flags = parseArgs(Deno.args, { string: ["mappings", "rounds"], boolean: ["write"] });
  await ensureRequirements("bench");
  const { portMapReport } = await import("./report.ts");
  const figures = await measurePortMaps(
    Number(flags.mappings ?? 10_000),
    Number(flags.rounds ?? 16),
  );
  const text = portMapReport(figures).join("\n");
  console.log(text);
  if (flags.write) {
    const path = `${ROOT}/tests/bench/results.md`;
    const results = await Deno.readTextFile(path);
    const [before = "", rest = ""] = results.split(/^## \d+ port mappings\n[^]*?(?=^## )/m);
    const [head, tail] = rest === "" ? results.split(/^(?=## Start-up)/m) : [before, rest];
    await Deno.writeTextFile(path, `${head}${text}\n${tail}`);
  }
  Deno.exit(0);
}
