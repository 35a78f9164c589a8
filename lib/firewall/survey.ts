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
const NF = { DROP: 0, INET_FORWARD: 2, INET_POST_ROUTING: 4 } as const;

function familyName(number: number): string | undefined {
  return Object.entries(NFPROTO).find(([, value]) => value === number)?.[0];
}

/** Families without a name here go by their number. */
function familyNumber(family: string): number {
  return NFPROTO[family as keyof typeof NFPROTO] ?? Number(family);
}

/**
 * All tables of all families.
 *
 * Equivalent to: `nft list tables`
 *
 * @returns undefined where the kernel has no nf_tables
 */
export function listTables(nl: NetlinkConnection): NftTable[] | undefined {
  return tolerateAbsence(() =>
    listObjects(nl, "GETTABLE", "nftables tables", (family, attribute) => ({
      family: familyName(family) ?? `${family}`,
      name: attribute(NFTA_TABLE.NAME)?.asString() ?? "",
    }))
  );
}

/** What is asked for of a message about an object of nf_tables; undefined where it has none. */
type Attributes = (type: number) => Decoder | undefined;

/**
 * All objects of a kind, of all families.
 *
 * @param object what the error calls them
 */
export function listObjects<T>(
  nl: NetlinkConnection,
  get: "GETTABLE" | "GETCHAIN" | "GETRULE",
  object: string,
  read: (family: number, attribute: Attributes, payload: Uint8Array) => T,
): T[] {
  const messages = nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG[get]), nfgenmsg(0).finish(), {
    op: `NFT_MSG_${get}`,
    action: "list",
    object,
  });
  return messages.map(({ payload }) => {
    const attributes = new Decoder(payload).skip(NFGENMSG_LEN).attributes();
    return read(
      payload[0]!,
      (wanted) => attributes.find(({ type }) => type === wanted)?.value,
      payload,
    );
  });
}

/** All chains that filter what is forwarded, and whether their policy is to drop it. */
export function listForwardChains(
  nl: NetlinkConnection,
): (ForwardChain & { readonly drops: boolean })[] {
  return listHooked(nl, "filter", NF.INET_FORWARD);
}

/** All chains that translate the addresses of what leaves. */
export function listNatChains(nl: NetlinkConnection): ForwardChain[] {
  return listHooked(nl, "nat", NF.INET_POST_ROUTING);
}

function listHooked(
  nl: NetlinkConnection,
  type: string,
  hook: number,
): (ForwardChain & { readonly drops: boolean })[] {
  const chains = listObjects(nl, "GETCHAIN", "nftables chains", (family, attribute) => {
    const number = attribute(NFTA_CHAIN.HOOK)?.attributes()
      .find(({ type }) => type === NFTA_HOOK.HOOKNUM)?.value.asU32be();
    return {
      family: familyName(family) ?? "",
      table: attribute(NFTA_CHAIN.TABLE)?.asString() ?? "",
      chain: attribute(NFTA_CHAIN.NAME)?.asString() ?? "",
      hooked: number === hook && attribute(NFTA_CHAIN.TYPE)?.asString() === type,
      drops: attribute(NFTA_CHAIN.POLICY)?.asU32be() === NF.DROP,
    };
  });
  return chains.filter(({ family, hooked }) => hooked && ["inet", "ip", "ip6"].includes(family))
    .map(({ hooked: _, ...chain }) => chain);
}

/** Whether a chain is there. */
export function chainExists(nl: NetlinkConnection, { family, name }: NftTable, chain: string) {
  const payload = nfgenmsg(familyNumber(family)).attrString(NFTA_CHAIN.TABLE, name)
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
  const payload = nfgenmsg(familyNumber(family)).attrString(NFTA_RULE.TABLE, name)
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
