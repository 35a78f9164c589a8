/**
 * One contestant of the benchmark, in a process inside its throwaway host: attaches and removes
 * when it is told to, and says how many milliseconds that took. Jobs come as JSON lines on
 * standard input, each is answered by one JSON line.
 *
 * A job is timed from the start of its first process to the end of its last.
 */

import { TextLineStream } from "./lines.ts";

/** What a contestant is told to do. */
export type Job =
  /** With so many ports; one, unless given. */
  | { readonly do: "attach" | "remove"; readonly vm: number; readonly ports?: number }
  | { readonly do: "batch"; readonly from: number; readonly count: number }
  /** Removes in one call what a batch attached. */
  | { readonly do: "clear"; readonly from: number; readonly count: number };

/** What became of it. */
export interface Answer {
  readonly ms?: number;
  /** The processor time of the processes it took, in milliseconds. */
  readonly cpuMs?: number;
  /** Of a batch: when each VM was done, in milliseconds from the start. */
  readonly laps?: readonly number[];
  readonly error?: string;
}

/** Who a contestant is. */
export type Contestant =
  & {
    /** Whether the resident of the host does its work. */
    readonly byResident?: true;
  }
  & (
    | { readonly kind: "tapkit"; readonly command: readonly [string, ...string[]] }
    | { readonly kind: "cni" | "netavark" | "curl" | "empty" }
  );

const decoder = new TextDecoder();

interface Step {
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Record<string, string>;
  readonly stdin?: string;
}

