/**
 * The chains in which the reference plugins masquerade, which their CHECK does not look at: when
 * somebody has flushed the rules, attaching again has to see it.
 *
 * @module
 */

import { chainExists } from "../firewall/survey.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { NETLINK } from "../netlink/message.ts";
import type { NetworkAttachment } from "./plan.ts";

const FAMILIES = ["ip", "ip6"] as const;
/** As many of its characters as the old iptables takes. */
const CHAIN_LENGTH = 28;

/** A chain's name as the reference plugins form it, of a network's name and a container's id. */
async function chainName({ network, containerId }: NetworkAttachment): Promise<string> {
  const bytes = new TextEncoder().encode(network + containerId);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-512", bytes));
  return `CNI-${digest.toHex()}`.slice(0, CHAIN_LENGTH);
}

/**
 * In which of iptables' families, `"ip"` and `"ip6"`, an attachment has its chain, in the calling
 * thread's network namespace. Only nf_tables is looked at.
 */
export async function findMasquerade(attachment: NetworkAttachment): Promise<string[]> {
  if (!attachment.plugins.some(({ config }) => config.ipMasq === true)) return [];
  const chain = await chainName(attachment);
  using nl = NetlinkConnection.open(NETLINK.NETFILTER);
  return FAMILIES.filter((family) => chainExists(nl, { family, name: "nat" }, chain));
}

/** Sentences on the chains that were there when it was attached, and are no more. */
export async function checkMasquerade(attachment: NetworkAttachment): Promise<string[]> {
  const { masquerade = [] } = attachment;
  if (masquerade.length === 0) return [];
  const present = await findMasquerade(attachment);
  const missing = masquerade.filter((family) => !present.includes(family));
  if (missing.length === 0) return [];
  const chain = await chainName(attachment);
  return missing.map((family) =>
    `network "${attachment.network}" lacks the chain ${chain} of table "${family} nat", ` +
    "which masquerades"
  );
}
