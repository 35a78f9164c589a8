/**
 * Addresses on Weave Net: its plugin takes whichever its router gives, so the one that a VM is to have is
 * claimed before ADD. A router that has lost its memory is told first which addresses the VMs have.
 *
 * @module
 */

import { CniError } from "../../cni/types.ts";
import { describe, TapkitError, WeaveError } from "../../errors.ts";
import { isThere } from "../../files.ts";
import { addressOf, cidrContains, parseCidr } from "../../inet/ip.ts";
import { isSame } from "../../same.ts";
import { WEAVE_BRIDGE } from "../../weave/host.ts";
import type { WeaveReport } from "../../weave/report.ts";
import { claimAddress, ownerAddresses, releaseAddresses } from "../../weave/router.ts";
import type { Context } from "../layers/layer.ts";
import type { Attachment, Both, NetworkFact } from "../record/attachment.ts";
import { elsewhere } from "../record/elsewhere.ts";
import { nameOfId, namesBeside } from "../record/ids.ts";
import { bridgeNames, type HostPaths } from "../record/paths.ts";
import { attachedSide, readVm, readVms, readVmsNaming } from "../record/store.ts";
import type { Host } from "../session.ts";
import type { Difference } from "../types.ts";
import type { WantedNetwork } from "./driver.ts";
import { allocatedByWeave } from "./plan.ts";
import { readyRouter } from "./weave-router.ts";

/** Where the router keeps what it has given, as the documentation has it. */
const ROUTER_DATA = "/var/lib/weave/weave-netdata.db";
/** How long the router may take where its answer only tells something. */
const GLANCE_MS = 1000;
/** How long what a session has heard of the router holds. */
const HEARD_MS = 5000;

/**
 * Makes sure that the next ADD for an interface gives the address that is wanted: that of the request,
 * or the one that it had. Every step pushes its undo.
 *
 * @throws {TapkitError} when the router does not answer, or gives out no addresses; when the address of a
 * request is another one's, or is not of its range
 */
export async function claimWanted(
  context: Context<Both>,
  to: Both,
  { index, before }: WantedNetwork,
): Promise<void> {
  const { host, undo } = context;
  const { signal } = host;
  const { containerId } = to.facts.networks[index]!.attachment;
  const had = before?.link?.addresses[0]?.address;
  const asked = had ?? (index === 0 ? to.spec.ip : undefined);
  await context.outside(async () => {
    const ipam = await heard(host).catch((error) => {
      // Nobody is there: the plugin says so, too, and would know better.
      if (isAbsent(error) && (asked === undefined || had !== undefined)) return undefined;
      throw error;
    });
    if (ipam === undefined || asked === undefined) return;
    const cidr = inRange(asked, ipam.range);
    if (cidr instanceof TapkitError) {
      if (had === undefined) throw cidr;
      // Another range was chosen meanwhile. It gives another address then.
      return;
    }
    const owners = await ownerAddresses({ signal });
    const owned = owners.get(containerId) ?? [];
    if (isSame(owned, [cidr])) return;
    // Of two, ADD may give either.
    if (owned.length > 0) await releaseAddresses(containerId, { signal });
    if (had === undefined) {
      undo.push(`the address ${cidr} of Weave Net`, () => releaseAddresses(containerId));
    }
    try {
      if (had !== undefined) await releaseUnnamed(owners, cidr, signal);
      await claimAddress(containerId, cidr, { signal });
    } catch (error) {
      if (!isRefusal(error)) throw error;
      if (had === undefined) throw heldBy(host, error, cidr);
      // Whichever it gives now, the caller compares.
      host.note(`warning: ${explain(host, error)}`);
    }
  });
}

/**
 * Tells the router which addresses the recorded VMs have, where it does not know them.
 *
 * @returns the VMs whose addresses it did not know
 * @throws {TapkitError} when it does not answer
 */
