/**
 * Wires: TAPs, and their connection to the interfaces in either mode.
 *
 * A classic BPF filter, the guard, at the ingress of each end comes before the filters of the mode.
 * It drops DHCP, which the host answers. At the TAP it drops frames from another's address, and at
 * the interface frames that a hairpin bridge port reflects.
 *
 * @module
 */

import type { NetlinkConnection } from "../../netlink/connection.ts";
import { NetlinkError } from "../../netlink/errors.ts";
import { parseCidr } from "../../inet/ip.ts";
import { bpfReplacement, listFilters, sameProgram } from "../../netlink/filter.ts";
import { deleteLink, getLink, type Link, requireLinks, setLink } from "../../netlink/link.ts";
import { qdiscAddition } from "../../netlink/qdisc.ts";
import type { BpfInstruction } from "../../sys/bpf.ts";
import { type Netns, withNetns } from "../../sys/netns.ts";
import { createTap } from "../../sys/tap.ts";
import type { UndoStack } from "../../undo.ts";
import { LINK_GROUP } from "../../cni/plugins/veth.ts";
import type { Finding } from "../../finding.ts";
import { type GuardPolicy, wireGuard } from "./guard.ts";
import { type GuestIdentity, tapGuard } from "./guest-guard.ts";
import { plainGuards } from "./plain-guards.ts";
import { innerBridge } from "./inner-bridge.ts";
import { redirect } from "./redirect.ts";
import type { GuestLink } from "../record/attachment.ts";
import { DEFAULT_LINK_LOCAL } from "../record/derive.ts";
import { linkNames } from "../record/identity.ts";
import type { AttachMode } from "../types.ts";
import type { Wire } from "./wire.ts";

const WIRES: Readonly<Record<AttachMode, Wire>> = {
  "tc-redirect": redirect,
  "dhcp-bridge": innerBridge,
};

/** Modes in the order `auto` tries them. */
const MODES = Object.keys(WIRES) as AttachMode[];

const GUARD_PRIORITY = 1;

/** A mode, or the first that the kernel supports. */
type WantedMode = "auto" | AttachMode;

/** How to create a wire. */
export interface WireRequest {
  readonly netns: Netns;
  /** A connection in that namespace. */
  readonly nl: NetlinkConnection;
  readonly mode: WantedMode;
  /** The uid and gid that may open the TAP besides root. */
  readonly owner?: number;
  readonly group?: number;
  /** A TAP that is there already, quiet and root's. */
  readonly tap?: string | undefined;
  readonly undo: UndoStack;
  note(text: string): void;
}

/** An interface to connect to a TAP. */
export interface Wireable {
  /** `"eth0"`. */
  readonly name: string;
  /** The guest's MAC, which CNI gave the interface. */
  readonly mac: string;
  /** Bytes. */
  readonly mtu: number;
  /** How many queues of the TAP a VMM may open; one if absent. */
  readonly queues?: number | undefined;
  /** Whether a daemon leases its addresses, which then must stay on the interface. */
  readonly leased?: true | undefined;
}

/** Whether a mode moves the address, MAC and routes from the interface to the guest. */
export function movesIdentity(mode: AttachMode): boolean {
  return WIRES[mode].movesIdentity;
}

/**
 * Creates an interface's TAP and connects the two. Mode `auto` is the first that the kernel
 * supports. The TAP stays down, so that nothing passes before the guards exist.
 *
 * Equivalent to: `ip tuntap add vm_eth0 mode tap [multi_queue]`, `ip link set vm_eth0 mtu N`, and what the mode does
 *
 * @returns the mode
 */
export function addWire(request: WireRequest, made: Wireable): AttachMode {
  const { nl, netns, undo } = request;
  const names = linkNames(made.name);
  makeTap(request, names.tap, made.queues);
  const [tap, link] = requireEnds(nl, made.name);
  const ends = { nl, netns, names, mac: made.mac, link, tap };
  setLink(nl, tap.index, { mtu: made.mtu, group: LINK_GROUP });
  const modes = request.mode === "auto" ? modesFor(made) : [request.mode];
  for (const [index, mode] of modes.entries()) {
    const wire = WIRES[mode];
    undo.push(`the wire of "${names.link}"`, () => wire.part(nl, names));
    try {
      wire.join(ends);
      return mode;
    } catch (error) {
      const next = modes[index + 1];
      if (next === undefined || !lacksFeature(error)) throw error;
      wire.part(nl, names);
      request.note(`"${made.name}" gets mode ${next}: this kernel lacks ${error.missingFeature}`);
    }
  }
  throw new RangeError("no mode is given");
}

/** Modes in the order `auto` tries them. Leased addresses must stay on the interface. */
function modesFor({ leased }: Wireable): AttachMode[] {
  return leased ? MODES.filter((mode) => !movesIdentity(mode)) : MODES;
}

function makeTap(
  { nl, netns, owner, group, tap, undo }: WireRequest,
  name: string,
  queues = 1,
): void {
  let made = tap === name;
  undo.push(`TAP "${name}"`, () => made && deleteLink(nl, name));
  if (made) return;
  const options = {
    name,
    ...owner === undefined ? {} : { owner },
    ...group === undefined ? {} : { group },
    multiQueue: queues > 1,
    // The namespace's own stack must not use the wire.
    quiet: true,
  };
  withNetns(netns, () => createTap(options));
  made = true;
}

