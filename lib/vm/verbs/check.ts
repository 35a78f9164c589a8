/**
 * Comparing what is recorded with what is there.
 *
 * @module
 */

import { sentence } from "../../finding.ts";
import { checkDhcp } from "../dhcp-start.ts";
import { look } from "../layers/bring.ts";
import { layersOf } from "../layers/kinds.ts";
import { portsOf, recordOf } from "../record/derive.ts";
import { validateName } from "../record/identity.ts";
import { readVm, unfinished } from "../record/store.ts";
import { openHost } from "../session.ts";
import type { Difference, HostOptions } from "../types.ts";
import { contextOf, lookingAt } from "./work.ts";

/**
 * Compares a VM's record with the kernel and the address pool.
 *
 * @returns what differs; one difference for a VM that is not attached
 * @throws {InputError} when the name is malformed
 */
export async function checkVm(name: string, options: HostOptions = {}): Promise<Difference[]> {
  validateName(name);
  using host = openHost(options);
  const stored = readVm(host, name);
  if (stored?.is !== "attached") {
    const problem = stored === undefined ? "is not attached" : unfinished(stored);
    const repair = stored === undefined ? "none" : "recreate";
    return [{ layer: "record", object: `VM "${name}"`, problem, repair }];
  }
  const { at } = stored;
  using context = contextOf(lookingAt(host), stored);
  const all = await look(layersOf(host).vm, context, at);
  for (const difference of all.filter(({ ignored }) => ignored)) {
    host.note(`no difference, as from ADD on: ${sentence(difference)}`);
  }
  const found = all.filter(({ ignored }) => !ignored);
  const firewall = await host.session.firewall(at.spec.firewall);
  const ports = portsOf(at.spec.claims);
  const owners = ports.length === 0
    ? []
    : await (await import("../ports.ts")).findSecondOwners(host, firewall, name, ports);
  // Who has no network is not served either.
  const offline = found.some(({ layer }) => layer === "netns" || layer === "network");
  return [...found, ...owners, ...offline ? [] : await checkDhcp(host, recordOf(at))];
}
