/**
 * Rules that others made for a container and left behind: those whose comment has its id, or that
 * are in its own chains.
 *
 * The reference CNI plugins mark so what they make for one container, masquerading, published ports
 * and checks of its MAC alike, and their DEL finds less of it when the namespace is gone.
 *
 * @module
 */

import {
  nfgenmsg,
  NFGENMSG_LEN,
  NFNL_SUBSYS,
  nfnlType,
  openNetfilter,
} from "../netlink/conntrack.ts";
import type { BatchedRequest, NetlinkConnection } from "../netlink/connection.ts";
import { NetlinkError } from "../netlink/errors.ts";
import { Decoder } from "../netlink/wire.ts";
import { currentNetns } from "../sys/netns.ts";
import { commit } from "./kernel.ts";
import { NFT_MSG, NFTA_CHAIN, NFTA_RULE } from "./nf-tables.ts";
import { legacyTables, listObjects, tolerateAbsence } from "./survey.ts";
import { Xtables } from "./xtables.ts";

const ATTEMPTS = 3;
/** A shorter id may be a part of what others write into comments. */
const MIN_ID = 32;

/**
 * Deletes the rules of nf_tables, iptables' among them, and of the old iptables that name a
 * container, and the chains that have no other rules and that nothing else jumps to.
 *
 * @param id of a container; nothing is done for one so short that others' comments may have it
 * @param own names of chains that are the container's alone
 * @throws {NetlinkError} or {TapkitError} when some cannot be deleted
 */
export function removeRemains(id: string, own: readonly string[] = []): void {
  if (id.length < MIN_ID) return;
  using nl = openNetfilter();
  removeFromNft(nl, id, own);
  const families = new Set(legacyTables().map(({ family }) => family === "ip6" ? 6 : 4));
  if (families.size === 0) return;
  using netns = currentNetns();
  const xtables = new Xtables("legacy", netns);
  for (const family of families) {
    const text = planRemoval(xtables.save(family), id, own);
    xtables.restore(family, text, `remove what CNI plugins left of container ${id}`);
  }
}

/** A chain as far as it matters here. */
interface NftChain {
  readonly family: number;
  readonly table: string;
  readonly chain: string;
}

/** A rule as far as it matters here. */
interface NftRule extends NftChain {
  readonly handle: Uint8Array;
  readonly named: boolean;
}

function removeFromNft(nl: NetlinkConnection, id: string, own: readonly string[]): void {
  const subject = { action: "delete", object: `rules of container ${id}` };
  for (let attempt = 1;; attempt++) {
    const rules = listRules(nl, id, own);
    const named = rules.filter((rule) => rule.named);
    // Who was killed before may have left them empty.
    const chains = listOwnChains(nl, own);
    const requests = named.map(ruleDeletion);
    if (attempt === 1) requests.push(...chains.map(chainDeletion));
    try {
      commit(nl, requests, { ...subject, op: "NFT_MSG_DELRULE" });
    } catch (error) {
      // Somebody else deletes them too, or has a rule that jumps to a chain.
      if (attempt === ATTEMPTS || !isRefusal(error, "ENOENT") && !isRefusal(error, "EBUSY")) {
        throw error;
      }
      continue;
    }
    const key = ({ family, table, chain }: NftChain) => JSON.stringify([family, table, chain]);
    const kept = new Set(rules.filter((rule) => !rule.named).map(key));
    const emptied = new Map([...named, ...chains].map((chain) => [key(chain), chain]));
    for (const [name, chain] of emptied) if (!kept.has(name)) deleteUserChain(nl, chain);
    return;
  }
}

function ruleDeletion({ family, table, chain, handle }: NftRule): BatchedRequest {
  return {
    type: nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.DELRULE),
    flags: 0,
    payload: nfgenmsg(family).attrString(NFTA_RULE.TABLE, table)
      .attrString(NFTA_RULE.CHAIN, chain).attrBytes(NFTA_RULE.HANDLE, handle).finish(),
  };
}

function chainDeletion(chain: NftChain): BatchedRequest {
  return {
    type: nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.DELCHAIN),
    flags: 0,
    payload: chainPayload(chain),
  };
}

