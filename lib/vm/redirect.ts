/**
 * Mode tc-redirect: a VM's TAP and its interface are one wire.
 *
 * ```
 *   network ── eth0 ──ingress──▶ egress── vm_eth0 ── guest
 *                 ◀──egress   ingress──
 * ```
 *
 * All frames that reach eth0 go to the TAP, and all that the guest sends go out of eth0, by a
 * u32 + mirred filter on either side's ingress qdisc. eth0 keeps the address and the MAC that CNI
 * gave it; the guest has the same ones. A classic BPF filter before each keeps DHCP, which belongs to the
 * host, from passing, and at eth0 drops what a hairpin bridge port reflects.
 *
 * @module
 */

import { dhcpGuard, wireGuard } from "../dhcp/filter.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { addBpfFilter, addRedirectFilter, listFilters } from "../netlink/filter.ts";
import { deleteLink, getLink, type Link, requireLink, setLink } from "../netlink/link.ts";
import { addIngressQdisc, deleteQdisc } from "../netlink/qdisc.ts";
import { type Netns, withNetns } from "../sys/netns.ts";
import { createTap } from "../sys/tap.ts";
import type { UndoStack } from "../undo.ts";

/** Filters run in this order: what must not pass is dropped before the rest is redirected. */
const PRIORITY = { GUARD: 1, REDIRECT: 2 } as const;

/** The two ends of a wire. */
export interface WireEnds {
  /** The interface CNI made: `"eth0"`. */
  readonly link: string;
  /** The TAP: `"vm_eth0"`. */
  readonly tap: string;
}

/** The wire between one interface and its TAP. */
export interface Redirect extends WireEnds {
  /** The interface's MAC, which is the guest's too. */
  readonly mac: string;
  /** Bytes. */
  readonly mtu: number;
  /** Who may open the TAP beside root. */
  readonly owner?: number;
  readonly group?: number;
}

/**
 * Makes the TAP and joins it to the interface.
 *
 * Equivalent to: `ip tuntap add vm_eth0 mode tap`, `tc qdisc add dev … ingress` and
 * `tc filter add dev … parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev …`
 * on either side.
 *
 * @param nl a connection of the VM's namespace
 */
export function addRedirect(
  nl: NetlinkConnection,
  netns: Netns,
  redirect: Redirect,
  undo: UndoStack,
): void {
  const { tap: name, mtu, owner, group } = redirect;
  let made = false;
  undo.push(`TAP "${name}"`, () => made && deleteLink(nl, name));
  withNetns(netns, () => {
    createTap({
      name,
      ...owner === undefined ? {} : { owner },
      ...group === undefined ? {} : { group },
    });
    made = true;
    silenceIpv6(name);
  });
  const link = requireLink(nl, redirect.link);
  const tap = requireLink(nl, name);
  undo.push(`ingress qdisc of "${redirect.link}"`, () => deleteIngress(nl, redirect.link));
  setLink(nl, tap.index, { mtu });
  join(nl, tap, link, redirect);
  setLink(nl, tap.index, { up: true });
}

/** Puts the filters on both sides; the guards first, so that nothing passes before them. */
function join(nl: NetlinkConnection, tap: Link, link: Link, redirect: Redirect): void {
  for (const { index } of [tap, link]) addIngressQdisc(nl, index);
  const guard = (index: number, name: string, program: ReturnType<typeof dhcpGuard>) =>
    addBpfFilter(nl, { index, priority: PRIORITY.GUARD, name, program });
  guard(tap.index, "tapkit-dhcp", dhcpGuard());
  guard(link.index, "tapkit-wire", wireGuard(redirect.mac));
  addRedirectFilter(nl, { index: tap.index, target: link.index, priority: PRIORITY.REDIRECT });
  addRedirectFilter(nl, { index: link.index, target: tap.index, priority: PRIORITY.REDIRECT });
}

/** The namespace's own stack has no business on the wire; the guest's IPv6 passes all the same. */
function silenceIpv6(link: string): void {
  try {
    Deno.writeTextFileSync(`/proc/sys/net/ipv6/conf/${link}/disable_ipv6`, "1");
  } catch (error) {
    // A kernel without IPv6 has no such file.
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

function deleteIngress(nl: NetlinkConnection, name: string): void {
  const link = getLink(nl, name);
  if (link !== undefined) deleteQdisc(nl, link.index);
}

/** The wire of an interface by its name: `"eth0"` has the TAP `"vm_eth0"`. */
export function wireEnds(ifName: string): WireEnds {
  return { link: ifName, tap: `vm_${ifName}` };
}

/** Takes the TAP and the filters away; what is gone already is no error. */
export function removeRedirect(nl: NetlinkConnection, { link, tap }: WireEnds): void {
  deleteLink(nl, tap);
  deleteIngress(nl, link);
}

/** What differs from what {@linkcode addRedirect} made; empty when nothing does. */
export function checkRedirect(nl: NetlinkConnection, redirect: Redirect): string[] {
  const link = getLink(nl, redirect.link);
  const tap = getLink(nl, redirect.tap);
  if (link === undefined) return [`interface "${redirect.link}" is missing`];
  if (tap === undefined) return [`TAP "${redirect.tap}" is missing`];
  const problems: string[] = [];
  if (!tap.up) problems.push(`TAP "${redirect.tap}" is down`);
  if (tap.mtu !== redirect.mtu) {
    problems.push(`TAP "${redirect.tap}" has MTU ${tap.mtu}, not ${redirect.mtu}`);
  }
  if (link.mac !== redirect.mac) {
    problems.push(`interface "${redirect.link}" has MAC ${link.mac}, not ${redirect.mac}`);
  }
  for (const [from, to] of [[tap, link], [link, tap]] as const) {
    const filters = listFilters(nl, from.index);
    const redirects = filters.some(({ redirectTo }) => redirectTo === to.index);
    if (!redirects) problems.push(`frames from "${from.name}" are not redirected to "${to.name}"`);
    if (!filters.some(({ kind }) => kind === "bpf")) {
      problems.push(`the DHCP guard of "${from.name}" is missing`);
    }
  }
  return problems;
}
