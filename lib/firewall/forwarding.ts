/**
 * The host's forwarding: which links tapkit keeps apart when it turns it on, and who else relies on it
 * when tapkit needs it no more.
 *
 * @module
 */

import type { Family } from "../inet/ip.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { GONE_GROUP, type Link, listLinks } from "../netlink/link.ts";
import { openNetfilter } from "../netlink/nfnetlink.ts";
import { NF } from "../netlink/nftables/constants.ts";
import { listChains, listRules } from "../netlink/nftables/objects.ts";
import { currentNetns } from "../sys/netns.ts";
import { readSysctl } from "../sys/sysctl.ts";
import type { LinkPair } from "./guest-elements.ts";
import { parseSaved } from "./iptables-save.ts";
import { installedVariants, legacyTables, Xtables } from "./xtables.ts";

/** With more links there would be too many pairs of them. */
const MOST_LANS = 64;

/** tapkit's own rules, and what the reference portmap leaves for good. */
const NO_SIGN = /TAPKIT-|CNI-HOSTPORT-MASQ/;

/**
 * What evidently relies on forwarding in the current network namespace: `bridge "docker0"`.
 *
 * @returns undefined where nothing does
 */
export function reliesOnForwarding(nl: NetlinkConnection): string | undefined {
  const links = listLinks(nl);
  // One without ports is what a plugin of others has left.
  const bridge = links.find((link) =>
    link.kind === "bridge" &&
    links.some(({ master, group }) => master === link.index && group !== GONE_GROUP) &&
    !isLan(link, links)
  );
  if (bridge !== undefined) return `bridge "${bridge.name}"`;
  const table = translatingTable();
  return table === undefined ? undefined : `the rules of table "${table}"`;
}

/**
 * From which links to which the host does not forward as long as forwarding is off, LANs to LANs: that
 * is not to change with it. Bridges of containers are left alone, which wait for just that, and so is
 * what comes later.
 *
 * @param guestLinks what goes by these is forwarded
 */
export function findApart(
  nl: NetlinkConnection,
  family: Family,
  guestLinks: readonly string[],
): LinkPair[] {
  const links = listLinks(nl);
  const lans = links.filter((link) => isLan(link, links) && !guestLinks.includes(link.name))
    // A machine's own cards before what is made of them.
    .sort((a, b) => Number(a.kind !== undefined) - Number(b.kind !== undefined))
    .slice(0, MOST_LANS);
  // One that forwarded by its own setting goes on. IPv6 forwards by the setting of all alone.
  const silent = lans.filter(({ name }) =>
    family === 6 || readSysctl(`net/ipv4/conf/${name}/forwarding`) === "0"
  );
  return silent.flatMap((from) =>
    lans.filter((to) => from.kind !== "bridge" || from !== to)
      // Frames that pass a bridge meet the rules for what is forwarded too.
      .map((to): LinkPair => [from.name, to.name])
  );
}

function isLan(link: Link, links: readonly Link[]): boolean {
  const { name, kind, master, up, index } = link;
  // iptables takes a name that ends so for many.
  if (name === "lo" || name.endsWith("+") || master !== undefined) return false;
  if (kind === "bridge") return links.some((port) => port.master === index && isCard(port));
  return kind === undefined || up;
}

/** Whether a port of a bridge leads to a LAN: it belongs neither to a container nor to a VM. */
function isCard({ kind }: Link): boolean {
  return kind !== "veth" && kind !== "tun";
}

/** A table of others that translates the addresses of what leaves. */
function translatingTable(): string | undefined {
  using netfilter = openNetfilter();
  const chains = listChains(netfilter).filter(({ family, type, hook }) =>
    type === "nat" && hook === NF.INET_POST_ROUTING && ["inet", "ip", "ip6"].includes(family)
  );
  const isOfIptables = (table: string) => table === "nat";
  const native = chains.find((chain) =>
    !chain.table.startsWith("tapkit") && !isOfIptables(chain.table) &&
    listRules(netfilter, chain).length > 0
  );
  if (native !== undefined) return native.table;
  const used = {
    nft: chains.some(({ table }) => isOfIptables(table)),
    legacy: legacyTables().some(({ name }) => name === "nat"),
  };
  for (const variant of installedVariants().filter((one) => used[one])) {
    using netns = currentNetns();
    const xtables = new Xtables(variant, netns);
    const chains = ([4, 6] as const).flatMap((family) => parseSaved(xtables.save(family, "nat")));
    const signs = chains.filter(({ table, chain }) => table === "nat" && chain === "POSTROUTING")
      .flatMap(({ rules }) => rules).filter((rule) => !NO_SIGN.test(rule));
    if (signs.length > 0) return "nat";
  }
  return undefined;
}
