/**
 * The kernel's settings that guests need: set with the first, put back with the last.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import type { Finding } from "../finding.ts";
import type { Firewall } from "../firewall/firewall.ts";
import { Journal } from "../firewall/journal.ts";
import type { GuestRules } from "../firewall/model.ts";
import type { LinkPair } from "../firewall/guest-elements.ts";
import type { FirewallKind } from "../firewall/store.ts";
import {
  adoptOpened,
  checkNeeded,
  FORWARDING,
  isLocalnet,
  neededSysctls,
  returnSysctls,
  setSysctls,
  type Sysctl,
  type SysctlOptions,
} from "../firewall/sysctls.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { linkTowards } from "../netlink/route.ts";
import { readSysctl } from "../sys/sysctl.ts";
import { servedAddress, servedBridge } from "./record/address.ts";
import { elsewhere } from "./record/elsewhere.ts";
import { eachRecord, perRecord } from "./record/memory.ts";
import { addressNames, bridgeNames } from "./record/paths.ts";
import { type Served, servedVm, shownRules } from "./record/served.ts";
import { readAddress, readBridge, sidesOf } from "./record/store.ts";
import type { Host } from "./session.ts";

/**
 * Sets what somebody's rules need of the kernel, and says what was changed. Where that is forwarding,
 * what is not a guest's is still not forwarded.
 *
 * @param repairs whether something is there already that may need repair
 */
export async function bringSettings(
  host: Host,
  served: Served,
  { firewall, repairs }: { readonly firewall: Firewall; readonly repairs: boolean },
): Promise<void> {
  const { nl } = host.session;
  const options = {
    apart: await keepApart(nl, served.guests, { firewall, repairs }),
    // The journal is lost, or an older version kept none.
    wasOpened: (link: string) => {
      const path = `net/ipv4/conf/${link}/route_localnet`;
      return [...recordedNeeds(host)].some(({ paths }) => paths.includes(path));
    },
  };
  const changes = setSysctls(nl, needsOf(served), options);
  for (const change of changes) host.note(`set ${change}`);
}

/** Keeps links apart that forwarding would join: before it is turned on, and for as long as it is. */
async function keepApart(
  nl: NetlinkConnection,
  guests: readonly GuestRules[],
  { firewall, repairs }: { readonly firewall: Firewall; readonly repairs: boolean },
): Promise<Readonly<Record<string, readonly LinkPair[]>>> {
  const needed = new Set(guests.flatMap((rules) => pathsOf(rules)));
  const links = guests.flatMap(({ link, relayed }) => relayed ? [] : link);
  const journal = new Journal();
  const known = journal.read();
  const all: Record<string, readonly LinkPair[]> = {};
  for (const { family, path } of FORWARDING) {
    if (!needed.has(path)) continue;
    let pairs = known[path]?.apart;
    const turnsOn = readSysctl(path) === "0";
    if (turnsOn && pairs === undefined) {
      const { findApart } = await import("../firewall/forwarding.ts");
      pairs = findApart(nl, family, links);
    }
    if (pairs === undefined) continue;
    // A network of guests may be a LAN's.
    const kept = pairs.filter((pair) => !pair.some((link) => links.includes(link)));
    const joins = kept.length < pairs.length;
    if (path in known && joins) journal.remember(path, { ...known[path]!, apart: kept });
    if (turnsOn || joins || repairs || firewall.isRemade(family)) firewall.keepApart(family, kept);
    all[path] = kept;
  }
  return all;
}

/** Does what executes plugins of others; what they change is taken for tapkit's doing. */
export async function guardSettings<T>(
  host: Host,
  options: { readonly firewall: FirewallKind; readonly publishes: boolean },
  run: () => Promise<T>,
): Promise<T> {
  const { watchPlugins } = await import("./plugin-settings.ts");
  return await watchPlugins(host, options, run);
}

/** What the rules need; of what a plugin opened for its ports, what the journal has. */
function needsOf(served: Served): Sysctl[] {
  const { guests: [first, ...others], asymmetric, shown } = served;
  if (first === undefined) return [];
  const needed = [first, ...others].flatMap((rules) => neededSysctls(rules, { asymmetric }));
  if (shown === undefined) return needed;
  const known = new Journal().read();
  const opened = neededSysctls({ ...first, ports: shown })
    .filter(({ path }) => isLocalnet(path) && path in known);
  return [...needed, ...opened];
}

/** The settings that somebody may need, those included that a plugin opens for its ports. Pure. */
export function settingsFor(served: Served): string[] {
  const { asymmetric } = served;
  const paths = shownRules(served).flatMap((rules) => pathsOf(rules, { asymmetric }));
  return [...new Set(paths)].sort();
}

/** A text that is the same for all that need the same settings. */
export function needsAsText(served: Served): string {
  return [...new Set(needsOf(served).map(({ path }) => path))].sort().join();
}

