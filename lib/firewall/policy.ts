/**
 * The tables of guests' policies: isolation, egress and limits. They are in nftables, whatever backend
 * keeps the other rules: iptables cannot match a bridge's ports without bridge-nf-call-iptables, and
 * has no limits whose cost does not grow with the number of guests.
 *
 * @module
 */

import { LimitsError } from "../errors.ts";
import type { NftMemory } from "../netlink/nftables/memory.ts";
import { failedWith } from "../sys/libc.ts";
import type { Netns } from "../sys/netns.ts";
import { describeLimit, limitElements, LIMITS_TABLE } from "./limits-table.ts";
import { type Contents, NftStore } from "./nft-store.ts";
import {
  bridgePolicyTable,
  describePolicyElement,
  inetPolicyTable,
  policyElements,
} from "./policy-tables.ts";

const POLICIES: readonly Contents[] = [
  {
    layer: "policy",
    table: bridgePolicyTable,
    want: (rules) => policyElements(rules).bridge,
    describe: describePolicyElement,
  },
  {
    layer: "policy",
    table: inetPolicyTable,
    want: (rules) => policyElements(rules).inet,
    describe: describePolicyElement,
  },
  {
    layer: "policy",
    table: () => LIMITS_TABLE,
    want: limitElements,
    describe: describeLimit,
    explain: explainLimits,
  },
];

/**
 * The policies of one network namespace. A guest without one costs nothing.
 *
 * @param netns whose policies; its caller closes it
 * @param memory of that namespace
 */
export function policyStores(netns: Netns, memory: NftMemory): NftStore[] {
  return POLICIES.map((contents) => new NftStore(netns, memory, contents));
}

/** Names the reason if the kernel lacks nf_tables or one of its expressions. */
function explainLimits(cause: unknown): unknown {
  if (!failedWith(cause, "EOPNOTSUPP", "EINVAL", "ENOENT", "EPROTONOSUPPORT")) return cause;
  return new LimitsError(`this kernel cannot limit a guest's connections: ${cause.message}`, {
    mend: "use a newer kernel (6.1 does not keep such counters in sets) with " +
      "CONFIG_NFT_CONNLIMIT, CONFIG_NFT_LIMIT and CONFIG_NFT_NUMGEN, or " +
      "--max-connections none --new-connections none",
    cause,
  });
}
