/**
 * Times the reference chain as tapkit executes it, and as a bare loop of process starts does, in
 * turns, inside a throwaway host: `exec-chain.ts ROUNDS` prints `{"tapkit":[ms…],"bare":[ms…]}`, each
 * of an ADD and a DEL of the whole chain.
 */

import { parseConfig } from "../../lib/cni/conflist.ts";
import { planNetwork } from "../../lib/cni/plan.ts";
import { addNetwork, delNetwork } from "../../lib/cni/runtime.ts";
import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import {
  deleteNamedNetns,
  nameNetns,
  netnsPath,
  newNetns,
  withNetns,
} from "../../lib/sys/netns.ts";
import { UndoStack } from "../../lib/undo.ts";
import { REFERENCE_DIR, runReference } from "../support/cni-reference.ts";

const NAME = "bench";
const LIST = {
  name: "bench-net",
  cniVersion: "1.0.0",
  plugins: [
    {
      type: "bridge",
      bridge: "bench0",
      isGateway: true,
      ipMasq: true,
      ipam: { type: "host-local", subnet: "10.77.0.0/16" },
    },
    { type: "portmap", capabilities: { portMappings: true } },
    { type: "firewall" },
  ],
};
const PORTS = { portMappings: [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }] };

const list = parseConfig(JSON.stringify(LIST), "bench.conflist");
const host = { binDirs: [REFERENCE_DIR], stateDir: "/var/lib/tapkit" };

async function viaTapkit(): Promise<void> {
  const choice = { mode: "exec", isDefault: false, host } as const;
  const netns = newNetns();
  nameNetns(NAME, netns);
  using hostNl = NetlinkConnection.open();
  using vmNl = withNetns(netns, () => NetlinkConnection.open());
  const environment = { netnsPath: netnsPath(NAME), hostNl, vmNl, plugins: host, note: () => {} };
  const request = { list, containerId: NAME, ifName: "eth0", runtimeConfig: PORTS, choice };
  const { attachment } = await addNetwork(planNetwork(request), {
    ...environment,
    netns,
    ownNetns: true,
    undo: new UndoStack(),
    owner: "bench/eth0",
  });
  const failures = await delNetwork(attachment, environment);
  if (failures.length > 0) throw failures[0];
  netns[Symbol.dispose]();
  deleteNamedNetns(NAME);
}

async function bare(): Promise<void> {
  const netns = newNetns();
  nameNetns(NAME, netns);
  const call = { containerId: NAME, netns: netnsPath(NAME) };
  const { name, cniVersion } = LIST;
  let prevResult: unknown;
  const configs = LIST.plugins.map((plugin) => ({
    ...plugin,
    name,
    cniVersion,
    ...plugin.type === "portmap" ? { runtimeConfig: PORTS } : {},
  }));
  for (const config of configs) {
    const stdin = prevResult === undefined ? config : { ...config, prevResult };
    prevResult = await runReference(config.type, { ...call, command: "ADD" }, stdin);
  }
  for (const config of configs.toReversed()) {
    await runReference(config.type, { ...call, command: "DEL" }, { ...config, prevResult });
  }
  netns[Symbol.dispose]();
  deleteNamedNetns(NAME);
}

const laps: Record<"tapkit" | "bare", number[]> = { tapkit: [], bare: [] };
const turns = [["tapkit", viaTapkit], ["bare", bare]] as const;
for (let round = -2; round < Number(Deno.args[0] ?? 12); round++) {
  for (const [who, run] of round % 2 === 0 ? turns : turns.toReversed()) {
    const start = performance.now();
    await run();
    if (round >= 0) laps[who].push(performance.now() - start);
  }
}
console.log(JSON.stringify(laps));