/** The settings that somebody's rules need and the kernel has not. */
export function checkSettings(
  { session: { nl } }: Host,
  served: Served,
  firewall: Firewall,
): Finding[] {
  const needed = new Set(served.guests.flatMap((rules) => pathsOf(rules)));
  const known = new Journal().read();
  return [
    ...checkNeeded(nl, needsOf(served)),
    ...FORWARDING.flatMap(({ family, path }) =>
      needed.has(path) ? firewall.differencesApart(family, known[path]?.apart ?? []) : []
    ),
  ];
}

/** Whose needs change, and how. */
export interface Leaving {
  /** Whether an owner's needs are none but those of `kept`, whatever is recorded. */
  readonly leaves?: (owner: string) => boolean;
  /** The rules that go; absent where they are not known. */
  readonly gone?: readonly GuestRules[];
  /** What stays of the same owners, or came. */
  readonly kept?: readonly GuestRules[];
  /** What the rules are made by. */
  readonly firewall?: FirewallKind;
}

/**
 * Puts back what nobody needs any more, neither by a record nor by rules in the kernel, which may be
 * of another state directory.
 */
export async function returnSettings(
  host: Host,
  { leaves = () => false, gone, kept = [], firewall: kind = "nftables" }: Leaving,
): Promise<void> {
  adoptOpened(host.session.nl);
  const candidates = new Set(Object.keys(new Journal().read()));
  if (candidates.size === 0) return;
  if (gone !== undefined) {
    const went = new Set(gone.flatMap((rules) => pathsOf(rules, { asymmetric: true })));
    for (const path of candidates) if (!went.has(path)) candidates.delete(path);
  }
  const keep = (paths: readonly string[]) => {
    for (const path of paths) candidates.delete(path);
    return candidates.size === 0;
  };
  if (keep(kept.flatMap((rules) => pathsOf(rules, { asymmetric: true })))) return;
  for (const { owner, paths } of recordedNeeds(host)) if (!leaves(owner) && keep(paths)) return;
  for (const firewall of await host.session.firewalls(kind)) {
    for (const rules of present(host.session.nl, firewall)) {
      if (!leaves(rules.owner) && keep(pathsOf(rules))) return;
    }
  }
  const firewalls = await host.session.firewalls(kind);
  const forwarding = FORWARDING.filter(({ path }) => candidates.has(path));
  if (forwarding.length > 0) await leaveForwarding(host, candidates);
  returnSysctls(host.session.nl, candidates);
  for (const { family } of forwarding) {
    for (const firewall of firewalls) firewall.keepApart(family, []);
  }
}

/** Leaves forwarding as it is where others rely on it by now: then it is theirs. */
async function leaveForwarding(host: Host, candidates: Set<string>): Promise<void> {
  const { reliesOnForwarding } = await import("../firewall/forwarding.ts");
  const reason = reliesOnForwarding(host.session.nl);
  if (reason === undefined) return;
  for (const { path } of FORWARDING) {
    if (!candidates.delete(path)) continue;
    new Journal().forget(path);
    host.note(`the sysctl ${path.replaceAll("/", ".")} stays 1: ${reason} may rely on it`);
  }
}

const pathsOf = (rules: GuestRules, options?: SysctlOptions) =>
  neededSysctls(rules, options).map(({ path }) => path);

/** Settings, by their paths, that somebody's rules need. */
interface Needs {
  readonly owner: string;
  readonly paths: readonly string[];
}

/** What every recorded guest needs, as it is asked for: the first few may do. */
function* recordedNeeds(
  host: Host,
): Generator<Needs> {
  // Of a record that cannot be read the kernel may have the rules.
  for (const [, attachment] of eachRecord(host, { note: () => {} })) yield* needsOfVm(attachment);
  for (const to of addressNames(host)) {
    const attachment = tolerate(() => readAddress(host, to));
    if (attachment !== undefined) yield* sidesOf(attachment).map(servedAddress).flatMap(needs);
  }
  // Of other state directories the kernel has the rest.
  for (const each of [host, ...elsewhere(host)]) {
    for (const link of bridgeNames(each)) {
      const attachment = tolerate(() => readBridge(each, link));
      if (attachment !== undefined) yield* sidesOf(attachment).map(servedBridge).flatMap(needs);
    }
  }
}

const needsOfVm = perRecord((attachment) => sidesOf(attachment).map(servedVm).flatMap(needs));

function needs(served: Served): Needs[] {
  const { asymmetric, executed, owners } = served;
  const own = shownRules(served).map((rules) => ({
    owner: rules.owner,
    paths: pathsOf(rules, { asymmetric }),
  }));
  if (!executed) return own;
  // Plugins of other makers turn forwarding on, even before anything is known of their guests.
  const forwarding = FORWARDING.map(({ path }) => path);
  return [...own, ...owners.map((owner) => ({ owner, paths: forwarding }))];
}

function tolerate<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof TapkitError) return undefined;
    throw error;
  }
}

/** The kernel does not tell by which link addresses that are not guests of tapkit are reached. */
function present(nl: NetlinkConnection, firewall: Firewall): GuestRules[] {
  return firewall.listGuests().map((rules) => {
    const [address] = rules.addresses;
    return rules.link !== "" || address === undefined
      ? rules
      : { ...rules, link: linkTowards(nl, address) ?? "" };
  });
}
