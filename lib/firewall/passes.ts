/**
 * Finds the other firewalls that guests' packets have to pass on this host.
 *
 * An accept in tapkit's own table does not overrule a drop in another table. So the rules that let
 * guests pass are added to the other firewall, each with its owner's tag.
 *
 * @module
 */

import type { NetlinkConnection } from "../netlink/connection.ts";
import { NF } from "../netlink/nftables/constants.ts";
import { listChains, type NftTable } from "../netlink/nftables/objects.ts";
import type { Netns } from "../sys/netns.ts";
import { IptablesPasses } from "./iptables-passes.ts";
import type { GuestRules } from "./model.ts";
import { NftPasses } from "./nft-passes.ts";
import type { Place } from "./place.ts";
import { CLOSED_TABLE, TABLE } from "./ruleset.ts";
import type { Survey } from "./store.ts";
import { installedVariants, Xtables } from "./xtables.ts";

/** Other firewalls, as found at one moment. */
export interface OtherFirewalls {
  /** Places that close ports that another firewall would let pass. */
  readonly closing: readonly Place[];
  /** Places where forwarded packets may be dropped. */
  readonly passes: readonly Place[];
  /** Whether one of them drops forwarded packets by default. */
  drops(): boolean;
  /** The firewall that keeps published ports closed unless they are opened: `"ufw"`. */
  denies(): string | undefined;
}

/** What is looked at for other firewalls. */
export interface Surroundings extends Survey {
  readonly netns: Netns;
  readonly netfilter: NetlinkConnection;
}

/** Finds other firewalls. They come and go, so look again for each change. */
export function otherFirewalls(
  { netns, netfilter, tables: all = [], legacy }: Surroundings,
): OtherFirewalls {
  const tables = all.filter(({ name }) => !isOwn(name));
  const variants = tables.length + legacy.length === 0 ? [] : installedVariants().filter(
    (variant) => (variant === "nft" ? tables : legacy).some(isFilter),
  );
  const chains = tables.some((table) => !isFilter(table))
    ? listChains(netfilter).filter(({ family, table, chain, type, hook, policy }) =>
      type === "filter" && hook === NF.INET_FORWARD && ["inet", "ip", "ip6"].includes(family) &&
      // firewalld's chain drops with its last rule.
      (table === "firewalld" ? chain === "filter_FORWARD" : policy === NF.DROP &&
        !(variants.includes("nft") && isFilter({ family, name: table })))
    )
    : [];
  const firewalld = chains.some(({ table }) => table === "firewalld");
  const areOpen = ({ openPorts }: GuestRules) =>
    openPorts === true || others.denies() === undefined;
  const iptables = variants.map((variant) => new Xtables(variant, netns)).flatMap((xtables) =>
    ([4, 6] as const).map((family) => new IptablesPasses(xtables, family, areOpen))
  );
  const host = { netns, netfilter };
  const others: OtherFirewalls = {
    closing: firewalld || tables.some(({ name }) => name === CLOSED_TABLE)
      // Without firewalld, no port is closed.
      ? [NftPasses.closing(host, (rules) => !firewalld || rules.openPorts === true)]
      : [],
    passes: [...iptables, ...chains.map((chain) => NftPasses.through(host, chain, areOpen))],
    drops: () => chains.length > 0 || iptables.some(({ drops }) => drops),
    denies: () =>
      iptables.map(({ denies }) => denies).find(Boolean) ?? (firewalld ? "firewalld" : undefined),
  };
  return others;
}

/** Whether a table is tapkit's, and no place that {@linkcode otherFirewalls} returns. */
function isOwn(name: string): boolean {
  return name.startsWith(TABLE) && name !== CLOSED_TABLE;
}

function isFilter({ family, name }: NftTable): boolean {
  return name === "filter" && (family === "ip" || family === "ip6");
}