function chainPayload({ family, table, chain }: NftChain): Uint8Array<ArrayBuffer> {
  return nfgenmsg(family).attrString(NFTA_CHAIN.TABLE, table).attrString(NFTA_CHAIN.NAME, chain)
    .finish();
}

function listOwnChains(nl: NetlinkConnection, own: readonly string[]): NftChain[] {
  if (own.length === 0) return [];
  const chains = tolerateAbsence(() =>
    listObjects(nl, "GETCHAIN", "nftables chains", (family, attribute) => ({
      family,
      table: attribute(NFTA_CHAIN.TABLE)?.asString() ?? "",
      chain: attribute(NFTA_CHAIN.NAME)?.asString() ?? "",
    }))
  );
  return (chains ?? []).filter(({ chain }) => own.includes(chain));
}

function listRules(nl: NetlinkConnection, id: string, own: readonly string[]): NftRule[] {
  const decoder = new TextDecoder("latin1");
  const rules = tolerateAbsence(() =>
    listObjects(nl, "GETRULE", "nftables rules", (family, attribute, payload) => {
      const chain = attribute(NFTA_RULE.CHAIN)?.asString() ?? "";
      return {
        family,
        table: attribute(NFTA_RULE.TABLE)?.asString() ?? "",
        chain,
        handle: attribute(NFTA_RULE.HANDLE)?.asBytes() ?? new Uint8Array(8),
        // nft has a comment in the rule's user data, iptables in a match.
        named: own.includes(chain) || decoder.decode(payload).includes(id),
      };
    })
  );
  return rules ?? [];
}

/** Deletes an empty chain, unless it is one that the kernel calls, or something jumps to it. */
function deleteUserChain(nl: NetlinkConnection, named: NftChain): void {
  const object = `nftables chain "${named.chain}"`;
  const type = nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG.GETCHAIN);
  const payload = chainPayload(named);
  const found = tolerateAbsence(() =>
    nl.query(type, payload, { op: "NFT_MSG_GETCHAIN", action: "look up", object })
  );
  if (found === undefined) return;
  const attributes = new Decoder(found.payload).skip(NFGENMSG_LEN).attributes();
  if (attributes.some(({ type }) => type === NFTA_CHAIN.HOOK)) return;
  try {
    commit(nl, [chainDeletion(named)], { op: "NFT_MSG_DELCHAIN", action: "delete", object });
  } catch (error) {
    if (!isRefusal(error, "EBUSY") && !isRefusal(error, "ENOENT")) throw error;
  }
}

function isRefusal(error: unknown, code: string): boolean {
  return error instanceof NetlinkError && error.code === code;
}

/**
 * What `iptables-restore --noflush` has to be given to do the same to what `iptables-save` printed;
 * empty where nothing names the id.
 */
export function planRemoval(saved: string, id: string, own: readonly string[] = []): string {
  const isNamed = (rule: string) => rule.includes(id) || own.includes(chainOf(rule));
  const tables = saved.split(/^(?=\*)/m);
  return tables.map((table) => planTable(table.split("\n"), isNamed, own)).join("");
}

function chainOf(rule: string): string {
  return rule.split(" ", 2)[1] ?? "";
}

function planTable(
  lines: readonly string[],
  isNamed: (rule: string) => boolean,
  own: readonly string[],
): string {
  const rules = lines.filter((line) => line.startsWith("-A "));
  const named = rules.filter(isNamed);
  const kept = rules.filter((rule) => !isNamed(rule));
  const chains = [...new Set([...named.map(chainOf), ...own])].filter((chain) =>
    // One of the kernel's own has a policy in the place of the dash.
    lines.some((line) => line.startsWith(`:${chain} - `)) &&
    !kept.some((rule) =>
      chainOf(rule) === chain || ` ${rule} `.includes(` -j ${chain} `) ||
      ` ${rule} `.includes(` -g ${chain} `)
    )
  );
  if (named.length + chains.length === 0) return "";
  const text = [
    lines[0],
    ...named.map((rule) => `-D ${rule.slice("-A ".length)}`),
    ...chains.map((chain) => `-X ${chain}`),
    "COMMIT",
    "",
  ];
  return text.join("\n");
}
