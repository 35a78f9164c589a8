/**
 * Which firewalls of others guests' packets have to pass here.
 *
 * An accept in a table of tapkit's own does not overrule another table's drop, so the rules that
 * let guests pass stand in the other firewall, each with its owner's tag.
 *
 * @module
 */

import type { NetlinkConnection } from "../netlink/connection.ts";
import { NF } from "../netlink/nftables/constants.ts";
import { listChains, listTables, type NftTable } from "../netlink/nftables/objects.ts";
import { type Netns, withNetns } from "../sys/netns.ts";
import { IptablesPasses } from "./iptables-passes.ts";
import type { GuestRules } from "./model.ts";
import { NftPasses } from "./nft-passes.ts";
import type { Place } from "./place.ts";
import { CLOSED_TABLE, TABLE } from "./ruleset.ts";
import { installedVariants, legacyTables, Xtables } from "./xtables.ts";

/** The firewalls of others, as of one look. */
export interface OtherFirewalls {
  /** Where ports are closed that others would let pass. */
  readonly closing: readonly Place[];
  /** Where others may drop what is forwarded. */
  readonly passes: readonly Place[];
  /** Whether one drops what is forwarded unless it is let pass. */
  drops(): boolean;
  /** What keeps published ports closed to other machines unless they are opened: `"ufw"`. */
  denies(): string | undefined;
}

/** Finds the firewalls of others. They come and go: nobody remembers them for long. */
export function otherFirewalls(netns: Netns, nl: NetlinkConnection): OtherFirewalls {
  const tables = (listTables(nl) ?? []).filter(({ name }) => !isOwn(name));
  const legacy = withNetns(netns, legacyTables);
  const variants = tables.length + legacy.length === 0 ? [] : installedVariants().filter(
    (variant) => (variant === "nft" ? tables : legacy).some(isFilter),
  );
  const chains = tables.some((table) => !isFilter(table))
    ? listChains(nl).filter(({ family, table, chain, type, hook, policy }) =>
      type === "filter" && hook === NF.INET_FORWARD && ["inet", "ip", "ip6"].includes(family) &&
      // firewalld's drops with its last rule.
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
  const host = { netns, nl };
  const others: OtherFirewalls = {
    closing: firewalld || tables.some(({ name }) => name === CLOSED_TABLE)
      // Without firewalld nothing is closed.
      ? [NftPasses.closing(host, (rules) => !firewalld || rules.openPorts === true)]
      : [],
    passes: [...iptables, ...chains.map((chain) => NftPasses.through(host, chain, areOpen))],
    drops: () => chains.length > 0 || iptables.some(({ drops }) => drops),
    denies: () =>
      iptables.map(({ denies }) => denies).find(Boolean) ?? (firewalld ? "firewalld" : undefined),
  };
  return others;
}

/** Of a table that is no other firewall. */
function isOwn(name: string): boolean {
  return name.startsWith(TABLE) && name !== CLOSED_TABLE;
}

function isFilter({ family, name }: NftTable): boolean {
  return name === "filter" && (family === "ip" || family === "ip6");
}
