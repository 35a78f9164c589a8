/**
 * The kernel settings that guests' rules need beside the rules, in the current network namespace.
 *
 * What a link needs is set on the link: what it inherits from `conf.default` is anybody's guess. What
 * was changed goes back with the last guest that needs it.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import type { Finding } from "../finding.ts";
import { isIp, isLoopback } from "../inet/ip.ts";
import { isWildcard, type PortMapping } from "../inet/ports.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { getLink, requireLink } from "../netlink/link.ts";
import { readSysctl, writeSysctl } from "../sys/sysctl.ts";
import { type Changes, Journal, type Setting } from "./journal.ts";
import { addLoopbackDrop, hasIngress, hasLoopbackDrop, removeLoopbackDrop } from "./loopback.ts";
import type { GuestRules } from "./model.ts";
import type { LinkPair } from "./guest-elements.ts";

/** A setting that is needed. */
export interface Sysctl extends Setting {
  /** The link it is of. */
  readonly link?: string;
}

/** What else is to be known of a guest. */
export interface SysctlOptions {
  /**
   * Whether the guest may answer by another link than it was asked by: it has several, and is not
   * held to its own addresses on each. A strict reverse path filter would drop the answers.
   */
  readonly asymmetric?: boolean;
}

/** How settings are changed. */
export interface ChangeOptions extends SysctlOptions {
  readonly journal?: Journal;
  /**
   * Whether a link that is open to 127.0.0.0/8, of which the journal knows nothing, was opened by
   * tapkit all the same.
   */
  readonly wasOpened?: (link: string) => boolean;
  /** By settings of forwarding: the links that are kept apart when it is turned on. */
  readonly apart?: Readonly<Record<string, readonly LinkPair[]>>;
}

const IP_FORWARD = "net/ipv4/ip_forward";
const IP6_FORWARD = "net/ipv6/conf/all/forwarding";
/** The settings by which the host forwards. */
export const FORWARDING = [
  { family: 4, path: IP_FORWARD },
  { family: 6, path: IP6_FORWARD },
] as const;
const REDIRECTS = "net/ipv4/conf/all/accept_redirects";
const ROUTE_LOCALNET = "route_localnet";

/** What the rules need, whatever the kernel has. */
export function neededSysctls(
  rules: GuestRules,
  { asymmetric = false }: SysctlOptions = {},
): Sysctl[] {
  const { addresses, link, ports, relayed = false, whole = false } = rules;
  if (whole) return [{ path: IP_FORWARD, value: "1" }];
  const needed: Sysctl[] = [];
  // Whose network asks nothing of the firewall is nothing to the host's forwarding either.
  if (link === "" && ports.length === 0) return needed;
  // The link of an address that is not a guest of tapkit is left to the host.
  const shared = link !== "" && !relayed;
  const ofLink = (family: 4 | 6, name: string, value: string) =>
    needed.push({ path: `net/ipv${family}/conf/${link}/${name}`, value, link });
  if (addresses.some((address) => isIp(address) === 4)) {
    needed.push({ path: IP_FORWARD, value: "1" });
    if (shared) {
      ofLink(4, "forwarding", "1");
      ofLink(4, "arp_ignore", "0");
    }
    if (link !== "" && asymmetric) ofLink(4, "rp_filter", "2");
    // Packets from 127.0.0.1 leave by this link, and their answers come back by it.
    if (link !== "" && ports.some(listensOnLoopback)) ofLink(4, ROUTE_LOCALNET, "1");
  }
  if (addresses.some((address) => isIp(address) === 6)) {
    if (shared) ofLink(6, "disable_ipv6", "0");
    needed.push({ path: IP6_FORWARD, value: "1" });
    // Else the host's neighbour advertisements say that it is not a router.
    if (shared) ofLink(6, "forwarding", "1");
  }
  return needed;
}

function listensOnLoopback({ hostIP }: PortMapping): boolean {
  return hostIP === "::" ? false : isWildcard(hostIP) || isLoopback(hostIP);
}

/**
 * Sets those that are not set, one after the other. With IPv6 forwarding, interfaces that took
 * router advertisements go on taking them, the guests' own link excepted. A link is opened to
 * 127.0.0.0/8 only behind a filter that keeps the host's loopback servers closed.
 *
 * Equivalent to: `sysctl -w net.ipv4.ip_forward=1 net.ipv4.conf.LINK.forwarding=1 …`
 *
 * @returns the settings changed: `"net.ipv4.ip_forward=1"`
 * @throws {TapkitError} when one cannot be written
 */
