/**
 * Letting all that is on a bridge of other makers pass the host's firewalls: Weave Net's, of which
 * containers and VMs of other hosts are a part as much as this host's.
 *
 * @module
 */

import { checkpoint } from "../../checkpoint.ts";
import { isSame } from "../../same.ts";
import { bring, look, planCourse, takeAway } from "../layers/bring.ts";
import { layersOf } from "../layers/kinds.ts";
import type { BridgeAttachment } from "../record/address.ts";
import { bridgeNames, hostPaths } from "../record/paths.ts";
import { deleteBridge, readBridge, sideOf, unfinished, writeBridge } from "../record/store.ts";
import { openHost } from "../session.ts";
import type { Change, Difference, HostOptions } from "../types.ts";
import { changingHost, contextOf, lookingAt } from "./work.ts";

/**
 * Lets a bridge's traffic pass the firewalls of the host that drop what is forwarded, and turns
 * forwarding on. It lasts until {@linkcode revokeBridge}; after a reboot, or where somebody took the
 * rules away, restoring VMs or this brings it back.
 *
 * @param link the bridge's name; it need not be there yet
 * @returns what was changed
 * @throws {TapkitError} when a step failed; what was begun is undone
 */
export async function allowBridge(link: string, options: HostOptions = {}): Promise<Change[]> {
  return await changingHost(options, async (work) => {
    const { host } = work;
    const stored = readBridge(host, link);
    const from = stored && sideOf(stored);
    const { kind: firewall } = await host.session.firewall(from?.firewall);
    const to: BridgeAttachment = { link, firewall };
    const layers = layersOf(host).bridge;
    using context = contextOf(work, stored);
    const { undo } = context;
    try {
      const found = from === undefined ? [] : await look(layers, context, from);
      const looked = { ...context, found };
      const course = await planCourse(layers, looked, { from, to });
      undo.push(`the record of the bridge "${link}"`, (failures) => {
        if (failures.length > 0) return;
        if (stored === undefined) deleteBridge(host, link);
        else writeBridge(host, link, stored);
      });
      const isNew = stored?.is !== "attached" || !isSame(from, to);
      if (isNew) writeBridge(host, link, { is: "changing", ...from && { from }, to });
      const { changes } = await bring(layers, looked, course, () => {});
      await checkpoint(host.signal);
      if (isNew) writeBridge(host, link, { is: "attached", at: to });
      return [...changes];
    } catch (error) {
      throw await undo.fail(error);
    }
  });
}

/**
 * Takes away what {@linkcode allowBridge} did. Where it did nothing, nothing is done.
 *
 * @throws {TapkitError} naming everything that could not be taken away; the same call goes on with it
 */
export async function revokeBridge(link: string, options: HostOptions = {}): Promise<void> {
  await changingHost(options, async (work) => {
    const stored = readBridge(work.host, link);
    const from = stored && sideOf(stored);
    if (from !== undefined) {
      using context = contextOf(work, stored);
      writeBridge(work.host, link, { is: "changing", from });
      await takeAway(layersOf(work.host).bridge, context, from);
    }
    // What a killed call wrote aside goes too.
    deleteBridge(work.host, link);
  });
}

/** Compares what {@linkcode allowBridge} did with the kernel. Changes nothing. */
export async function checkBridge(link: string, options: HostOptions = {}): Promise<Difference[]> {
  using host = openHost(options);
  const stored = readBridge(host, link);
  if (stored?.is !== "attached") {
    const problem = stored === undefined
      ? "is not let pass the host's other firewalls"
      : unfinished(stored);
    return [{ layer: "record", object: `bridge "${link}"`, problem, repair: "recreate" }];
  }
  using context = contextOf(lookingAt(host), stored);
  return await look(layersOf(host).bridge, context, stored.at);
}

/** Brings back every bridge that is recorded, and takes away the rest of what was being taken away. */
export async function* restoreBridges(
  options: HostOptions,
): AsyncGenerator<{ readonly name: string; readonly error: unknown }> {
  const host = hostPaths(options);
  for (const name of bridgeNames(host)) {
    try {
      const stored = readBridge(host, name);
      const leaving = stored?.is === "changing" && stored.to === undefined;
      if (leaving) await revokeBridge(name, options);
      else if (stored !== undefined) await allowBridge(name, options);
    } catch (error) {
      yield { name, error };
    }
  }
}