/** An interface with guards. */
export interface Guarded extends Pick<GuestLink, "mac" | "addresses" | "leased"> {
  /** `"eth0"`. */
  readonly name: string;
  /** Whether frames from another MAC or address than the guest's are dropped. */
  readonly antispoof: boolean;
  /** `"eui64"`, `"any"`, or the guest's link-local address. */
  readonly linkLocal: string;
}

/**
 * Sets or replaces the guards of both ends.
 *
 * @param mode the mode of a new wire, which may have given both ends an ingress qdisc
 * @returns false if the kernel does not support them
 */
export function setGuards(
  nl: NetlinkConnection,
  guarded: Guarded,
  policy?: GuardPolicy,
  mode?: AttachMode,
): boolean {
  return putGuards(nl, requireEnds(nl, guarded.name), guards(guarded, policy), mode);
}

/** The TAP and the interface. */
type Ends = readonly [tap: Link, link: Link];

function requireEnds(nl: NetlinkConnection, ifName: string): Ends {
  const { tap, link } = linkNames(ifName);
  return requireLinks(nl, [tap, link]) as [Link, Link];
}

function putGuards(
  nl: NetlinkConnection,
  ends: Ends,
  wanted: Guards,
  mode: AttachMode | undefined,
): boolean {
  try {
    const hasIngress = mode !== undefined && WIRES[mode].hasIngress;
    nl.changeAll(ends.flatMap(({ index }, end) => [
      ...hasIngress ? [] : [qdiscAddition(nl, index, "ingress")],
      bpfReplacement(nl, {
        index,
        priority: GUARD_PRIORITY,
        name: "guard",
        program: wanted[end]!,
      }),
    ]));
    return true;
  } catch (error) {
    if (lacksFeature(error)) return false;
    throw error;
  }
}

/**
 * Sets the guards of a new wire, then sets its TAP up.
 *
 * @returns false if the kernel does not support guards
 */
export function openWire(
  nl: NetlinkConnection,
  mode: AttachMode,
  guarded: Guarded,
  policy?: GuardPolicy,
): boolean {
  const ends = requireEnds(nl, guarded.name);
  const done = putGuards(nl, ends, guards(guarded, policy), mode);
  setLink(nl, ends[0].index, { up: true });
  return done;
}

/** Compares the guards in the kernel with those that {@linkcode setGuards} sets. */
export function checkGuards(
  nl: NetlinkConnection,
  guarded: Guarded,
  policy?: GuardPolicy,
): Finding[] {
  const { tap, link } = linkNames(guarded.name);
  const ends = [tap, link];
  return guards(guarded, policy).flatMap((program, end) => {
    const link = ends[end]!;
    const index = getLink(nl, link)?.index;
    if (index === undefined) return [];
    const present = listFilters(nl, index).find(({ priority, kind }) =>
      priority === GUARD_PRIORITY && kind === "bpf"
    );
    const object = `the guard of "${link}"`;
    if (present === undefined) return [{ object, problem: "is missing" }];
    if (present.directAction && sameProgram(present.program ?? [], program)) return [];
    return [{ object, problem: "is not that of the record" }];
  });
}

/** The programs of the TAP and of the interface. */
type Guards = readonly [tap: readonly BpfInstruction[], link: readonly BpfInstruction[]];

function guards(guarded: Guarded, policy?: GuardPolicy): Guards {
  const identity = identityOf(guarded);
  const leased = guarded.leased === true;
  if (policy === undefined && identity !== undefined) return plainGuards(identity, leased);
  return [tapGuard(identity, policy), wireGuard(guarded.mac, { leased, policy })];
}

function identityOf(guarded: Guarded): GuestIdentity | undefined {
  const { mac, addresses, antispoof, linkLocal } = guarded;
  if (!antispoof) return undefined;
  return {
    mac,
    addresses: addresses.map(({ address }) => parseCidr(address).address),
    foreign: addresses.flatMap(({ gateway }) => gateway ?? []),
    ...linkLocal === DEFAULT_LINK_LOCAL ? {} : { linkLocal },
  };
}

function lacksFeature(error: unknown): error is NetlinkError {
  return error instanceof NetlinkError && error.missingFeature !== undefined;
}

/**
 * Deletes an interface's TAP and its connection, as far as they exist.
 *
 * @param mode `auto` if the mode is not known
 */
export function removeWire(nl: NetlinkConnection, ifName: string, mode: WantedMode): void {
  const names = linkNames(ifName);
  deleteLink(nl, names.tap);
  for (const one of mode === "auto" ? MODES : [mode]) WIRES[one].part(nl, names);
}

/** Compares a wire with what {@linkcode addWire} and {@linkcode openWire} made. */
export function checkWire(
  nl: NetlinkConnection,
  { name, mac, mtu, mode, queues = 1 }: Wireable & { readonly mode: AttachMode },
): Finding[] {
  const names = linkNames(name);
  const link = getLink(nl, names.link);
  const tap = getLink(nl, names.tap);
  if (link === undefined) return [{ object: `interface "${names.link}"`, problem: "is missing" }];
  const object = `TAP "${names.tap}"`;
  if (tap === undefined) return [{ object, problem: "is missing" }];
  const several = queues > 1;
  const { multiQueue = several } = tap.tun ?? {};
  return [
    ...tap.up ? [] : [{ object, problem: "is down" }],
    ...tap.mtu === mtu ? [] : [{ object, problem: `has MTU ${tap.mtu}, not ${mtu}` }],
    ...multiQueue === several
      ? []
      : [{ object, problem: several ? "has one queue only" : "has several queues" }],
    ...WIRES[mode].check({ nl, names, link, tap, mac }),
  ];
}
