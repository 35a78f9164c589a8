/**
 * Rules that others made for a container and left behind: those whose comment has its id, or that
 * are in its own chains.
 *
 * The reference CNI plugins mark so what they make for one container, masquerading, published ports
 * and checks of its MAC alike, and their DEL finds less of it when the namespace is gone.
 *
 * @module
 */

import type { NetlinkConnection } from "../netlink/connection.ts";
import { openNetfilter } from "../netlink/nfnetlink.ts";
import {
  chainDeletion,
  chainLabel,
  commit,
  getChain,
  listChains,
  listRules,
  type NftChain,
  type NftRule,
  ruleDeletion,
} from "../netlink/nftables/objects.ts";
import { failedWith, tolerate } from "../sys/libc.ts";
import { currentNetns } from "../sys/netns.ts";
import { parseSaved } from "./iptables-save.ts";
import { legacyTables, Xtables } from "./xtables.ts";

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
export function removeRulesOf(id: string, own: readonly string[] = []): void {
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

function removeFromNft(nl: NetlinkConnection, id: string, own: readonly string[]): void {
  const decoder = new TextDecoder("latin1");
  const isNamed = ({ chain, comment, expressions }: NftRule) =>
    own.includes(chain) || comment.includes(id) || decoder.decode(expressions).includes(id);
  const subject = { op: "NFT_MSG_DELRULE", action: "delete", object: `rules of container ${id}` };
  for (let attempt = 1;; attempt++) {
    const [named, kept] = partition(listRules(nl), isNamed);
    // Who was killed before may have left them empty.
    const chains = own.length === 0
      ? []
      : listChains(nl).filter(({ chain }) => own.includes(chain));
    const requests = named.map(ruleDeletion);
    if (attempt === 1) requests.push(...chains.map(chainDeletion));
    try {
      commit(nl, requests, subject);
    } catch (error) {
      // Somebody else deletes them too, or has a rule that jumps to a chain.
      if (attempt === ATTEMPTS || !failedWith(error, "ENOENT", "EBUSY")) throw error;
      continue;
    }
    const used = new Set(kept.map(chainLabel));
    const emptied = new Map([...named, ...chains].map((chain) => [chainLabel(chain), chain]));
    for (const [label, chain] of emptied) if (!used.has(label)) deleteUserChain(nl, chain);
    return;
  }
}

function partition<T>(all: readonly T[], test: (one: T) => boolean): [T[], T[]] {
  return [all.filter(test), all.filter((one) => !test(one))];
}

/** Deletes an empty chain, unless it is one that the kernel calls, or something jumps to it. */
function deleteUserChain(nl: NetlinkConnection, named: NftChain): void {
  const found = getChain(nl, named);
  if (found === undefined || found.hook !== undefined) return;
  const subject = { op: "NFT_MSG_DELCHAIN", action: "delete", object: chainLabel(named) };
  tolerate(["EBUSY", "ENOENT"], () => commit(nl, [chainDeletion(named)], subject));
}

/**
 * What `iptables-restore --noflush` has to be given to do the same to what `iptables-save` printed;
 * empty where nothing names the id.
 */
export function planRemoval(saved: string, id: string, own: readonly string[] = []): string {
  const tables = Map.groupBy(parseSaved(saved), ({ table }) => table);
  return [...tables].map(([table, chains]) => {
    const rules = chains.flatMap(({ chain, rules }) => rules.map((spec) => ({ chain, spec })));
    const [named, kept] = partition(
      rules,
      ({ chain, spec }) => own.includes(chain) || spec.includes(id),
    );
    const left = chains.filter(({ chain, policy }) =>
      policy === undefined && [...own, ...named.map((rule) => rule.chain)].includes(chain) &&
      !kept.some((rule) =>
        rule.chain === chain || ` ${rule.spec} `.includes(` -j ${chain} `) ||
        ` ${rule.spec} `.includes(` -g ${chain} `)
      )
    );
    if (named.length + left.length === 0) return "";
    return [
      `*${table}`,
      ...named.map(({ chain, spec }) => `-D ${chain} ${spec}`),
      ...left.map(({ chain }) => `-X ${chain}`),
      "COMMIT",
      "",
    ].join("\n");
  }).join("");
}
