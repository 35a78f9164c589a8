/**
 * The kernel's settings that guests need: set with the first, put back with the last.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import type { Firewall } from "../firewall/firewall.ts";
import { Journal } from "../firewall/journal.ts";
import type { GuestRules } from "../firewall/model.ts";
import type { LinkPair } from "../firewall/guest-elements.ts";
import type { FirewallKind } from "../firewall/store.ts";
import {
  checkNeeded,
  FORWARDING,
  isLocalnet,
  neededSysctls,
  returnSysctls,
  setSysctls,
  type Sysctl,
  type SysctlOptions,
} from "../firewall/sysctls.ts";
import type { PortMapping } from "../inet/ports.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { linkTowards } from "../netlink/route.ts";
import { readSysctl } from "../sys/sysctl.ts";
import type { Host } from "./session.ts";
import { isVersioned, RULES_SHAPE } from "./shape.ts";
import { addressesDir, addressNames, type HostPaths, recordNames } from "./host-paths.ts";
import { readJson, readRecord } from "./state.ts";
import type { AttachRequest } from "./types.ts";

/** What the settings of a VM's links depend on. */
export function sysctlOptions(
  guests: readonly GuestRules[],
  { antispoof = true }: Pick<AttachRequest, "antispoof">,
): SysctlOptions {
  return { asymmetric: guests.length > 1 && !antispoof };
}

/**
 * Sets what the rules need of the kernel, and says what was changed. Where that is forwarding, what is
 * no guest's goes on not being forwarded.
 */
export async function bringSettings(
  host: Host,
  guests: readonly GuestRules[],
  { firewall, request = {}, fresh = false, shown }: {
    /** Has the guests' rules. */
    readonly firewall: Firewall;
    readonly request?: Pick<AttachRequest, "antispoof">;
    /** Whether nothing is being mended. */
    readonly fresh?: boolean;
    /** All ports of the VM, where plugins publish some. */
    readonly shown?: readonly PortMapping[] | undefined;
  },
): Promise<void> {
  const { nl } = host.session;
  const apart = await keepApart(nl, guests, { firewall, mends: !fresh || firewall.remade });
  const options = {
    ...sysctlOptions(guests, request),
    apart,
    // The journal is lost, or an older version kept none.
    wasOpened: (link: string) => {
      const path = `net/ipv4/conf/${link}/route_localnet`;
      return [...recordedNeeds(host)].some(({ paths }) => paths.includes(path));
    },
  };
  const changes = setSysctls(nl, needsOf(guests, { request, shown }), options);
  for (const change of changes) host.note(`set ${change}`);
}

/** Keeps links apart that forwarding would join: before it is turned on, and for as long as it is. */
async function keepApart(
  nl: NetlinkConnection,
  guests: readonly GuestRules[],
  { firewall, mends }: { readonly firewall: Firewall; readonly mends: boolean },
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
    if (turnsOn || joins || mends) firewall.keepApart(family, kept);
    all[path] = kept;
  }
  return all;
}

/** Does what executes plugins of others; what they change is taken for tapkit's doing. */
export async function guardSettings<T>(
  host: Host,
  options: { readonly firewall: Firewall; readonly publishes: boolean },
  run: () => Promise<T>,
): Promise<T> {
  const { watchPlugins } = await import("./plugin-settings.ts");
  return await watchPlugins(host, options, run);
}

/** What guests need; of what a plugin opened for its ports, what the journal has. */
function needsOf(
  guests: readonly GuestRules[],
  { request = {}, shown }: {
    readonly request?: Pick<AttachRequest, "antispoof">;
    readonly shown?: readonly PortMapping[] | undefined;
  },
): Sysctl[] {
  const options = sysctlOptions(guests, request);
  const needed = guests.flatMap((rules) => neededSysctls(rules, options));
  const [first] = guests;
  if (shown === undefined || first === undefined) return needed;
  const known = new Journal().read();
  const opened = neededSysctls({ ...first, ports: shown })
    .filter(({ path }) => isLocalnet(path) && path in known);
  return [...needed, ...opened];
}

/** A sentence for each setting that the rules need and the kernel has not. */
export function checkSettings(
  { session: { nl } }: Host,
  guests: readonly GuestRules[],
  { firewall, ...options }: {
    readonly firewall: Firewall;
    readonly request?: Pick<AttachRequest, "antispoof">;
    readonly shown?: readonly PortMapping[] | undefined;
  },
): string[] {
  const needed = new Set(guests.flatMap((rules) => pathsOf(rules)));
  const known = new Journal().read();
  return [
    ...checkNeeded(nl, needsOf(guests, options)),
    ...FORWARDING.flatMap(({ family, path }) =>
      needed.has(path) ? firewall.checkApart(family, known[path]?.apart ?? []) : []
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

/** What every recorded guest needs, as it is asked for: the first few may do. */
function* recordedNeeds(
  host: HostPaths,
): Generator<{ readonly owner: string; readonly paths: readonly string[] }> {
  for (const name of recordNames(host)) {
    const record = tolerate(() => readRecord(host, name));
    if (record === undefined) continue;
    const options = sysctlOptions(record.made.guests, record.made.request);
    // A plugin that publishes ports opens links too.
    const [first, ...others] = record.made.guests;
    const guests = first === undefined ? [] : [{ ...first, ports: record.ports }, ...others];
    for (const { plugins } of record.made.networks) {
      // Forwarding is what they turned on, whether the rules tell of it or not.
      if (!plugins.some(({ implementation }) => implementation === "exec")) continue;
      yield { owner: `${name}/`, paths: FORWARDING.map(({ path }) => path) };
    }
    for (const rules of guests) yield { owner: rules.owner, paths: pathsOf(rules, options) };
  }
  for (const to of addressNames(host)) {
    const path = `${addressesDir(host)}/${to}.json`;
    const rules = tolerate(() => readJson(path, hasRules, ""))?.rules;
    if (rules !== undefined) yield { owner: rules.owner, paths: pathsOf(rules) };
  }
}

function hasRules(value: unknown): value is { readonly rules: GuestRules } {
  return isVersioned(value, { rules: RULES_SHAPE });
}

/** Of a record that cannot be read the kernel may have the rules. */
function tolerate<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof TapkitError) return undefined;
    throw error;
  }
}

/** The kernel does not tell by which link those are reached that are no guests of tapkit's. */
function present(nl: NetlinkConnection, firewall: Firewall): GuestRules[] {
  return firewall.listGuests().map((rules) => {
    const [address] = rules.addresses;
    return rules.link !== "" || address === undefined
      ? rules
      : { ...rules, link: linkTowards(nl, address) ?? "" };
  });
}