async function run({ command, args, env = {}, stdin }: Step): Promise<string> {
  const child = new Deno.Command(command, {
    args: [...args],
    env,
    stdin: stdin === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  if (stdin !== undefined) {
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(stdin));
    await writer.close();
  }
  const { success, stdout, stderr } = await child.output();
  const text = decoder.decode(stdout);
  if (success) return text;
  throw new Error(`${command} ${args.join(" ")}: ${decoder.decode(stderr)}${text}`);
}

const vmName = (vm: number) => `vm${vm}`;
const hostPort = (vm: number) => 10_000 + vm;
const netnsName = (vm: number) => `bench-${vm}`;
const ip = (action: "add" | "del", vm: number): Step => {
  return { command: "ip", args: ["netns", action, netnsName(vm)] };
};

async function tapkit(words: readonly [string, ...string[]], job: Job): Promise<Answer> {
  if (job.do === "batch") return await tapkitBatch(words, job.from, job.count);
  const [command, ...args] = words;
  if (job.do === "clear") {
    const names = Array.from({ length: job.count }, (_, index) => vmName(job.from + index));
    await run({ command, args: [...args, "--remove", ...names] });
    return {};
  }
  const flags = job.do === "attach" ? ["--ports", `${hostPort(job.vm)}:80`] : ["--remove"];
  await run({ command, args: [...args, vmName(job.vm), ...flags] });
  return {};
}

async function tapkitBatch(
  [command, ...args]: readonly [string, ...string[]],
  from: number,
  count: number,
): Promise<Answer> {
  const vms = Array.from({ length: count }, (_, index) => from + index);
  const start = performance.now();
  const child = new Deno.Command(command, {
    args: [...args, "--from", "-"],
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const errors = new Response(child.stderr).text();
  const writer = child.stdin.getWriter();
  const lines = vms.map((vm) =>
    JSON.stringify({ name: vmName(vm), ports: [`${hostPort(vm)}:80`] })
  );
  await writer.write(new TextEncoder().encode(`${lines.join("\n")}\n`));
  await writer.close();
  const laps: number[] = [];
  const records = child.stdout.pipeThrough(new TextLineStream());
  for await (const line of records) if (line.startsWith("{")) laps.push(performance.now() - start);
  const { success } = await child.status;
  if (!success || laps.length !== count) throw new Error(await errors);
  return { laps };
}

/** Of which a peer has no one call. */
type Single = Exclude<Job, { readonly do: "clear" }>;

/** Requests to the resident. */
async function curl(job: Single): Promise<Answer> {
  if (job.do === "batch") return await oneByOne(curl, job.from, job.count);
  const socket = ["-sS", "--fail-with-body", "--unix-socket", "/run/tapkit/tapkit.sock"];
  const name = vmName(job.vm);
  const json = JSON.stringify({ name, ports: [`${hostPort(job.vm)}:80`] });
  const request = job.do === "attach"
    ? ["localhost/v1/vms", "--json", json]
    : ["-X", "DELETE", `localhost/v1/vms/${name}`];
  await run({ command: "curl", args: [...socket, ...request] });
  return {};
}

/** What any script of Deno's takes. */
async function empty(): Promise<Answer> {
  const script = new URL("empty.js", import.meta.url).pathname;
  await run({ command: Deno.execPath(), args: ["run", "-A", "--no-config", script] });
  return {};
}

const CNI_DIR = "/usr/lib/cni";
const CHAIN = [
  {
    type: "bridge",
    bridge: "cni0",
    isGateway: true,
    ipMasq: true,
    hairpinMode: true,
    ipam: {
      type: "host-local",
      ranges: [[{ subnet: "10.88.0.0/16" }]],
      routes: [{ dst: "0.0.0.0/0" }],
    },
  },
  { type: "portmap" },
  { type: "firewall", backend: "iptables" },
] as const;

/** Runs the chain as the CNI specification says. */
async function cni(job: Single): Promise<Answer> {
  if (job.do === "batch") return await oneByOne(cni, job.from, job.count);
  const { vm, ports = 1 } = job;
  const add = job.do === "attach";
  if (add) await run(ip("add", vm));
  let prevResult: unknown = undefined;
  for (const plugin of add ? CHAIN : CHAIN.toReversed()) {
    const runtimeConfig = plugin.type === "portmap"
      ? {
        portMappings: Array.from({ length: ports }, (_, index) => ({
          hostPort: hostPort(vm) + index,
          containerPort: 80 + index,
          protocol: "tcp",
        })),
      }
      : undefined;
    const config = { cniVersion: "0.4.0", name: "bench", ...plugin, runtimeConfig, prevResult };
    const output = await run({
      command: `${CNI_DIR}/${plugin.type}`,
      args: [],
      env: {
        CNI_COMMAND: add ? "ADD" : "DEL",
        CNI_CONTAINERID: `bench-${vm}`,
        CNI_NETNS: `/run/netns/${netnsName(vm)}`,
        CNI_IFNAME: "eth0",
        CNI_PATH: CNI_DIR,
      },
      stdin: JSON.stringify(config),
    });
    if (add) prevResult = JSON.parse(output);
  }
  if (!add) await run(ip("del", vm));
  return {};
}

const NETAVARK = "/usr/lib/podman/netavark";

async function netavark(job: Single): Promise<Answer> {
  if (job.do === "batch") return await oneByOne(netavark, job.from, job.count);
  const { vm, ports = 1 } = job;
  const add = job.do === "attach";
  const address = `10.89.${(vm + 2) >> 8}.${(vm + 2) & 255}`;
  const id = (text: string) => text.padEnd(64, "0");
  const options = {
    container_id: id(`c${vm}`),
    container_name: vmName(vm),
    port_mappings: Array.from({ length: ports }, (_, index) => ({
      container_port: 80 + index,
      host_ip: "",
      host_port: hostPort(vm) + index,
      protocol: "tcp",
      range: 1,
    })),
    networks: { bench: { static_ips: [address], interface_name: "eth0" } },
    network_info: {
      bench: {
        name: "bench",
        id: id("b"),
        driver: "bridge",
        network_interface: "podman1",
        subnets: [{ subnet: "10.89.0.0/16", gateway: "10.89.0.1" }],
        ipv6_enabled: false,
        internal: false,
        dns_enabled: false,
        ipam_options: { driver: "host-local" },
      },
    },
  };
  const verb = add ? "setup" : "teardown";
  if (add) await run(ip("add", vm));
  await run({
    command: NETAVARK,
    args: [verb, `/run/netns/${netnsName(vm)}`],
    stdin: JSON.stringify(options),
  });
  if (!add) await run(ip("del", vm));
  return {};
}

async function oneByOne(
  doIt: (job: Single) => Promise<Answer>,
  from: number,
  count: number,
): Promise<Answer> {
  const laps: number[] = [];
  const start = performance.now();
  for (let index = 0; index < count; index++) {
    await doIt({ do: "attach", vm: from + index });
    laps.push(performance.now() - start);
  }
  return { laps };
}

const libc = Deno.dlopen("libc.so.6", {
  // int who, struct rusage *usage
  getrusage: { parameters: ["i32", "buffer"], result: "i32" },
});

/** The processor time, in milliseconds, of all children so far that have been waited for. */
function childrenCpuMs(): number {
  const RUSAGE_CHILDREN = -1; // sys/resource.h
  const usage = new BigInt64Array(18);
  if (libc.symbols.getrusage(RUSAGE_CHILDREN, usage) !== 0) throw new Error("getrusage failed");
  const [seconds = 0n, micros = 0n, kernelSeconds = 0n, kernelMicros = 0n] = usage;
  return Number(seconds + kernelSeconds) * 1000 + Number(micros + kernelMicros) / 1000;
}

async function answer(contestant: Contestant, job: Job): Promise<Answer> {
  const cpuBefore = childrenCpuMs();
  const start = performance.now();
  const doing = contestant.kind === "tapkit"
    ? tapkit(contestant.command, job)
    : job.do === "clear"
    ? Promise.reject(new Error(`${contestant.kind} has no such call`))
    : contestant.kind === "curl"
    ? curl(job)
    : contestant.kind === "empty"
    ? empty()
    : contestant.kind === "cni"
    ? cni(job)
    : netavark(job);
  try {
    const done = await doing;
    const ms = performance.now() - start;
    return { ...done, ms, cpuMs: childrenCpuMs() - cpuBefore };
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) };
  }
}

if (import.meta.main) {
  const contestant: Contestant = JSON.parse(Deno.args[0] ?? "{}");
  console.log("ready");
  for await (const line of Deno.stdin.readable.pipeThrough(new TextLineStream())) {
    console.log(JSON.stringify(await answer(contestant, JSON.parse(line))));
  }
}
