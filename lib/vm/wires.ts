/**
 * TAPs and what joins them to their interfaces, whatever the mode.
 *
 * A classic BPF filter at the ingress of either end comes before the mode's own means: it keeps DHCP,
 * which belongs to the host, from passing, at the TAP drops what the guest sends in another's name,
 * and at the interface what a hairpin bridge port reflects.
 *
 * @module
 */

import type { NetlinkConnection } from "../netlink/connection.ts";
import { NetlinkError } from "../netlink/errors.ts";
import { parseCidr } from "../inet/ip.ts";
import { listFilters, replaceBpfFilter, sameProgram } from "../netlink/filter.ts";
import { deleteLink, getLink, requireLink, setLink } from "../netlink/link.ts";
import { addIngressQdisc } from "../netlink/qdisc.ts";
import type { BpfInstruction } from "../sys/bpf.ts";
import { type Netns, withNetns } from "../sys/netns.ts";
import { writeSysctl } from "../sys/sysctl.ts";
import { createTap } from "../sys/tap.ts";
import type { UndoStack } from "../undo.ts";
import { LINK_GROUP } from "../cni/plugins/veth.ts";
import { type GuardPolicy, wireGuard } from "./guard.ts";
import { type GuestIdentity, tapGuard } from "./guest-guard.ts";
import { innerBridge } from "./inner-bridge.ts";
import { redirect } from "./redirect.ts";
import { DEFAULT_LINK_LOCAL } from "./request.ts";
import type { AttachMode, AttachRequest, VmInterface } from "./types.ts";
import { resolveOwner } from "./users.ts";
import type { Wire, WireNames } from "./wire.ts";

const WIRES: Readonly<Record<AttachMode, Wire>> = {
  "tc-redirect": redirect,
  "dhcp-bridge": innerBridge,
};

/** Modes in the order `auto` tries them. */
const MODES = Object.keys(WIRES) as AttachMode[];

const GUARD_PRIORITY = 1;

/** A mode, or the first that the kernel has the means for. */
export type WantedMode = "auto" | AttachMode;

/** An interface as its network made it, before a mode took hold of it. */
export type UnwiredInterface = Omit<VmInterface, "mode" | "bridge" | "tap" | "dhcpGuard">;

/** How to make a wire. */
export interface WireRequest {
  readonly netns: Netns;
  /** A connection of that namespace. */
  readonly nl: NetlinkConnection;
  readonly mode: WantedMode;
  /** The uid, and the gid, who may open the TAP beside root. */
  readonly owner?: number;
  readonly group?: number;
  readonly undo: UndoStack;
  /** What the guards are to keep beside who the guest is. */
  readonly policy?: GuardPolicy | undefined;
  note(text: string): void;
}

/** What a request wants of a wire. */
export function wireRequest(
  { mode = "auto", tapOwner }: AttachRequest,
  environment: Omit<WireRequest, "mode" | "owner" | "group">,
): WireRequest {
  return { ...environment, mode, ...tapOwner === undefined ? {} : resolveOwner(tapOwner) };
}

/** An interface with the guards that a request wants. */
export function guardedAs<T extends UnwiredInterface>(
  link: T,
  { antispoof = true, linkLocal = DEFAULT_LINK_LOCAL }: AttachRequest,
): T {
  const { antispoof: _, linkLocal: __, ...rest } = link;
  return {
    ...rest,
    ...antispoof ? {} : { antispoof },
    ...linkLocal === DEFAULT_LINK_LOCAL ? {} : { linkLocal },
  } as T;
}

/** The names of the links of an interface's wire. */
export function wireNames(ifName: string): WireNames {
  return { link: ifName, tap: `vm_${ifName}`, bridge: `br_${ifName}` };
}

/** The names of the links that wanting a mode may make. */
export function madeLinks(ifName: string, mode: WantedMode): string[] {
  const { tap, bridge } = wireNames(ifName);
  return mode === "tc-redirect" ? [tap] : [tap, bridge];
}

/** Whether a mode leaves the interface without the address, MAC and routes that its network gave. */
export function movesIdentity(mode: AttachMode): boolean {
  return WIRES[mode].movesIdentity;
}

/**
 * Makes an interface's TAP and joins the two, by the first mode the kernel has the means for where
 * that is left open.
 *
 * Equivalent to: `ip tuntap add vm_eth0 mode tap`, `ip link set vm_eth0 mtu N up`, `tc qdisc add dev
 * … ingress`, `tc filter add dev … parent ffff: bpf …` on either side, and what the mode does
 *
 * @returns the interface as it is recorded
 */
export function addWire(request: WireRequest, made: UnwiredInterface): VmInterface {
  const { nl, netns, undo } = request;
  const names = wireNames(made.name);
  makeTap(request, names.tap);
  const ends = {
    nl,
    netns,
    names,
    mac: made.mac,
    link: requireLink(nl, names.link),
    tap: requireLink(nl, names.tap),
  };
  setLink(nl, ends.tap.index, { mtu: made.mtu, group: LINK_GROUP });
  const modes = request.mode === "auto" ? modesFor(made) : [request.mode];
  for (const [index, mode] of modes.entries()) {
    const wire = WIRES[mode];
    undo.push(`the wire of "${names.link}"`, () => wire.part(nl, names));
    let guarded: boolean;
    try {
      guarded = setGuards(nl, made, request.policy);
      wire.join({ ...ends, guarded });
    } catch (error) {
      const next = modes[index + 1];
      if (next === undefined || !lacksFeature(error)) throw error;
      wire.part(nl, names);
      request.note(`"${made.name}" gets mode ${next}: this kernel lacks ${error.missingFeature}`);
      continue;
    }
    if (!guarded) {
      request.note(
        `warning: this kernel lacks CONFIG_NET_CLS_BPF: DHCP passes between "${made.name}" and ` +
          "its network, another server may answer the guest, and the guest may send in the name " +
          `of others${made.leased ? "; nobody renews its lease" : ""}`,
      );
    }
    setLink(nl, ends.tap.index, { up: true });
    const { name, network, ...rest } = made;
    return {
      name,
      network,
      mode,
      tap: names.tap,
      ...wire.movesIdentity ? { bridge: names.bridge } : {},
      ...rest,
      ...guarded ? {} : { dhcpGuard: false },
    };
  }
  throw new RangeError("no mode is wanted");
}

