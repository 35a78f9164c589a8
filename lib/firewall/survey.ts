/**
 * Looks at what nf_tables and the old iptables hold, whoever made it.
 *
 * @module
 */

import { readIfThere } from "../files.ts";
import { nfgenmsg, NFGENMSG_LEN, NFNL_SUBSYS, nfnlType } from "../netlink/conntrack.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { NetlinkError } from "../netlink/errors.ts";
import { Decoder } from "../netlink/wire.ts";
import { NFPROTO, NFT_MSG, NFTA_CHAIN, NFTA_HOOK, NFTA_RULE, NFTA_TABLE } from "./nf-tables.ts";
import type { ForwardChain, NftTable } from "./store.ts";

/** linux/netfilter.h. */
const NF = { DROP: 0, INET_FORWARD: 2 } as const;

function familyName(number: number): string | undefined {
  return Object.entries(NFPROTO).find(([, value]) => value === number)?.[0];
}

/**
 * All tables of all families.
 *
 * Equivalent to: `nft list tables`
 *
 * @returns undefined where the kernel has no nf_tables
 */
export function listTables(nl: NetlinkConnection): NftTable[] | undefined {
  const messages = tolerateAbsence(() =>
    nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETTABLE), nfgenmsg(0).finish(), {
      op: "NFT_MSG_GETTABLE",
      action: "list",
      object: "nftables tables",
    })
  );
  return messages?.map(({ payload }) => {
    const family = payload[0]!;
    const attributes = new Decoder(payload).skip(NFGENMSG_LEN).attributes();
    const name = attributes.find(({ type }) => type === NFTA_TABLE.NAME)?.value.asString() ?? "";
    return { family: familyName(family) ?? `${family}`, name };
  });
}

/** All chains that filter what is forwarded, and whether their policy is to drop it. */
export function listForwardChains(
  nl: NetlinkConnection,
): (ForwardChain & { readonly drops: boolean })[] {
  const messages = nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETCHAIN), nfgenmsg(0).finish(), {
    op: "NFT_MSG_GETCHAIN",
    action: "list",
    object: "nftables chains",
  });
  return messages.flatMap(({ payload }) => {
    const attributes = new Decoder(payload).skip(NFGENMSG_LEN).attributes();
    const get = (wanted: number) => attributes.find(({ type }) => type === wanted)?.value;
    const family = familyName(payload[0]!) ?? "";
    const hook = get(NFTA_CHAIN.HOOK)?.attributes().find(({ type }) => type === NFTA_HOOK.HOOKNUM);
    if (!["inet", "ip", "ip6"].includes(family) || hook === undefined) return [];
    if (hook.value.asU32be() !== NF.INET_FORWARD) return [];
    if (get(NFTA_CHAIN.TYPE)?.asString() !== "filter") return [];
    return [{
      family,
      table: get(NFTA_CHAIN.TABLE)?.asString() ?? "",
      chain: get(NFTA_CHAIN.NAME)?.asString() ?? "",
      drops: get(NFTA_CHAIN.POLICY)?.asU32be() === NF.DROP,
    }];
  });
}

/** Whether a chain is there. */
export function chainExists(nl: NetlinkConnection, { family, name }: NftTable, chain: string) {
  const number = NFPROTO[family as keyof typeof NFPROTO] ?? Number(family);
  const payload = nfgenmsg(number).attrString(NFTA_CHAIN.TABLE, name)
    .attrString(NFTA_CHAIN.NAME, chain).finish();
  const found = tolerateAbsence(() =>
    nl.query(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETCHAIN), payload, {
      op: "NFT_MSG_GETCHAIN",
      action: "look up",
      object: `chain "${chain}" of nftables table "${family} ${name}"`,
    })
  );
  return found !== undefined;
}

/** Whether a chain is there and has rules. */
export function chainHasRules(
  nl: NetlinkConnection,
  { family, name }: NftTable,
  chain: string,
): boolean {
  const number = NFPROTO[family as keyof typeof NFPROTO] ?? Number(family);
  const payload = nfgenmsg(number).attrString(NFTA_RULE.TABLE, name)
    .attrString(NFTA_RULE.CHAIN, chain).finish();
  const rules = tolerateAbsence(() =>
    nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETRULE), payload, {
      op: "NFT_MSG_GETRULE",
      action: "list",
      object: `the rules of chain "${chain}" of nftables table "${family} ${name}"`,
    })
  );
  return rules !== undefined && rules.length > 0;
}

/** The old tables of iptables that have been used in the current network namespace. */
export function legacyTables(): NftTable[] {
  return ["ip", "ip6"].flatMap((family) => {
    const names = readIfThere(`/proc/thread-self/net/${family}_tables_names`) ?? "";
    return names.split("\n").filter(Boolean).map((name) => ({ family, name }));
  });
}

const ABSENT: ReadonlySet<string> = new Set(["ENOENT", "EINVAL"]);

/** What a look-up gives; undefined where what it asks for, or nf_tables at all, is not there. */
export function tolerateAbsence<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    // EINVAL is nfnetlink's answer where the kernel has no nf_tables.
    if (error instanceof NetlinkError && ABSENT.has(error.code)) return undefined;
    throw error;
  }
}
