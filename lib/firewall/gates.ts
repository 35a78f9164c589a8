/**
 * Which firewalls of others guests' packets have to pass here.
 *
 * @module
 */

import type { NetlinkConnection } from "../netlink/connection.ts";
import type { Netns } from "../sys/netns.ts";
import type { Gate } from "./gate.ts";
import { IptablesGate } from "./iptables-gate.ts";
import { ClosedPorts, NftGate } from "./nft-gate.ts";
import { CLOSED_TABLE } from "./ruleset.ts";
import type { ForwardChain, Survey } from "./store.ts";
import { listForwardChains } from "./survey.ts";
import { installedVariants, Xtables } from "./xtables.ts";

/**
 * Finds the places where others may drop what is forwarded.
 *
 * @param netns stays open as long as the gates are used
 */
export function findGates(netns: Netns, nl: NetlinkConnection, survey: Survey): Gate[] {
  const { tables = [], legacy } = survey;
  const variants = installedVariants().filter((variant) =>
    (variant === "nft" ? tables : legacy).some(isFilter)
  );
  const gates: Gate[] = variants.map((variant) => new IptablesGate(new Xtables(variant, netns)));
  const chains = tables.some((table) => !isFilter(table))
    ? listForwardChains(nl).filter((chain) => isClosing(chain, variants.includes("nft")))
    : [];
  const closed = tables.some(({ name }) => name === CLOSED_TABLE);
  const firewalld = chains.some(({ table }) => table === "firewalld");
  gates.push(...chains.map((chain) => new NftGate(netns, chain)));
  if (firewalld || closed) gates.push(new ClosedPorts(netns, firewalld));
  return gates;
}

function isFilter({ family, name }: { readonly family: string; readonly name: string }): boolean {
  return name === "filter" && (family === "ip" || family === "ip6");
}

/** Whether a chain drops by policy, or as firewalld's does with its last rule. */
function isClosing(
  { family, table, chain, drops }: ForwardChain & { readonly drops: boolean },
  byIptables: boolean,
): boolean {
  if (table === "firewalld") return chain === "filter_FORWARD";
  return drops && !(byIptables && isFilter({ family, name: table }));
}
