/**
 * What the reference plugins do wrong, and how it is cured. Each fault was seen in version 1.1.1
 * (Debian's containernetworking-plugins); other plugins have some of them too. The steps of
 * tests/netns/cni-faults.test.ts have the numbers below. A step that fails with the oldest plugins
 * in use says that the fault is gone: then its cure can go.
 *
 * 1. bridge, ptp: CHECK does not look at the chains that masquerade for `ipMasq`, so nothing tells
 *    that they were flushed. Cure: {@linkcode findMasquerade} after ADD,
 *    {@linkcode checkMasquerade}, {@linkcode restoreMasquerade}.
 * 2. bridge, ptp: DEL learns from the interface for which addresses it has to delete rules. Without
 *    the namespace or the addresses the rules stay, and so does the host's end of the veth pair
 *    while a process keeps the namespace alive. Cure: {@linkcode lacksAddresses},
 *    {@linkcode removeRemains}.
 * 3. bridge, ptp: DEL deletes the interface, then fails because a rule is gone already. A second DEL
 *    succeeds: without the interface it looks for no rule. Cure: {@linkcode delTwice}.
 * 4. portmap: CHECK looks for the rules of an IPv4 address in ip6tables too; later versions do not.
 *    bridge: CHECK fails where there is no IPAM, or where sbr moved the routes. They fail right
 *    after ADD, so it says nothing. Cure: {@linkcode checkFirst}, {@linkcode rememberFailures}.
 * 5. dhcp before 1.2: each CHECK acquires another lease and renews it. Cure: {@linkcode checkFirst}
 *    does not ask it. tests/e2e/cni-dhcp.test.ts counts what the daemon acquires.
 *
 * This file is loaded when a plugin is executed, never for built-in ones alone.
 *
 * @module
 */

import { asError } from "../errors.ts";
import { type Finding, sentence } from "../finding.ts";
import { readIfThere, replaceFile } from "../files.ts";
import { parseCidr } from "../inet/ip.ts";
import { listAddresses } from "../netlink/address.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { openNetfilter } from "../netlink/nfnetlink.ts";
import { listRules } from "../netlink/nftables/objects.ts";
import { deleteLink, getLink } from "../netlink/link.ts";
import { currentNetns } from "../sys/netns.ts";
import { checkExecuted, delExecuted, type ExecutedPlugin, hasCheck } from "./executed.ts";
import {
  type ChainFinding,
  findPlugin,
  type MadeAttachment,
  type NetworkAttachment,
  type Outside,
  type PluginHost,
  type RecordedPlugin,
} from "./plan.ts";
import { CniError, type Result } from "./types.ts";

const FAMILIES = ["ip", "ip6"] as const;
const MULTICAST = { 4: "224.0.0.0/4", 6: "ff00::/8" } as const;
/** As many of its characters as the old iptables takes. */
const CHAIN_LENGTH = 28;

/**
 * A chain's name as the reference plugins form it.
 *
 * @param prefix `"CNI-"` where it masquerades, `"CNI-DN-"` where it publishes ports
 */
async function chainName(
  { network, containerId }: NetworkAttachment,
  prefix = "CNI-",
): Promise<string> {
  const bytes = new TextEncoder().encode(network + containerId);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-512", bytes));
  return `${prefix}${digest.toHex()}`.slice(0, CHAIN_LENGTH);
}

/**
 * In which of iptables' families, `"ip"` and `"ip6"`, an attachment has its chain, in the calling
 * thread's network namespace. Only nf_tables is looked at.
 */
export async function findMasquerade(
  attachment: NetworkAttachment,
): Promise<(typeof FAMILIES[number])[]> {
  if (!attachment.plugins.some(({ config }) => config.ipMasq === true)) return [];
  const chain = await chainName(attachment);
  using nl = openNetfilter();
  return FAMILIES.filter((family) => listRules(nl, { family, table: "nat", chain }).length > 0);
}

/** The chains that were there after ADD and are missing now. */
export async function checkMasquerade(attachment: NetworkAttachment): Promise<Finding[]> {
  const chain = await chainName(attachment);
  return (await findMissing(attachment)).map((family) => ({
    object: `network "${attachment.network}"`,
    problem: `lacks the chain ${chain} with its rules in table "${family} nat", which masquerades`,
  }));
}

