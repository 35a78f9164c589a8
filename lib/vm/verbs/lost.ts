/**
 * Taking away a VM whose record is lost: what bears its name or its container id.
 *
 * @module
 */

import { listConfigFiles, readConfigFile } from "../../cni/conflist.ts";
import { DEFAULT_NETWORK } from "../../cni/default-network.ts";
import { type NetworkAttachment, planNetwork, type PluginChoice } from "../../cni/plan.ts";
import { TapkitError } from "../../errors.ts";
import { isThere } from "../../files.ts";
import type { Both } from "../record/attachment.ts";
import { ownNetnsPath } from "../record/identity.ts";
import type { HostPaths } from "../record/paths.ts";
import { specOf } from "../record/spec.ts";
import { hasVm } from "../record/store.ts";
import { noteTapUsers, removeRecorded } from "./take-away.ts";
import type { Change, LayerName } from "../types.ts";
import type { VmWork } from "./work.ts";

/** What is to be seen of an attachment without a record. */
interface Signs {
  /** Whether there is any. */
  readonly found: boolean;
  /** Networks that it was on. */
  readonly cached: readonly NetworkAttachment[];
}

async function signsOf({ host, id }: VmWork): Promise<Signs> {
  const cached = await cachedNetworks(host, id.containerId);
  const found = hasVm(host, id.name) || isThere(ownNetnsPath(id)) || cached.length > 0;
  return { found, cached };
}

/** What {@linkcode removeLost} would take away, as far as there are signs of it. */
export async function planLost(work: VmWork): Promise<Change[]> {
  const { id } = work;
  const { cached } = await signsOf(work);
  const sandbox = await hasSandbox(work);
  const path = ownNetnsPath(id);
  const removed = (layer: LayerName, object: string): Change => ({
    layer,
    object,
    change: "removed",
  });
  return [
    ...cached.map(({ network, ifName }) => removed("network", `${ifName} on network "${network}"`)),
    ...sandbox ? [removed("network", `the sandbox container of "${id.name}"`)] : [],
    ...isThere(path) ? [removed("netns", `network namespace ${path}`)] : [],
  ];
}

/**
 * Takes away what an attachment without a record would have made, on every network there is.
 *
 * @returns whether there was any sign of it
 */
export async function removeLost(work: VmWork): Promise<boolean> {
  const { host, id } = work;
  const path = ownNetnsPath(id);
  const { found, cached } = await signsOf(work);
  const names = cached.map(({ network }) => network);
  // A plugin of another maker is asked to take away only what there is a sign of.
  const known = knownNetworks(host, id.containerId, found ? "auto" : "builtin")
    .filter(({ network }) => !names.includes(network));
  const to: Both = {
    spec: specOf({ name: id.name }, id, "nftables"),
    facts: {
      netns: { path, given: false },
      networks: [...cached, ...known].map((attachment) => ({ attachment })),
      dns: { nameservers: [], search: [] },
    },
  };
  await noteTapUsers(work, to);
  const sandbox = await hasSandbox(work);
  if (sandbox) {
    const { plannedFact } = await import("../network/docker.ts");
    const spec = { ...to.spec, docker: {} };
    const facts = { ...to.facts, networks: [plannedFact(spec)] };
    await removeRecorded(work, { is: "changing", to: { spec, facts } });
  }
  await removeRecorded(work, { is: "changing", to });
  return found || sandbox;
}

/** Whether Docker has a container of the VM's, as far as Docker can be asked. */
async function hasSandbox({ id, host, outside }: VmWork): Promise<boolean> {
  if (!isThere(DOCKER_SOCKET) && Deno.env.get("DOCKER_HOST") === undefined) return false;
  const { findSandbox } = await import("../../docker/sandbox.ts");
  try {
    return await outside(() => findSandbox(id.name, { signal: host.signal })) !== undefined;
  } catch (error) {
    if (error instanceof TapkitError) return false;
    throw error;
  }
}

const DOCKER_SOCKET = "/run/docker.sock";

/** eth0 on each network of the directory; one that is broken is passed over. */
function knownNetworks(
  host: HostPaths,
  containerId: string,
  mode: PluginChoice["mode"],
): NetworkAttachment[] {
  return listConfigFiles(host.confDir).flatMap((path) => {
    return unlessBroken(() => {
      const list = readConfigFile(path);
      const choice = { mode, isDefault: list.name === DEFAULT_NETWORK, host };
      return planNetwork({ list, containerId, ifName: "eth0", choice });
    });
  });
}

/** What the cache of executed networks has of a VM. */
async function cachedNetworks(host: HostPaths, containerId: string): Promise<NetworkAttachment[]> {
  if (!isThere(`${host.stateDir}/cni`)) return [];
  const { readCache } = await import("../../cni/cache.ts");
  return readCache(host.stateDir, containerId).flatMap(({ list, ifName, result, ...entry }) => {
    const choice = { mode: "auto", isDefault: list.name === DEFAULT_NETWORK, host } as const;
    return unlessBroken(() => {
      const { capabilityArgs: runtimeConfig, cniArgs } = entry;
      const plan = planNetwork({ list, containerId, ifName, runtimeConfig, choice });
      return { ...plan, cniArgs, ...result === undefined ? {} : { result } };
    });
  });
}

function unlessBroken(plan: () => NetworkAttachment): NetworkAttachment[] {
  try {
    return [plan()];
  } catch (error) {
    if (error instanceof TapkitError) return [];
    throw error;
  }
}
