/**
 * Mode tc-redirect: tc passes all frames between the TAP and the interface of a VM.
 *
 * ```
 *   network ── eth0 ──ingress──▶ egress── vm_eth0 ── guest
 *                 ◀──egress   ingress──
 * ```
 *
 * A u32 + mirred filter on each ingress qdisc sends all frames from eth0 to the TAP, and all frames
 * of the guest out of eth0. eth0 keeps the address and the MAC that CNI gave it, and the guest has
 * the same.
 *
 * @module
 */

import type { NetlinkConnection } from "../../netlink/connection.ts";
import { listFilters, redirectAddition } from "../../netlink/filter.ts";
import { getLink } from "../../netlink/link.ts";
import { deleteQdisc, qdiscAddition } from "../../netlink/qdisc.ts";
import type { Finding } from "../../finding.ts";
import type { Wire } from "./wire.ts";

/** After the guards, which drop what must not be redirected. */
const REDIRECT_PRIORITY = 2;

/**
 * The wire of mode tc-redirect.
 *
 * Equivalent to: `tc qdisc add dev … ingress` and
 * `tc filter add dev … parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev …`
 * on both sides.
 */
export const redirect: Wire = {
  movesIdentity: false,

  hasIngress: true,

  join({ nl, link, tap }) {
    nl.changeAll([
      ...[tap, link].map(({ index }) => qdiscAddition(nl, index, "ingress")),
      ...[[tap, link], [link, tap]].map(([from, to]) =>
        redirectAddition(nl, {
          index: from!.index,
          target: to!.index,
          priority: REDIRECT_PRIORITY,
        })
      ),
    ]);
  },

  part(nl, { link, tap }) {
    for (const name of [tap, link]) deleteIngress(nl, name);
  },

  check({ nl, link, tap, mac }) {
    const found: Finding[] = [];
    if (link.mac !== mac) {
      const problem = `has MAC ${link.mac}, not ${mac}`;
      found.push({ object: `interface "${link.name}"`, problem });
    }
    for (const [from, to] of [[tap, link], [link, tap]] as const) {
      if (listFilters(nl, from.index).some(({ redirectTo }) => redirectTo === to.index)) continue;
      const problem = `are not redirected to "${to.name}"`;
      found.push({ object: `frames from "${from.name}"`, problem });
    }
    return found;
  },
};

/** Deletes a link's ingress qdisc and its filters, if they exist. */
export function deleteIngress(nl: NetlinkConnection, name: string): void {
  const link = getLink(nl, name);
  if (link !== undefined) deleteQdisc(nl, link.index);
}
