/**
 * Weave Net on this host, and the VMs that are on it.
 *
 * @module
 */

import { sentence } from "../../finding.ts";
import { checkWeave as check } from "../../weave/check.ts";
import { WEAVE_PLUGIN } from "../../weave/conflist.ts";
import { WEAVE_BRIDGE } from "../../weave/host.ts";
import { type LeaveOptions, removeWeave as leave } from "../../weave/remove.ts";
import { lockWeave, printWeave, setupWeave as setup } from "../../weave/setup.ts";
import type { WeaveHost, WeaveRequest, WeaveState } from "../../weave/types.ts";
import { installDefaultCni } from "../default-network.ts";
import { tellForgotten } from "../network/weave.ts";
import type { NetworkFact } from "../record/attachment.ts";
import { elsewhere } from "../record/elsewhere.ts";
import { hostPaths } from "../record/paths.ts";
import { readVms, sidesOf } from "../record/store.ts";
import type { HostOptions } from "../types.ts";
import { allowBridge, checkBridge, revokeBridge } from "./bridge.ts";

/**
 * Starts Weave Net's router on this host, or changes the one that runs, and waits until it gives out
 * addresses.
 *
 * @throws {InputError} when the request is malformed
 * @throws {TapkitError} when a step failed; what was begun is undone. Where only peers are missing, it
 * goes on
 */
export async function setupWeave(
  request: WeaveRequest = {},
  options: HostOptions = {},
): Promise<WeaveState> {
  return await setup(request, weaveHost(options));
}

/** Looks whether Weave Net is as it is wanted, and at its connections. Changes nothing. */
export async function checkWeave(
  request: WeaveRequest = {},
  options: HostOptions = {},
): Promise<WeaveState> {
  return await check(request, weaveHost(options));
}

/** The `docker run` command by which Weave Net would be started, as text for a shell. */
export async function weaveCommand(
  request: WeaveRequest = {},
  options: HostOptions = {},
): Promise<string> {
  return await printWeave(request, weaveHost(options));
}

/**
 * Leaves Weave Net's network.
 *
 * @returns whether there was anything to remove
 * @throws {TapkitError} while VMs are on it; nothing was touched
 */
export async function removeWeave(
  options: HostOptions & LeaveOptions = {},
): Promise<boolean> {
  const host = weaveHost(options);
  using _lock = await lockWeave(host);
  return await leave(options, host, async () => {
    await installDefaultCni(options);
  });
}

function weaveHost(options: HostOptions): WeaveHost {
  const paths = hostPaths(options);
  const { signal: _, ...uninterrupted } = options;
  const { confDir, binDirs, note, signal } = paths;
  /** Both sides of VMs that are being changed count. */
  const networks = () =>
    [paths, ...elsewhere(paths)].flatMap((each) => readVms(each)).flatMap(sidesOf)
      .flatMap(({ spec, facts }) => facts.networks.map((network) => ({ spec, network })));
  const isWeave = ({ attachment }: NetworkFact) =>
    attachment.plugins.some(({ type }) => type === WEAVE_PLUGIN);
  return {
    dirs: { confDir, binDirs },
    note,
    signal,
    usersOf: (name) => [
      ...new Set(
        networks().filter(({ network }) => network.attachment.network === name)
          .map(({ spec }) => spec.id.name),
      ),
    ],
    attached: () => {
      const vms = new Map<string, { name: string; id: string; addresses: Set<string> }>();
      for (const { spec, network } of networks().filter(({ network }) => isWeave(network))) {
        const { name } = spec.id;
        const id = network.attachment.containerId;
        const vm = vms.get(name) ?? { name, id, addresses: new Set() };
        for (const { address } of network.link?.addresses ?? []) vm.addresses.add(address);
        vms.set(name, vm);
      }
      return [...vms.values()].map((vm) => ({ ...vm, addresses: [...vm.addresses] }));
    },
    claim: () => tellForgotten(paths),
    allow: async () => (await allowBridge(WEAVE_BRIDGE, options)).length > 0,
    revoke: () => revokeBridge(WEAVE_BRIDGE, uninterrupted),
    barred: async () => (await checkBridge(WEAVE_BRIDGE, options)).map(sentence),
  };
}
