/**
 * What keeps the host's loopback servers closed where `route_localnet` opens a link to 127.0.0.0/8: a
 * filter at the link's ingress, which a flush of the firewall does not reach.
 *
 * @module
 */

import type { NetlinkConnection } from "../netlink/connection.ts";
import {
  deleteFilter,
  type Filter,
  listFilters,
  replaceBpfFilter,
  sameProgram,
  TC_ACT,
} from "../netlink/filter.ts";
import { addClsactQdisc, deleteQdisc, ingressKind, TC_H } from "../netlink/qdisc.ts";
import { assembleBpf, Bpf, bpf, type BpfSource } from "../sys/bpf.ts";
import { failedWith } from "../sys/libc.ts";
import { ANSWER_MARK } from "./ruleset.ts";

/** linux/if_ether.h. */
const ETH = { HLEN: 14, P_IP: 0x0800, P_8021Q: 0x8100, P_8021AD: 0x88a8, VLAN_HLEN: 4 } as const;
/** Offsets in the Ethernet and the IPv4 header. */
const [TYPE, SOURCE, DESTINATION] = [12, 12, 16];
const LOOPBACK_NET = 127;
/** A host takes any number of tags of VLAN 0 for none; frames with more than these are dropped. */
const MAX_TAGS = 8;

/** "tk": tells the filter from others of its priority, which may be anybody's. */
const HANDLE = 0x746b;
/** Before all else where it may be; a priority holds filters of one kind. */
const PRIORITIES = [1, 2, 3, 4, 5, 6, 7, 8];
const PARENT = TC_H.CLSACT_INGRESS;

/** Drops IPv4 from and to 127.0.0.0/8 that is not a known answer, also behind VLAN tags in the frame. */
export const LOOPBACK_DROP = assembleBpf([
  bpf.loadAncillary(Bpf.SKF_AD_MARK),
  bpf.ifEqual(ANSWER_MARK, "pass"),
  ...networkSteps(),
  "network",
  bpf.ifEqual(ETH.P_IP, undefined, "pass"),
  bpf.loadByteAtX(DESTINATION),
  bpf.ifEqual(LOOPBACK_NET, "drop"),
  bpf.loadByteAtX(SOURCE),
  bpf.ifEqual(LOOPBACK_NET, "drop", "pass"),
  "pass",
  bpf.ret(TC_ACT.UNSPEC),
  "drop",
  bpf.ret(TC_ACT.SHOT),
]);

/** Leaves the type of the network header in A and its offset in X. */
function networkSteps(): BpfSource {
  return Array.from({ length: MAX_TAGS + 1 }, (_, tags) => {
    const next = tags < MAX_TAGS ? `tag ${tags + 1}` : "drop";
    return [
      `tag ${tags}`,
      bpf.setX(ETH.HLEN + tags * ETH.VLAN_HLEN),
      bpf.loadHalf(TYPE + tags * ETH.VLAN_HLEN),
      bpf.ifEqual(ETH.P_8021Q, next),
      bpf.ifEqual(ETH.P_8021AD, next, "network"),
    ];
  }).flat();
}

/** Whether the filter is there as it was made. */
export function hasLoopbackDrop(nl: NetlinkConnection, index: number): boolean {
  return find(nl, index).some(({ program, directAction }) =>
    directAction === true && program !== undefined && sameProgram(program, LOOPBACK_DROP)
  );
}

function find(nl: NetlinkConnection, index: number): Filter[] {
  return listFilters(nl, index, PARENT)
    .filter(({ kind, handle }) => kind === "bpf" && handle === HANDLE);
}

/** Whether a link has a qdisc that filters can be on. */
export function hasIngress(nl: NetlinkConnection, index: number): boolean {
  return ingressKind(nl, index) !== undefined;
}

/**
 * Puts the filter on a link, beside whatever others have there.
 *
 * Equivalent to: `tc qdisc add dev NAME clsact`, `tc filter add dev NAME ingress prio 1 handle 0x746b
 * bpf bytecode "…" direct-action`
 */
export function addLoopbackDrop(nl: NetlinkConnection, index: number): void {
  if (!hasIngress(nl, index)) addClsactQdisc(nl, index);
  const at = { index, parent: PARENT, handle: HANDLE, program: LOOPBACK_DROP };
  for (const priority of PRIORITIES) {
    try {
      return replaceBpfFilter(nl, { ...at, priority, name: "loopback" });
    } catch (error) {
      if (!failedWith(error, "EINVAL") || priority === PRIORITIES.at(-1)) throw error;
    }
  }
}

/**
 * Takes the filter away.
 *
 * @param qdisc whether its qdisc goes too, unless others have filters there by now
 */
export function removeLoopbackDrop(
  nl: NetlinkConnection,
  index: number,
  { qdisc = false }: { readonly qdisc?: boolean | undefined },
): void {
  if (!hasIngress(nl, index)) return;
  for (const { priority } of find(nl, index)) {
    deleteFilter(nl, { index, parent: PARENT, priority, handle: HANDLE });
  }
  const hooks = [TC_H.CLSACT_INGRESS, TC_H.CLSACT_EGRESS];
  const used = qdisc && hooks.some((parent) => listFilters(nl, index, parent).length > 0);
  if (qdisc && !used) deleteQdisc(nl, index);
}
