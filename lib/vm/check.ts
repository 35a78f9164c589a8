/**
 * Comparing an attachment with its record. Nothing is changed.
 *
 * @module
 */

import type { MadeAttachment, NetworkAttachment } from "../cni/plan.ts";
import { type ChainFinding as Finding, checkNetwork, hasExecuted } from "../cni/runtime.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { getLink } from "../netlink/link.ts";
import { netnsProblem, openVm } from "./netns.ts";
import { checkDhcp } from "./dhcp-start.ts";
import { type Host, openHost } from "./session.ts";
import type { GuardPolicy } from "./guard.ts";
import type { Policed } from "./kept-policy.ts";
import { publishedByPlugin } from "./ports.ts";
import { checkSettings } from "./settings.ts";
import { validateName } from "./host-paths.ts";
import { firewallOf, readRecord, type StoredRecord, unfinished } from "./state.ts";
import type { HostOptions } from "./types.ts";
import { checkGuards, checkWire, movesIdentity } from "./wires.ts";

/** What CHECK found of one of a VM's networks; none is named when the namespace is gone. */
export interface NetworkFinding extends Finding {
  readonly network?: number;
}

/** Sentences on what differs, by what mends it. */
export interface Differences {
  /** Of what CNI made: mended by DEL and ADD. */
  readonly network: readonly NetworkFinding[];
  /** What plugins said of it right after their ADD too, which tells nothing. */
  readonly ignored: readonly string[];
  /** Of the TAP and what joins it to the interface: made anew. */
  readonly wire: readonly string[];
  /** Of the guards on either end of it: put in place while the guest runs. */
  readonly guards: readonly string[];
  /** Of rules and settings: put back. */
  readonly firewall: readonly string[];
  /** With other VMs: mended by nothing that is done to this one. */
  readonly conflicts: readonly string[];
}

/**
 * Compares a VM's record with the kernel and the address pool.
 *
 * @returns a sentence for each difference; one for a VM that is not attached
 * @throws {InputError} when the name is malformed
 */
export async function checkVm(name: string, options: HostOptions = {}): Promise<string[]> {
  validateName(name);
  using host = openHost(options);
  const record = readRecord(host, name);
  if (record === undefined) return [`VM "${name}" is not attached`];
  if (record.made.phase !== "attached") return [`VM "${name}" ${unfinished(record)}`];
  const differences = await checkAttachment(record, host);
  for (const problem of differences.ignored) host.note(`no difference, as from ADD on: ${problem}`);
  const firewall = await host.session.firewall(firewallOf(record.made));
  const owners = record.ports.length === 0
    ? []
    : await (await import("./ports.ts")).checkOwners(host, firewall, name, record.ports);
  // Who has no network is not served either.
  const dhcp = differences.network.length > 0 ? [] : await checkDhcp(host, record);
  return [...problemsOf(differences), ...owners, ...dhcp];
}

/** All differences as sentences. */
export function problemsOf({ network, ignored: _, ...others }: Differences): string[] {
  return [...network.map(({ problem }) => problem), ...Object.values(others).flat()];
}

const PARTS = {
  network: "network",
  wire: "TAP",
  guards: "guards",
  firewall: "rules and settings",
} as const satisfies Partial<Record<keyof Differences, string>>;

/** Says in one line what is going to be mended: the difference, or how many there are of what. */
export function noteMending(host: Host, vm: string, differences: Differences): void {
  for (const conflict of differences.conflicts) host.note(`warning: ${conflict}`);
  const problems = problemsOf({ ...differences, conflicts: [] });
  if (problems.length === 1) host.note(`mending: ${problems[0]}`);
  if (problems.length < 2) return;
  const counts = (["network", "wire", "guards", "firewall"] as const)
    .filter((part) => differences[part].length > 0)
    .map((part) => `its ${PARTS[part]} (${differences[part].length})`);
  host.note(`mending of "${vm}": ${counts.join(", ")}; TAPKIT_DEBUG=1 names each difference`);
  for (const problem of problems) host.detail(`mending: ${problem}`);
}