/** Modes in the order `auto` tries them; where addresses are leased, those that leave them there. */
function modesFor({ leased }: UnwiredInterface): AttachMode[] {
  return leased ? MODES.filter((mode) => !movesIdentity(mode)) : MODES;
}

function makeTap({ nl, netns, owner, group, undo }: WireRequest, name: string): void {
  let made = false;
  undo.push(`TAP "${name}"`, () => made && deleteLink(nl, name));
  withNetns(netns, () => {
    createTap({
      name,
      ...owner === undefined ? {} : { owner },
      ...group === undefined ? {} : { group },
    });
    made = true;
    // The namespace's own stack has no business on the wire; the guest's IPv6 passes all the same.
    writeSysctl(`net/ipv6/conf/${name}/disable_ipv6`, "1");
  });
}

/** What is known of an interface whose frames are guarded. */
type GuardedInterface = Pick<
  VmInterface,
  "name" | "mac" | "addresses" | "antispoof" | "linkLocal" | "leased"
>;

/**
 * Puts the guards on both ends, before anything can pass, or these in place of others while the
 * guest runs.
 *
 * @returns false where the kernel has no means for it
 */
export function setGuards(
  nl: NetlinkConnection,
  guarded: GuardedInterface,
  policy?: GuardPolicy,
): boolean {
  try {
    for (const { link, program } of guards(guarded, policy)) {
      const { index } = requireLink(nl, link);
      addIngressQdisc(nl, index);
      replaceBpfFilter(nl, { index, priority: GUARD_PRIORITY, name: "guard", program });
    }
    return true;
  } catch (error) {
    if (lacksFeature(error)) return false;
    throw error;
  }
}

/** What differs from what {@linkcode setGuards} put there, as sentences. */
export function checkGuards(
  nl: NetlinkConnection,
  recorded: VmInterface,
  policy?: GuardPolicy,
): string[] {
  if (recorded.dhcpGuard === false) return [];
  return guards(recorded, policy).flatMap(({ link, program }) => {
    const index = getLink(nl, link)?.index;
    if (index === undefined) return [];
    const present = listFilters(nl, index).find(({ priority, kind }) =>
      priority === GUARD_PRIORITY && kind === "bpf"
    );
    if (present === undefined) return [`the guard of "${link}" is missing`];
    if (present.directAction && sameProgram(present.program ?? [], program)) return [];
    return [`the guard of "${link}" is not that of the record`];
  });
}

function guards(
  guarded: GuardedInterface,
  policy?: GuardPolicy,
): { link: string; program: BpfInstruction[] }[] {
  const { link, tap } = wireNames(guarded.name);
  return [
    { link: tap, program: tapGuard(identityOf(guarded), policy) },
    { link, program: wireGuard(guarded.mac, { leased: guarded.leased === true, policy }) },
  ];
}

function identityOf(guarded: GuardedInterface): GuestIdentity | undefined {
  const { mac, addresses, antispoof, linkLocal } = guarded;
  if (antispoof === false) return undefined;
  return {
    mac,
    addresses: addresses.map(({ address }) => parseCidr(address).address),
    foreign: addresses.flatMap(({ gateway }) => gateway ?? []),
    ...linkLocal === undefined ? {} : { linkLocal },
  };
}

function lacksFeature(error: unknown): error is NetlinkError {
  return error instanceof NetlinkError && error.missingFeature !== undefined;
}

/**
 * Takes an interface's TAP away, and what joined the two; what is gone already is no error.
 *
 * @param mode `auto` where it is not known which one it came to
 */
export function removeWire(nl: NetlinkConnection, ifName: string, mode: WantedMode): void {
  const names = wireNames(ifName);
  deleteLink(nl, names.tap);
  for (const one of mode === "auto" ? MODES : [mode]) WIRES[one].part(nl, names);
}

/** What differs from what {@linkcode addWire} made, guards apart; empty when nothing does. */
export function checkWire(nl: NetlinkConnection, recorded: VmInterface): string[] {
  const names = wireNames(recorded.name);
  const link = getLink(nl, names.link);
  const tap = getLink(nl, names.tap);
  if (link === undefined) return [`interface "${names.link}" is missing`];
  if (tap === undefined) return [`TAP "${names.tap}" is missing`];
  const problems: string[] = [];
  if (!tap.up) problems.push(`TAP "${tap.name}" is down`);
  if (tap.mtu !== recorded.mtu) {
    problems.push(`TAP "${tap.name}" has MTU ${tap.mtu}, not ${recorded.mtu}`);
  }
  const { mac, mode } = recorded;
  return [...problems, ...WIRES[mode].check({ nl, names, link, tap, mac })];
}
