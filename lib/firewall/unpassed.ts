/**
 * Chains of others in nftables that drop guests' packets, and that tapkit adds nothing to: what
 * otherFirewalls lets guests pass are chains that forwarded packets are dropped by when no rule takes
 * them.
 *
 * @module
 */

import type { NetlinkConnection } from "../netlink/connection.ts";
import {
  NF,
  NFT_VERDICT,
  NFTA_DATA,
  NFTA_EXPR,
  NFTA_IMMEDIATE,
  NFTA_VERDICT,
} from "../netlink/nftables/constants.ts";
import {
  type BaseChain,
  chainLabel,
  listChains,
  listRules,
  type NftChain,
  type NftRule,
  readAttributes,
} from "../netlink/nftables/objects.ts";
import { Decoder } from "../netlink/wire.ts";
import { TABLE } from "./ruleset.ts";

/** The hooks that forwarded packets, and those that a bridge passes, go through. */
const HOOKS: Readonly<Record<number, string>> = {
  [NF.INET_PRE_ROUTING]: "arrives",
  [NF.INET_FORWARD]: "is forwarded",
  [NF.INET_POST_ROUTING]: "leaves",
};

/** A chain that drops what no rule of it takes. */
export interface DroppingChain extends NftChain {
  /** `"the nftables chain "inet mine forward""`. */
  readonly label: string;
  /** What it drops: `"is forwarded"`. */
  readonly what: string;
}

/**
 * Finds chains that drop guests' packets unless one of their rules lets the link pass.
 *
 * @param links the host's links to its guests: a chain with a rule that accepts what comes by one is
 * taken to know of all
 */
export function unpassedChains(nl: NetlinkConnection, links: readonly string[]): DroppingChain[] {
  const suspects = listChains(nl).filter((chain) => isConcerned(chain) && !isPassed(chain));
  return suspects.flatMap((chain) => {
    const rules = listRules(nl, { family: chain.family, table: chain.table });
    const drops = chain.policy === NF.DROP || endsInDrop(rules, chain.chain);
    if (!drops || rules.some((rule) => accepts(rule, chain.chain, links))) return [];
    const what = HOOKS[chain.hook!]!;
    return [{ ...chain, label: `the ${chainLabel(chain)}`, what }];
  });
}

function isConcerned({ family, table, type, hook }: BaseChain): boolean {
  return type === "filter" && hook !== undefined && hook in HOOKS &&
    ["inet", "ip", "ip6", "bridge"].includes(family) && !table.startsWith(TABLE);
}

/** Whether it is one that tapkit adds its rules to, or one of iptables, which it reads as such. */
function isPassed({ family, table, hook, policy }: BaseChain): boolean {
  if (family === "bridge" || hook !== NF.INET_FORWARD) return false;
  return policy === NF.DROP || table === "firewalld" || table === "filter" && family !== "inet";
}

/** Whether a chain's last rule drops or rejects all, or leads to a chain of which that is true. */
function endsInDrop(rules: readonly NftRule[], chain: string, depth = 0): boolean {
  const last = rules.findLast((rule) => rule.chain === chain);
  if (last === undefined || depth > MOST_JUMPS) return false;
  const seen = expressionsOf(last);
  if (!seen.every(({ name }) => UNCONDITIONAL.includes(name))) return false;
  return seen.some(({ name, data }) => {
    if (name === "reject") return true;
    const verdict = name === "immediate" ? verdictOf(data) : undefined;
    if (verdict?.code === NF.DROP) return true;
    return verdict?.chain !== undefined && endsInDrop(rules, verdict.chain, depth + 1);
  });
}

const MOST_JUMPS = 16;
/** Expressions after which a rule goes on, whatever the packet. */
const UNCONDITIONAL: readonly string[] = ["counter", "log", "immediate", "reject"];

/** Whether a rule of a chain accepts packets by one of the links. */
function accepts(rule: NftRule, chain: string, links: readonly string[]): boolean {
  if (rule.chain !== chain) return false;
  const seen = expressionsOf(rule);
  const accepted = seen.some(({ name, data }) =>
    name === "immediate" && verdictOf(data)?.code === NF.ACCEPT
  );
  const bytes = new TextDecoder("latin1").decode(rule.expressions);
  return accepted && links.some((link) => bytes.includes(`${link}\0`));
}

interface Expression {
  readonly name: string;
  readonly data: Decoder | undefined;
}

function expressionsOf({ expressions }: NftRule): Expression[] {
  return new Decoder(expressions).attributes().map(({ value }) => {
    const attribute = readAttributes(value);
    return { name: attribute(NFTA_EXPR.NAME)?.asString() ?? "", data: attribute(NFTA_EXPR.DATA) };
  });
}

/** The verdict of an immediate expression: its code, and the chain of a jump. */
function verdictOf(
  data: Decoder | undefined,
): { readonly code: number; readonly chain: string | undefined } | undefined {
  if (data === undefined) return undefined;
  const value = readAttributes(data)(NFTA_IMMEDIATE.DATA);
  const verdict = value && readAttributes(value)(NFTA_DATA.VERDICT);
  if (verdict === undefined) return undefined;
  const attribute = readAttributes(verdict);
  const code = attribute(NFTA_VERDICT.CODE)?.asU32be();
  if (code === undefined) return undefined;
  const leads = code === NFT_VERDICT.JUMP || code === NFT_VERDICT.GOTO;
  return { code, chain: leads ? attribute(NFTA_VERDICT.CHAIN)?.asString() : undefined };
}