/**
 * Puts back the chains that are missing, and the rules that jump to them, as the reference plugins
 * make them.
 *
 * @throws {TapkitError} when iptables is missing or refuses
 */
export async function restoreMasquerade(attachment: NetworkAttachment): Promise<void> {
  const missing = await findMissing(attachment);
  if (missing.length === 0) return;
  const { network, containerId, result } = attachment;
  const { Xtables } = await import("../firewall/xtables.ts");
  using netns = currentNetns();
  const xtables = new Xtables("nft", netns);
  const chain = await chainName(attachment);
  const comment = `-m comment --comment "name: \\"${network}\\" id: \\"${containerId}\\""`;
  for (const family of missing) {
    const version = family === "ip" ? 4 : 6;
    const own = (result?.ips ?? []).map(({ address }) => parseCidr(address))
      .filter((cidr) => cidr.family === version);
    const jumps = own.filter(({ address }) =>
      !xtables.save(version, "nat").includes(`-A POSTROUTING -s ${address}/`)
    );
    const lines = [
      ...own.flatMap(({ network, prefixLength }) => [
        `-A ${chain} -d ${network}/${prefixLength} ${comment} -j ACCEPT`,
        `-A ${chain} ! -d ${MULTICAST[version]} ${comment} -j MASQUERADE`,
      ]),
      ...jumps.map(({ address }) => `-A POSTROUTING -s ${address} ${comment} -j ${chain}`),
    ];
    const text = ["*nat", `:${chain} - [0:0]`, ...lines, "COMMIT", ""].join("\n");
    xtables.restore(version, text, `masquerade "${network}"`);
  }
}

async function findMissing(attachment: NetworkAttachment): Promise<(typeof FAMILIES[number])[]> {
  const { masquerade = [] } = attachment;
  if (masquerade.length === 0) return [];
  const present = await findMasquerade(attachment);
  return FAMILIES.filter((family) => masquerade.includes(family) && !present.includes(family));
}

/**
 * Whether an interface is gone, or lacks an address that it was given. In mode dhcp-bridge only the
 * guest has them.
 */
export function lacksAddresses(
  { ifName, result }: NetworkAttachment,
  vmNl: NetlinkConnection | undefined,
): boolean {
  const link = vmNl && getLink(vmNl, ifName);
  if (link === undefined || result === undefined) return true;
  const present = listAddresses(vmNl!, { index: link.index }).map(({ address }) => address);
  return result.ips.some(({ address }) => {
    const { address: ip, prefixLength } = parseCidr(address);
    return !present.includes(`${ip}/${prefixLength}`);
  });
}

/**
 * Deletes the host's ends of an attachment's veth pairs, all rules that name its container, and its
 * chains.
 *
 * @returns what failed
 */
export async function removeRemains(
  attachment: NetworkAttachment,
  hostNl: NetlinkConnection,
): Promise<Error[]> {
  const { containerId, result, seen } = attachment;
  const failures: Error[] = [];
  const step = (action: () => void) => {
    try {
      action();
    } catch (error) {
      failures.push(asError(error));
    }
  };
  const ends = (result?.interfaces ?? []).filter(({ sandbox = "" }) => sandbox === "");
  // Results before 0.3.1 may name none.
  for (const { name, mac } of [...ends, ...seen?.hostEnd === undefined ? [] : [seen.hostEnd]]) {
    step(() => {
      const link = getLink(hostNl, name);
      if (link?.kind === "veth" && link.mac === mac?.toLowerCase()) deleteLink(hostNl, link.index);
    });
  }
  const { removeRulesOf } = await import("../firewall/remains.ts");
  const chains = [await chainName(attachment), await chainName(attachment, "CNI-DN-")];
  step(() => removeRulesOf(containerId, chains));
  return failures;
}

/**
 * Runs DEL, and once more if the plugin fails by itself.
 *
 * @returns whether it took a second time, so that something may be left
 */
export async function delTwice(executed: ExecutedPlugin, prevResult?: Result): Promise<boolean> {
  try {
    await delExecuted(executed, prevResult);
    return false;
  } catch (error) {
    if (!(error instanceof CniError) || !error.refused) throw error;
  }
  await delExecuted(executed, prevResult);
  return true;
}

/** What is known of plugins, by {@linkcode keyOf}. */
type Verdicts = Readonly<Record<string, "passes" | "fails">>;

/** How many are remembered. */
const MAX_VERDICTS = 100;