async function claimRecorded(host: HostPaths): Promise<string[]> {
  const { signal } = host;
  const owners = await ownerAddresses({ signal });
  const told: string[] = [];
  for (const each of [host, ...elsewhere(host)]) {
    const recorded = readVms(each, namesBeside(each, owners.keys()).toSorted())
      .flatMap(addressesOn);
    // One that was attached meanwhile is known by now.
    const now = recorded.length === 0 ? owners : await ownerAddresses({ signal });
    for (const { name, containerId, cidr } of recorded) {
      if (now.get(containerId)?.includes(cidr)) continue;
      try {
        await releaseUnnamed(now, cidr, signal);
        await claimAddress(containerId, cidr, { signal });
        told.push(name);
      } catch (error) {
        if (!isRefusal(error)) throw error;
        const why = explain(host, error);
        host.note(`warning: VM "${name}" has the address ${addressOf(cidr)}, but ${why}`);
        continue;
      }
      // What was removed meanwhile had nothing to give back.
      if (attachedSide(readVm(each, name)) === undefined) await releaseAddresses(containerId);
    }
  }
  return told;
}

/**
 * Gives an address back that the router has found in use when it started without its data. It goes by
 * the address itself there, because the router cannot know whose it is.
 */
async function releaseUnnamed(
  owners: ReadonlyMap<string, readonly string[]>,
  cidr: string,
  signal?: AbortSignal,
): Promise<void> {
  if (owners.has(addressOf(cidr))) await releaseAddresses(addressOf(cidr), { signal });
}

/** After DEL: gives back what the router has of a VM under no name. */
export async function releaseFound({ link }: NetworkFact): Promise<void> {
  try {
    const owners = await ownerAddresses({ timeoutMs: GLANCE_MS });
    for (const { address } of link?.addresses ?? []) await releaseUnnamed(owners, address);
  } catch (error) {
    // Then DEL has failed as well, and comes again.
    if (!(error instanceof WeaveError)) throw error;
  }
}

/**
 * The addresses of a VM that its router does not take for the VM's. A router that does not answer is
 * asked by who needs it.
 */
export async function findForgotten(
  { host: { signal }, outside }: Context<Both>,
  at: Both,
): Promise<Difference[]> {
  const own = addressesOn({ is: "attached", at });
  let owners: ReadonlyMap<string, readonly string[]>;
  try {
    owners = await outside(() => ownerAddresses({ signal, timeoutMs: GLANCE_MS }));
  } catch (error) {
    if (error instanceof WeaveError) return [];
    throw error;
  }
  return own.filter(({ containerId, cidr }) => !owners.get(containerId)?.includes(cidr))
    .map(({ cidr }): Difference => {
      const address = addressOf(cidr);
      const [holder] = [...owners].find(([, cidrs]) => cidrs.includes(cidr)) ?? [];
      const problem = holder === undefined
        ? "is free for"
        : holder === address
        ? "is in use by nobody that is known to"
        : `is that of ${holder} for`;
      return {
        layer: "network",
        object: `the address ${address}`,
        problem: `${problem} Weave Net's router`,
        repair: holder === undefined || holder === address ? "live" : "none",
      };
    });
}

/** What an attached VM has of Weave Net. */
function addressesOn(stored: Attachment) {
  const at = attachedSide(stored);
  if (at === undefined) return [];
  const { spec: { id: { name } }, facts: { networks } } = at;
  return networks.filter(({ attachment }) => allocatedByWeave(attachment))
    .flatMap(({ attachment: { containerId }, link }) =>
      (link?.addresses ?? []).map(({ address: cidr }) => ({ name, containerId, cidr }))
    );
}

/** What the router says of its addresses. */
type Ipam = WeaveReport["ipam"];

/** What a session has heard of the router, and when. */
class Heard implements Disposable {
  at = -Infinity;
  ipam!: Promise<Ipam>;

  [Symbol.dispose](): void {}
}

/**
 * Waits until the router gives out addresses, and knows those that the VMs have: once for all that are
 * attached together.
 */
function heard(host: Host): Promise<Ipam> {
  const last = host.session.keep("Weave Net's router", () => new Heard());
  if (Date.now() - last.at > HEARD_MS) {
    last.at = Date.now();
    last.ipam = listen(host);
  }
  return last.ipam;
}