export function setSysctls(
  nl: NetlinkConnection,
  needed: readonly Sysctl[],
  { journal = new Journal(), wasOpened = () => false, apart = {} }: ChangeOptions = {},
): string[] {
  const guestLinks = needed.flatMap(({ link }) => link ?? []);
  return needed.flatMap((sysctl) => {
    const set = isSet(sysctl);
    if (isLocalnet(sysctl.path)) return openLoopback(nl, sysctl, set, { journal, wasOpened });
    return set ? [] : change(nl, sysctl, { guestLinks, journal, apart });
  });
}

/** Those of these settings that the kernel has not. */
export function checkNeeded(nl: NetlinkConnection, needed: readonly Sysctl[]): Finding[] {
  return needed.flatMap((sysctl) => [
    ...isSet(sysctl)
      ? []
      : [{ object: `the sysctl ${describeSysctl(sysctl)}`, problem: "is not set" }],
    ...isLocalnet(sysctl.path) ? checkDrop(nl, sysctl.link!) : [],
  ]);
}

function checkDrop(nl: NetlinkConnection, link: string): Finding[] {
  const index = getLink(nl, link)?.index;
  if (index === undefined || hasLoopbackDrop(nl, index)) return [];
  const object = `the filter of "${link}" that keeps 127.0.0.0/8 closed`;
  return [{ object, problem: "is missing" }];
}

/**
 * Puts settings back to what they were, where tapkit changed them.
 *
 * @param paths of the settings that nobody needs any more
 */
export function returnSysctls(
  nl: NetlinkConnection,
  paths: ReadonlySet<string>,
  { journal = new Journal() }: ChangeOptions = {},
): void {
  const changes = Object.entries(journal.read()).filter(([path]) => paths.has(path));
  for (const [path, { link, back, qdisc }] of changes.toReversed()) {
    const stays = link === undefined || getLink(nl, link.name)?.index === link.index;
    if (stays) { for (const { path, value } of back) writeSysctl(path, value); }
    if (stays && isLocalnet(path)) removeLoopbackDrop(nl, link!.index, { qdisc });
    journal.forget(path);
  }
}

function change(
  nl: NetlinkConnection,
  sysctl: Sysctl,
  { guestLinks, journal, apart }: Required<Pick<ChangeOptions, "journal" | "apart">> & {
    readonly guestLinks: readonly string[];
  },
): string[] {
  const { path, link } = sysctl;
  const was = readSysctl(path);
  // The kernel has no such setting: writing it says so.
  if (was === undefined) return [write(sysctl)];
  const known = journal.read();
  const before = path === IP6_FORWARD ? keepRouterAdvertisements(guestLinks) : [];
  const back = [...backOf(path, was), ...before.map((one) => ({ ...one, value: "1" }))];
  const of = link === undefined ? {} : { link: { name: link, index: requireLink(nl, link).index } };
  if (!isKnown(known, path, of.link?.index)) {
    journal.remember(path, { ...of, back, ...path in apart ? { apart: apart[path]! } : {} });
  }
  return [...before, sysctl].map(write);
}

/** What is to be written when a setting goes back. */
function backOf(path: string, was: string): Setting[] {
  return [
    { path, value: was },
    ...path === IP_FORWARD ? [{ path: REDIRECTS, value: readSysctl(REDIRECTS) ?? "1" }] : [],
    ...path === IP_FORWARD ? forwardingLinks(4) : path === IP6_FORWARD ? forwardingLinks(6) : [],
  ];
}

/** Writes down that forwarding, which is off, may be turned on by somebody that tapkit has run. */
export function expectForwarding(
  path: string,
  apart: readonly LinkPair[],
  journal = new Journal(),
): void {
  journal.remember(path, { back: backOf(path, "0"), apart });
}

/** The links that are open to 127.0.0.0/8 by a setting of their own. */
export function openLinks(): string[] {
  return [...Deno.readDirSync("/proc/sys/net/ipv4/conf")].map(({ name }) => name)
    .filter((name) => readSysctl(localnetOf(name)) === "1" && !["all", "default"].includes(name));
}

/** The journal's name for what was open before plugins of others ran. */
const OPENING = "links that plugins open";

/** Writes down which links are open, before somebody that tapkit runs may open others. */
export function expectOpen(open: readonly string[], journal = new Journal()): void {
  if (!(OPENING in journal.read())) journal.remember(OPENING, { back: [], open });
}

/**
 * Takes links that were opened since {@linkcode expectOpen} for ones that tapkit opened; a call that was
 * killed may not have.
 *
 * @param before the links that were open, where the journal has lost it
 */
