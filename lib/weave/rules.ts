/**
 * Weave Net's own rules of iptables. The router makes them when it starts, and leaves them.
 *
 * @module
 */

import { parseSaved, readOptions, type SavedChain } from "../firewall/iptables-save.ts";
import { Xtables } from "../firewall/xtables.ts";
import { currentNetns } from "../sys/netns.ts";
import { WEAVE_BRIDGE } from "./host.ts";
import { usedVariants } from "./policy-rules.ts";

/** Takes away Weave Net's rules, of both variants of iptables. */
export function removeWeaveRules(): void {
  using netns = currentNetns();
  for (const variant of usedVariants()) {
    const xtables = new Xtables(variant, netns);
    xtables.restore(4, withoutWeave(parseSaved(xtables.save(4))), "remove Weave Net's rules");
  }
}

/** What `iptables-restore --noflush` reads to take Weave Net's rules and chains away (pure). */
export function withoutWeave(chains: readonly SavedChain[]): string {
  const tables = [...new Set(chains.map(({ table }) => table))];
  return tables.flatMap((table) => {
    const here = chains.filter((chain) => chain.table === table);
    const own = here.filter(({ chain }) => isOwn(chain));
    const lines = [
      ...here.filter(({ chain }) => !isOwn(chain)).flatMap(({ chain, rules }) =>
        rules.filter((spec) => isWeaves(chain, spec)).map((spec) => `-D ${chain} ${spec}`)
      ),
      ...own.map(({ chain }) => `-F ${chain}`),
      ...own.map(({ chain }) => `-X ${chain}`),
    ];
    return lines.length === 0 ? [] : [`*${table}`, ...lines, "COMMIT", ""];
  }).join("\n");
}

/** Kubernetes' kubelet has chains of its own. */
function isOwn(chain: string): boolean {
  return chain === "WEAVE" || chain.startsWith("WEAVE-");
}

/** The options of the rules by which the bridge's traffic is accepted. */
const PLAIN = ["-i", "-o", "-m", "--ctstate", "--state", "-j"];

function isWeaves(chain: string, spec: string): boolean {
  const options = readOptions(spec);
  const target = options.find(({ name }) => name === "-j")?.value ?? "";
  if (isOwn(target)) return true;
  if (chain === "INPUT") return /Weave Net control port/i.test(spec);
  return chain === "FORWARD" && ["ACCEPT", "DROP", "NFLOG"].includes(target) &&
    options.some(({ name, value }) => ["-i", "-o"].includes(name) && value === WEAVE_BRIDGE) &&
    options.every(({ name }) => PLAIN.includes(name) || name === "--nflog-group");
}