/**
 * Asks CHECK of the plugins of an attachment right after ADD. One that fails then tells nothing when
 * it says the same later.
 *
 * A plugin is asked once as it is: its file, and how it is configured. That it passes is remembered
 * in `STATE/cni/checked.json`. One that fails is asked after each ADD, since what it says names the
 * attachment.
 *
 * @returns the attachment with what they said
 */
export async function checkFirst(
  attachment: MadeAttachment,
  { host, netns, note, outside = (act) => act() }: {
    readonly host: PluginHost;
    /** Executes each plugin without the caller's locks. */
    readonly outside?: Outside | undefined;
    /** The namespace's path. */
    readonly netns: string;
    note(text: string): void;
  },
): Promise<MadeAttachment> {
  const known = readVerdicts(host);
  const news: Record<string, "passes" | "fails"> = {};
  const asked: number[] = [];
  const findings: ChainFinding[] = [];
  for (const [place, plugin] of attachment.plugins.entries()) {
    if (plugin.implementation !== "exec" || !hasCheck(attachment, plugin)) continue;
    if (plugin.config.ipam?.type === "dhcp") continue;
    const key = await keyOf(attachment, plugin, host);
    asked.push(place);
    if (known[key] === "passes") continue;
    const executed = { attachment, plugin, host, netns };
    const found = await outside(() => checkExecuted(executed, attachment.result));
    if (found !== undefined) findings.push({ ...found, executed: place });
    const verdict = found === undefined ? "passes" : "fails";
    if (known[key] !== verdict) news[key] = verdict;
  }
  if (Object.keys(news).length > 0) writeVerdicts(host, { ...known, ...news });
  // Of one that is known to fail it was said before.
  const isNews = Object.values(news).includes("fails");
  return rememberFailures(attachment, asked, findings, isNews ? note : () => {});
}

/** A plugin's file, and its configuration without what differs by attachment. */
async function keyOf(
  { plugins, result }: MadeAttachment,
  { type, config }: RecordedPlugin,
  { binDirs }: PluginHost,
): Promise<string> {
  const path = findPlugin(type, binDirs) ?? "";
  const { size, mtime, ino } = path === "" ? {} : Deno.statSync(path);
  const { name: _, args: __, runtimeConfig = {}, ...written } = config;
  const families = result.ips.map(({ address }) => parseCidr(address).family);
  const text = JSON.stringify([
    [path, size, mtime, ino],
    plugins.map((plugin) => plugin.type),
    written,
    Object.keys(runtimeConfig),
    [...new Set(families)],
  ]);
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return new Uint8Array(digest).toHex().slice(0, 32);
}

function pathOf({ stateDir }: PluginHost): string {
  return `${stateDir}/cni/checked.json`;
}

function readVerdicts(host: PluginHost): Verdicts {
  try {
    const verdicts: unknown = JSON.parse(readIfThere(pathOf(host)) ?? "{}");
    return typeof verdicts === "object" && verdicts !== null ? verdicts as Verdicts : {};
  } catch {
    return {};
  }
}

/** The newest stay. The caller holds the host's lock. */
function writeVerdicts(host: PluginHost, verdicts: Verdicts): void {
  const entries = Object.entries(verdicts).slice(-MAX_VERDICTS);
  replaceFile(pathOf(host), JSON.stringify(Object.fromEntries(entries)));
}

/**
 * Records what CHECK says of plugins that were just added, so that it is ignored from then on. Where
 * this is new, `note` is told.
 *
 * @param places of the plugins in the chain
 */
export function rememberFailures<Attachment extends Pick<MadeAttachment, "plugins" | "network">>(
  attachment: Attachment,
  places: Iterable<number>,
  findings: readonly ChainFinding[],
  note: (text: string) => void,
): Attachment {
  const plugins = [...attachment.plugins];
  for (const place of places) {
    const { checkFailure: before, ...plugin } = plugins[place]!;
    const finding = findings.find(({ executed }) => executed === place);
    const found = finding && sentence(finding);
    plugins[place] = found === undefined ? plugin : { ...plugin, checkFailure: found };
    if (found === undefined || before !== undefined) continue;
    note(
      `warning: ${found}: it says so right after its ADD, so that counts for nothing from now on: ` +
        `set "disableCheck": true in network "${attachment.network}" to have it not asked at all`,
    );
  }
  return { ...attachment, plugins };
}
