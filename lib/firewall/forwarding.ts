/**
 * Who else relies on the host's forwarding, when tapkit needs it no more.
 *
 * @module
 */

import { openNetfilter } from "../netlink/conntrack.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { type Link, listLinks } from "../netlink/link.ts";
import { currentNetns } from "../sys/netns.ts";
import { chainHasRules, legacyTables, listNatChains, listTables } from "./survey.ts";
import { installedVariants, Xtables } from "./xtables.ts";

/** tapkit's own rules, and what the reference portmap leaves for good. */
const NO_SIGN = /TAPKIT-|CNI-HOSTPORT-MASQ/;

/**
 * What evidently relies on forwarding in the current network namespace: `bridge "docker0"`.
 *
 * @returns undefined where nothing does
 */
export function reliesOnForwarding(nl: NetlinkConnection): string | undefined {
  const bridge = listLinks(nl, { kind: "bridge" }).find((one) => !isLanBridge(nl, one));
  if (bridge !== undefined) return `bridge "${bridge.name}"`;
  const table = translatingTable();
  return table === undefined ? undefined : `the rules of table "${table}"`;
}

/** Whether a bridge joins the host to a LAN: it has a port that is no container's and no VM's. */
export function isLanBridge(nl: NetlinkConnection, { index }: Link): boolean {
  return listLinks(nl, { master: index }).some(({ kind }) => kind !== "veth" && kind !== "tun");
}

/** A table of others that translates the addresses of what leaves. */
function translatingTable(): string | undefined {
  using netfilter = openNetfilter();
  const tables = listTables(netfilter);
  const chains = tables === undefined ? [] : listNatChains(netfilter);
  const isOfIptables = (table: string) => table === "nat";
  const native = chains.find(({ family, table, chain }) =>
    !table.startsWith("tapkit") && !isOfIptables(table) &&
    chainHasRules(netfilter, { family, name: table }, chain)
  );
  if (native !== undefined) return native.table;
  const used = {
    nft: chains.some(({ table }) => isOfIptables(table)),
    legacy: legacyTables().some(({ name }) => name === "nat"),
  };
  for (const variant of installedVariants().filter((one) => used[one])) {
    using netns = currentNetns();
    const xtables = new Xtables(variant, netns);
    for (const family of [4, 6] as const) {
      const rules = xtables.save(family, "nat").split("\n");
      if (rules.some((rule) => rule.startsWith("-A POSTROUTING ") && !NO_SIGN.test(rule))) {
        return "nat";
      }
    }
  }
  return undefined;
}
