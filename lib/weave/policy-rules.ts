/**
 * The rules of Kubernetes' network policies that Weave Net makes unless it is told that there are none.
 * Nobody else uses them outside of Kubernetes, and they drop all that is forwarded to the bridge. They
 * stay when the router is started without them later.
 *
 * @module
 */

import type { Finding } from "../finding.ts";
import { parseSaved, readOptions } from "../firewall/iptables-save.ts";
import { installedVariants, legacyTables, type Variant, Xtables } from "../firewall/xtables.ts";
import { openNetfilter } from "../netlink/nfnetlink.ts";
import { listTables } from "../netlink/nftables/objects.ts";
import { currentNetns, type Netns } from "../sys/netns.ts";
import { WEAVE_BRIDGE } from "./host.ts";

/** Their chains begin so. */
const CHAINS = "WEAVE-NPC";

/** What one variant of iptables has of them. */
interface Left {
  readonly xtables: Xtables;
  readonly rules: readonly { readonly chain: string; readonly spec: string }[];
  readonly chains: readonly string[];
}

/** The rules that drop what is forwarded to Weave Net's bridge. */
export function findPolicyRules(): Finding[] {
  using netns = currentNetns();
  return leftIn(netns).flatMap(({ xtables, rules }) =>
    rules.filter(({ spec }) => / -j DROP$/.test(spec)).map(({ chain, spec }) => ({
      object: `iptables (${xtables.variant})`,
      problem: `has the rule "-A ${chain} ${spec}", by which no packet reaches a guest`,
    }))
  );
}

/**
 * Takes them away.
 *
 * @returns what was there
 */
export function removePolicyRules(): Finding[] {
  const found = findPolicyRules();
  using netns = currentNetns();
  for (const { xtables, rules, chains } of leftIn(netns)) {
    const lines = [
      "*filter",
      ...rules.map(({ chain, spec }) => `-D ${chain} ${spec}`),
      ...chains.map((chain) => `-F ${chain}`),
      ...chains.map((chain) => `-X ${chain}`),
      "COMMIT",
      "",
    ];
    xtables.restore(4, lines.join("\n"), "remove Weave Net's network policies");
  }
  return found;
}

function leftIn(netns: Netns): Left[] {
  return usedVariants().map((variant) => new Xtables(variant, netns)).flatMap((xtables) => {
    const filter = parseSaved(xtables.save(4, "filter")).filter(({ table }) => table === "filter");
    const chains = filter.map(({ chain }) => chain).filter(isOwn);
    const rules = filter.filter(({ chain }) => !isOwn(chain))
      .flatMap(({ chain, rules }) => rules.map((spec) => ({ chain, spec })))
      .filter(({ spec }) => isPolicy(spec));
    return rules.length + chains.length === 0 ? [] : [{ xtables, rules, chains }];
  });
}

/** Variants that are not used are not asked: the old tables come into being when they are. */
export function usedVariants(): Variant[] {
  using netfilter = openNetfilter();
  const used = {
    nft: (listTables(netfilter) ?? []).some(({ family, name }) =>
      family === "ip" && name === "filter"
    ),
    legacy: legacyTables().some(({ family, name }) => family === "ip" && name === "filter"),
  };
  return installedVariants().filter((variant) => used[variant]);
}

function isOwn(chain: string): boolean {
  return chain === CHAINS || chain.startsWith(`${CHAINS}-`);
}

/** A jump to their chains; and, of what goes to the bridge, what is logged for them, or dropped. */
function isPolicy(spec: string): boolean {
  const options = readOptions(spec);
  const target = options.find(({ name }) => name === "-j")?.value ?? "";
  if (isOwn(target)) return true;
  const to = options.find(({ name }) => name === "-o");
  if (to?.value !== WEAVE_BRIDGE || to.negated) return false;
  const names = options.map(({ name }) => name);
  if (target === "DROP") return names.every((name) => name === "-o" || name === "-j");
  return target === "NFLOG" && names.includes("--nflog-group");
}
