/**
 * Comparing Weave Net on this host with what is wanted of it.
 *
 * @module
 */

import { requireEngine } from "../docker/docker.ts";
import { WeaveError } from "../errors.ts";
import { addressOf } from "../inet/ip.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { IMAGE, type ImageStart } from "./command.ts";
import { sortsFirst } from "./conflist.ts";
import { findContainers, nameOf } from "./containers.ts";
import { findCollision } from "./host.ts";
import { hasImage, readStart } from "./image.ts";
import { launchOf, readRequest, wantedOf } from "./plan.ts";
import { findPolicyRules } from "./policy-rules.ts";
import { listPeers, lookAtWeave, missingPeers } from "./ready.ts";
import { ownerAddresses } from "./router.ts";
import { differencesOf, stateOf } from "./setup.ts";
import type { WeaveHost, WeaveRequest, WeaveState } from "./types.ts";

const AS_DOCUMENTED: ImageStart = { asksKubernetes: false, metrics: "WEAVE_METRICS_ADDR" };

/**
 * Looks whether Weave Net runs as it is wanted, gives out addresses, and is connected to its peers.
 * Changes nothing.
 *
 * @throws {InputError} when the request is malformed
 * @throws {TapkitError} when Docker does not answer
 */
export async function checkWeave(request: WeaveRequest, host: WeaveHost): Promise<WeaveState> {
  const asked = readRequest(request);
  const { dirs, signal } = host;
  await requireEngine({ signal });
  const found = await findContainers({ signal });
  using nl = NetlinkConnection.open();
  const wanted = await wantedOf(nl, asked, found.container);
  const first = sortsFirst(dirs);
  const problems: string[] = [
    ...first === undefined ? [] : [`${first} sorts first, so VMs are not attached to Weave Net`],
  ];
  const { container } = found;
  if (container === undefined) {
    problems.push("no container runs Weave Net on this host");
    return { ...stateOf(host, wanted, { ready: false }), problems };
  }
  const { image = IMAGE } = wanted.settings;
  const used = host.attached().length > 0;
  const start = await hasImage(image, { signal })
    ? await readStart(image, { signal })
    : AS_DOCUMENTED;
  const launch = launchOf(nl, wanted, { start, dirs, used });
  const name = `the container ${nameOf(container)}`;
  problems.push(...differencesOf(nl, found, launch, wanted).map((text) => `${name} ${text}`));
  const { State } = container;
  if (State.Restarting || !State.Running) {
    problems.push(`${name} is ${State.Status}, with exit code ${State.ExitCode}`);
  }
  const { report, awaited } = await lookAtWeave(nl, dirs, wanted.peers, signal);
  problems.push(...awaited);
  if (report !== undefined) {
    const missing = missingPeers(report, wanted.peers);
    if (missing.length > 0 && report.ipam.state === "ready") {
      problems.push(`not connected: ${listPeers(missing)}`);
    }
    const targets = report.targets.toSorted().join(" ");
    const peers = wanted.peers.map(({ peer }) => peer).toSorted().join(" ");
    if (targets !== peers) {
      problems.push(`the router's peers are ${targets || "none"}, not ${peers}`);
    }
    const collision = findCollision(report.connections);
    if (collision !== undefined) problems.push(collision);
    if (awaited.length === 0) problems.push(...await misallocated(host));
  }
  problems.push(...findPolicyRules().map(({ object, problem }) => `${object} ${problem}`));
  problems.push(...await host.barred());
  const ready = report !== undefined && awaited.length === 0;
  return { ...stateOf(host, wanted, { id: container.Id, report, ready }), problems };
}

/** VMs whose addresses the router does not take for theirs. */
async function misallocated(host: WeaveHost): Promise<string[]> {
  try {
    const owners = await ownerAddresses({ signal: host.signal });
    const holders = new Map([...owners].flatMap(([id, list]) => list.map((a) => [a, id] as const)));
    return host.attached().flatMap(({ name, id, addresses }) =>
      addresses.filter((address) => holders.get(address) !== id).map((address) => {
        const holder = holders.get(address);
        const unnamed = holder === addressOf(address);
        const whose = holder === undefined ? "free" : unnamed ? "nobody's by name" : `of ${holder}`;
        return `the address ${address} of VM ${JSON.stringify(name)} is ${whose} for the router`;
      })
    );
  } catch (error) {
    if (!(error instanceof WeaveError)) throw error;
    return [error.message];
  }
}
