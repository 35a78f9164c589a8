/**
 * The chains in which the reference plugins masquerade, which their CHECK does not look at: when
 * somebody has flushed the rules, attaching again has to see it, and puts them back as they were.
 *
 * @module
 */

import type { Finding } from "../finding.ts";
import { chainHasRules } from "../firewall/survey.ts";
import { parseCidr } from "../inet/ip.ts";
import { openNetfilter } from "../netlink/conntrack.ts";
import { currentNetns } from "../sys/netns.ts";
import type { NetworkAttachment } from "./plan.ts";

const FAMILIES = ["ip", "ip6"] as const;
const MULTICAST = { 4: "224.0.0.0/4", 6: "ff00::/8" } as const;
/** As many of its characters as the old iptables takes. */
const CHAIN_LENGTH = 28;

/**
 * A chain's name as the reference plugins form it.
 *
 * @param prefix `"CNI-"` where it masquerades, `"CNI-DN-"` where it publishes ports
 */
export async function chainName(
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
  return FAMILIES.filter((family) => chainHasRules(nl, { family, name: "nat" }, chain));
}

/** The chains that were there when it was attached, and are no more. */
export async function checkMasquerade(attachment: NetworkAttachment): Promise<Finding[]> {
  const missing = await findMissing(attachment);
  if (missing.length === 0) return [];
  const chain = await chainName(attachment);
  return missing.map((family) => ({
    object: `network "${attachment.network}"`,
    problem: `lacks the chain ${chain} with its rules in table "${family} nat", which masquerades`,
  }));
}

/**
 * Puts back what is missing of the chains, and what leads to them, as the reference plugins make
 * it, and their DEL looks for it.
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
