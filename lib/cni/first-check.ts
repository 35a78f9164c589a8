/**
 * CHECK of executed plugins right after their ADD: one that fails then tells nothing by it later.
 *
 * It is asked once of a plugin as it is: its file, and how it is configured. That those pass is
 * remembered, in `STATE/cni/checked.json`; one that failed is asked after each ADD, as what it says
 * names the attachment.
 *
 * @module
 */

import { sentence } from "../finding.ts";
import { readIfThere, replaceFile } from "../files.ts";
import { parseCidr } from "../inet/ip.ts";
import { checkExecuted, hasCheck } from "./executed.ts";
import { findPlugin, type MadeAttachment, type PluginHost, type RecordedPlugin } from "./plan.ts";
import { rememberFailures } from "./rerun.ts";
import type { ChainFinding } from "./runtime.ts";

/** What is known of plugins, each by what it was asked as. */
type Verdicts = Readonly<Record<string, "passes" | "fails">>;

/** How many are known at most. */
const MAX_VERDICTS = 100;

/**
 * Asks CHECK of an attachment's plugins that was just added, where it is not known what it says.
 *
 * @returns the attachment with what they said
 */
export async function checkFirst(
  attachment: MadeAttachment,
  { host, netns, note }: {
    readonly host: PluginHost;
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
    // Each of dhcp's starts another renewal of the lease, before version 1.2.
    if (plugin.config.ipam?.type === "dhcp") continue;
    const key = await keyOf(attachment, plugin, host);
    asked.push(place);
    if (known[key] === "passes") continue;
    const found = await checkExecuted({ attachment, plugin, host, netns }, attachment.result);
    if (found !== undefined) findings.push({ problem: sentence(found), executed: place });
    const verdict = found === undefined ? "passes" : "fails";
    if (known[key] !== verdict) news[key] = verdict;
  }
  if (Object.keys(news).length > 0) writeVerdicts(host, { ...known, ...news });
  // Of one that is known to fail it was said before.
  const isNews = Object.values(news).includes("fails");
  return rememberFailures(attachment, asked, findings, isNews ? note : () => {});
}

/** A plugin as it is: which file, and what its configuration is but for what differs by attachment. */
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