async function listen(host: Host): Promise<Ipam> {
  const { ipam } = await readyRouter(host);
  noteTold(host, await claimRecorded(host));
  return ipam;
}

/** Tells the router the addresses that it has forgotten, where it answers. */
export async function tellForgotten(host: HostPaths): Promise<void> {
  try {
    noteTold(host, await claimRecorded(host));
  } catch (error) {
    if (!(error instanceof WeaveError)) throw error;
  }
}

function noteTold({ note }: HostPaths, told: readonly string[]): void {
  if (told.length === 0) return;
  const many = told.length > 1;
  note(
    `Weave Net's router had forgotten the address${many ? "es" : ""} of ${told.join(", ")}: ` +
      `it knows ${many ? "them" : "it"} again`,
  );
}

/** Whether VMs or the bridge of Weave Net are recorded. */
export function usesWeave(host: HostPaths): boolean {
  return bridgeNames(host).includes(WEAVE_BRIDGE) ||
    readVmsNaming(host, ['"weave-net"']).some((stored) => addressesOn(stored).length > 0);
}

/**
 * Whether what failed at DEL is over: neither the router is there nor its data, so that nobody has the
 * address any more.
 */
export function isForgotten(failures: readonly Error[], { note, binDirs }: HostPaths): boolean {
  const isGone = failures.length > 0 && !isThere(ROUTER_DATA) &&
    failures.every((error) =>
      error instanceof CniError && error.plugin === "weave-net" &&
        /connection refused/i.test(error.message) ||
      !binDirs.some((directory) => isThere(`${directory}/weave-net`))
    );
  if (isGone) note("Weave Net and its data are gone from this host: no address is given back");
  return isGone;
}

/** An address with the length of the range's prefix, or why it is not the router's to give. */
function inRange(asked: string, range: string): string | TapkitError {
  const { address, prefixLength } = parseCidr(asked.includes("/") ? asked : `${asked}/32`);
  const all = parseCidr(range);
  const length = asked.includes("/") ? prefixLength : all.prefixLength;
  if (!cidrContains(all, address)) {
    return new TapkitError(`${address} is not of Weave Net's range ${range}`, {
      mend: "ask for an address of that, or leave --ip out",
    });
  }
  if (length === all.prefixLength) return `${address}/${length}`;
  return new TapkitError(`Weave Net's addresses have the prefix length ${all.prefixLength}`, {
    mend: `write --ip ${address}`,
  });
}

/** Whether nothing listens where the router does. */
function isAbsent(error: unknown): boolean {
  return error instanceof WeaveError && error.cause instanceof Deno.errors.ConnectionRefused;
}

/** Whether the router answered that it does not give an address, as it does for several reasons. */
function isRefusal(error: unknown): error is WeaveError {
  return error instanceof WeaveError && error.status === 400;
}

const OWNER = /is already owned by (\S+)/;

function heldBy(host: HostPaths, error: WeaveError, cidr: string): TapkitError {
  const vm = vmOf(host, error);
  return new TapkitError(`it cannot have ${addressOf(cidr)}: ${explain(host, error)}`, {
    mend: "ask for another address" + (vm === undefined ? "" : `, or run attach-vm ${vm} --remove`),
    cause: error,
  });
}

/** Why the router does not give an address, with the VM's name in place of its container id. */
function explain(host: HostPaths, error: WeaveError): string {
  const [, owner] = OWNER.exec(error.message) ?? [];
  if (owner === undefined) return describe(error);
  const vm = vmOf(host, error);
  if (vm !== undefined) return `Weave Net gave it to VM "${vm}"`;
  if (owner === "weave:expose") return "it is that of Weave Net's bridge";
  return `Weave Net gave it to container ${owner}`;
}

function vmOf(host: HostPaths, { message }: WeaveError): string | undefined {
  const [, owner] = OWNER.exec(message) ?? [];
  return owner && nameOfId(host, owner);
}