/** Compares a completed attachment with what is there. */
export async function checkAttachment(
  record: StoredRecord,
  host: Host,
): Promise<Differences> {
  const { interfaces, made } = record;
  using stack = new DisposableStack();
  const firewall = await host.session.firewall(firewallOf(made));
  const vmNl = openVm(stack, record);
  if (vmNl === undefined) {
    return {
      network: [{ problem: netnsProblem(record) }],
      ignored: [],
      wire: [],
      guards: [],
      firewall: [],
      conflicts: [],
    };
  }
  const findings = await checkNetworks(host, record, vmNl);
  const kept = await keptPolicies(host, record);
  return {
    network: findings.filter(({ ignored }) => !ignored),
    ignored: findings.filter(({ ignored }) => ignored).map(({ problem }) => problem),
    wire: interfaces.flatMap((link) => checkWire(vmNl, link)),
    guards: interfaces.flatMap((link, index) => checkGuards(vmNl, link, kept[index])),
    firewall: [
      ...made.guests.flatMap((rules) => firewall.check(rules)),
      ...checkSettings(host, made.guests, {
        firewall,
        request: made.request,
        shown: publishedByPlugin(made.networks) ? record.ports : undefined,
      }),
    ],
    conflicts: made.networks.some(hasExecuted)
      ? (await import("./same-address.ts")).checkHeld(host, { ...record, guests: made.guests })
      : [],
  };
}

/** CHECK of the networks of a record, whose namespace is there. */
export async function checkNetworks(
  host: Host,
  { netns: netnsPath, interfaces, made }: StoredRecord,
  vmNl: NetlinkConnection,
): Promise<NetworkFinding[]> {
  const { nl: hostNl } = host.session;
  const environment = { netnsPath, hostNl, vmNl, plugins: host, note: host.note };
  const found: NetworkFinding[] = [];
  for (const [network, attachment] of made.networks.entries()) {
    if (hasExecuted(attachment) && getLink(vmNl, attachment.ifName) === undefined) {
      // No CHECK need say so: it may be disabled, or fail of something else.
      found.push({
        problem: `interface "${attachment.ifName}" of "${attachment.network}" is missing`,
      });
      continue;
    }
    const link = interfaces.find(({ name }) => name === attachment.ifName);
    const identityMoved = link !== undefined && movesIdentity(link.mode);
    const findings = await checkNetwork(attachment, { ...environment, identityMoved });
    // What the plugin that made the interface says of it is told once.
    if (link !== undefined && isMade(attachment) && !findings.some(isOfMaker)) {
      const { checkSeen } = await import("./executed-link.ts");
      const problems = checkSeen(attachment, link, { hostNl, vmNl, identityMoved });
      findings.push(...problems.map((problem) => ({ problem, seen: true as const })));
    }
    found.push(...findings.map((finding) => ({ ...finding, network })));
  }
  return found;
}

/** Whether an attachment was made by plugins that were executed. */
function isMade(attachment: NetworkAttachment): attachment is MadeAttachment {
  return hasExecuted(attachment) && attachment.result !== undefined;
}

function isOfMaker({ executed, ignored }: Finding): boolean {
  return executed === 0 && !ignored;
}

/**
 * What the guards of a VM's interfaces keep of its policy, where it has one.
 *
 * @param fixing whether to fix what they rely on
 */
export async function keptPolicies(
  host: Host,
  policed: Policed,
  { fixing = false } = {},
): Promise<readonly (GuardPolicy | undefined)[]> {
  const { guests } = policed.made;
  const some = guests.some(({ isolatedPort, egress = [] }) =>
    isolatedPort !== undefined || egress.length > 0
  );
  if (!some) return [];
  const { fixBridges, keptPolicies } = await import("./kept-policy.ts");
  if (fixing) fixBridges(host.session.nl, guests);
  return keptPolicies(host.session.nl, policed);
}