export function adoptOpened(
  nl: NetlinkConnection,
  before?: readonly string[],
  journal = new Journal(),
): void {
  const { [OPENING]: expected } = journal.read();
  const open = expected?.open ?? before;
  if (open === undefined) return;
  for (const link of openLinks()) if (!open.includes(link)) adoptOpenLink(nl, link, journal);
  if (expected !== undefined) journal.forget(OPENING);
}

/** Takes a link that somebody has opened to 127.0.0.0/8 for one that tapkit did. */
function adoptOpenLink(nl: NetlinkConnection, link: string, journal: Journal): void {
  const sysctl = { path: localnetOf(link), value: "1", link };
  openLoopback(nl, sysctl, true, { journal, wasOpened: () => true });
}

const localnetOf = (link: string) => `net/ipv4/conf/${link}/${ROUTE_LOCALNET}`;

function isKnown(changes: Changes, path: string, index: number | undefined): boolean {
  const known = changes[path];
  return known !== undefined && known.link?.index === index;
}

/** The links that forward already: the setting of all sets each one's, both ways. */
function forwardingLinks(family: 4 | 6): Setting[] {
  return [...Deno.readDirSync(`/proc/sys/net/ipv${family}/conf`)]
    .map(({ name }) => ({ path: `net/ipv${family}/conf/${name}/forwarding`, value: "1" }))
    .filter(({ path, value }) => readSysctl(path) === value);
}

/** accept_ra 1 means "unless forwarding", 2 "also then". */
function keepRouterAdvertisements(guestLinks: readonly string[]): Sysctl[] {
  const sysctls: Sysctl[] = [];
  for (const { name } of Deno.readDirSync("/proc/sys/net/ipv6/conf")) {
    if (["all", "default", "lo", ...guestLinks].includes(name)) continue;
    const path = `net/ipv6/conf/${name}`;
    if (readSysctl(`${path}/accept_ra`) !== "1" || readSysctl(`${path}/forwarding`) !== "0") {
      continue;
    }
    sysctls.push({ path: `${path}/accept_ra`, value: "2" });
  }
  return sysctls;
}

/** Whether a setting opens a link to 127.0.0.0/8. */
export function isLocalnet(path: string): boolean {
  return path.endsWith(`/${ROUTE_LOCALNET}`);
}

/** Opens a link to 127.0.0.0/8, behind the filter that closes it to what arrives. */
function openLoopback(
  nl: NetlinkConnection,
  sysctl: Sysctl,
  set: boolean,
  { journal, wasOpened }: Required<Pick<ChangeOptions, "journal" | "wasOpened">>,
): string[] {
  const { path, link: name = "" } = sysctl;
  const { index } = requireLink(nl, name);
  const known = journal.read();
  const isOurs = isKnown(known, path, index);
  if (set && isOurs && hasLoopbackDrop(nl, index)) return [];
  const qdisc = !hasIngress(nl, index) || (isOurs && known[path]!.qdisc === true);
  const back = isOurs ? known[path]!.back : set && !wasOpened(name) ? [] : [{ path, value: "0" }];
  journal.remember(path, { link: { name, index }, back, ...qdisc ? { qdisc } : {} });
  addLoopbackDrop(nl, index);
  return set ? [] : [write(sysctl)];
}

function isSet({ path, value }: Sysctl): boolean {
  const setting = path.slice(path.lastIndexOf("/") + 1);
  const [STRICT, SILENT] = ["1", "8"];
  // The kernel takes the greater of a link's own and that of all; of the filter 0 is none, 2 loose.
  const effective = () =>
    [readSysctl(path), readSysctl(`net/ipv4/conf/all/${setting}`)].sort().at(-1);
  if (setting === "rp_filter") return effective() !== STRICT;
  // Any other value answers for the gateway's address.
  if (setting === "arp_ignore") return readSysctl(path) !== SILENT;
  return readSysctl(path) === value;
}

function describeSysctl({ path, value }: Setting): string {
  // sysctl(8) writes a dot within a link's name as a slash.
  const parts = path.split("/").map((part) => part.replaceAll(".", "/"));
  return `${parts.join(".")}=${value}`;
}

function write(sysctl: Sysctl): string {
  if (writeSysctl(sysctl.path, sysctl.value)) return describeSysctl(sysctl);
  throw new TapkitError(`the sysctl ${describeSysctl(sysctl)} cannot be set`, {
    mend: sysctl.path.startsWith("net/ipv6")
      ? "use a kernel with IPv6, or a network without IPv6 addresses"
      : "check that the link is there",
  });
}
