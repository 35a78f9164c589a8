/**
 * The host's firewall: changes guests' rules, and compares them with the kernel.
 *
 * @module
 */

import type { Finding } from "../finding.ts";
import type { Family } from "../inet/ip.ts";
import { PortConflictError, type PortMapping } from "../inet/ports.ts";
import type { NftMemory } from "../netlink/nftables/memory.ts";
import {
  addressesOf,
  apartElements,
  elementsOf,
  HOST_OWNER,
  hostPortOf,
  type LinkPair,
  rulesOf,
} from "./guest-elements.ts";
import type { MappedPorts } from "./mapped-ports.ts";
import { type GuestRules, validateRules } from "./model.ts";
import type { OtherFirewalls } from "./passes.ts";
import {
  bring,
  byId,
  compare,
  type Entry,
  entryId,
  type FirewallLayer,
  type Place,
  sameValue,
  type Wish,
} from "./place.ts";
import { GUEST_SET_NAMES } from "./ruleset.ts";
import { type FlowParts, StaleFlows } from "./stale-flows.ts";
import type { ElementStore, FirewallKind } from "./store.ts";

/** One difference between a guest's rules and the kernel's. */
export interface FirewallDifference extends Finding {
  readonly layer: FirewallLayer;
}

/** What a {@linkcode Firewall} works with, beside the store of its elements. */
interface Parts extends FlowParts {
  readonly policies: readonly Place[];
  /** What is remembered of nf_tables. Its connection is closed with the firewall. */
  readonly memory: NftMemory;
  readonly legacy: Disposable;
  readonly isMixed: () => boolean;
  /** Finds other firewalls. */
  readonly others: () => OtherFirewalls;
  readonly lookAtPorts: () => Promise<MappedPorts>;
}

/** How an owner's rules are changed. */
export interface ChangeOptions {
  /**
   * The guest goes with its rules, so nobody answers its connections: they are ended where its ports or
   * addresses are given out again.
   */
  readonly leaves?: boolean;
}

/**
 * tapkit's rules in the network namespace where this was opened. The thread may enter others later.
 *
 * A change is one transaction in each place. It also creates the rules that all guests share if some
 * are missing. Then it ends the tracked connections that the change concerns. The caller holds a lock
 * if several processes may change ports at the same time.
 *
 * Dispose it late: after elements were deleted, closing the socket waits some 15 ms until the kernel
 * has freed them.
 */
export class Firewall implements Disposable {
  readonly #store: ElementStore;
  readonly #parts: Parts;
  /** The tracked connections that changes end. */
  readonly flows: StaleFlows;
  /** Families whose links are to be kept apart anew: a change has recreated the rules that all guests share. */
  readonly #remade = new Set<Family>();

  /** @param store closed with this, like the connection; all belong to one namespace */
  constructor(store: ElementStore, parts: Parts) {
    this.#store = store;
    this.#parts = parts;
    this.flows = new StaleFlows(parts);
  }

  /**
   * Whether a change has recreated the rules that all guests share since the last {@linkcode keepApart}.
   *
   * @param family either unless given
   */
  isRemade(family?: Family): boolean {
    return family === undefined ? this.#remade.size > 0 : this.#remade.has(family);
  }

  /** Whether the other backend may have rules of tapkit's too. */
  isMixed(): boolean {
    this.#parts.memory.refresh();
    return this.#parts.isMixed();
  }

  /** The backend. */
  get kind(): FirewallKind {
    return this.#store.kind;
  }

  /**
   * Brings an owner's rules to the wanted state. What is in both states is not touched, nor are its
   * connections. The connections of removed rules end. A rule to remove that does not exist, or has
   * another owner now, is skipped.
   *
   * @param have the previous rules, if any; `"any"` if unknown: all rules with the owner's tag
   * @param want the wanted rules; undefined removes all
   * @returns whether anything was changed
   * @throws {InputError} when the rules are malformed
   * @throws {PortConflictError} when another owner has one of the host ports
   * @throws {LimitsError} when the kernel does not support limits
   * @throws {TapkitError} when a policy or another firewall needs libnftables, and it is missing
   */
  change(
    owner: string,
    have: GuestRules | "any" | undefined,
    want: GuestRules | undefined,
    { leaves = false }: ChangeOptions = {},
  ): boolean {
    const before = typeof have === "object" ? validateRules(have) : have;
    const after = want && validateRules(want);
    const { closing, passes } = this.#findOthers();
    // Rules that drop are added before those that accept, and removed after them.
    const places = [...this.#parts.policies, ...closing, this.#store, ...passes];
    if (after === undefined) places.reverse();
    return places.map((place) => this.#bring(place, owner, before, after, leaves)).includes(true);
  }

  #bring(
    place: Place,
    owner: string,
    before: GuestRules | "any" | undefined,
    after: GuestRules | undefined,
    leaves: boolean,
  ): boolean {
    const want = after === undefined ? [] : place.want(after);
    if (place.whole) {
      const concerned = after === undefined || before === "any" || after.forward || before?.forward;
      return concerned === true && bring(place, { owner, have: "any", want }).changed;
    }
    const have = typeof before === "object" ? place.want(before) : before ?? [];
    if (place === this.#store) {
      const old = typeof before === "object" ? before.addresses : [];
      const leaving = old.filter((address) => !after?.addresses.includes(address));
      if (leaves && have !== "any" && want.length === 0 && this.flows.note(have, leaving)) {
        return bring(this.#store, { owner, have, want }).changed;
      }
      return this.#apply({ owner, have, want }, leaving);
    }
    const idle = have !== "any" && have.length + want.length === 0;
    return !idle && bring(place, { owner, have, want }).changed;
  }

  /** Compares a guest's rules with the kernel's. */
  differences(rules: GuestRules): FirewallDifference[] {
    const valid = validateRules(rules);
    const { closing, passes } = this.#findOthers();
    return [...this.#parts.policies, this.#store, ...valid.forward ? [...passes, ...closing] : []]
      .flatMap((place) =>
        compare(place, valid.owner, place.want(valid))
          .map((finding) => ({ layer: place.layer, ...finding }))
      );
  }

  /** Whether another firewall drops forwarded packets by default. */
  dropsForwarded(): boolean {
    return this.#findOthers().drops();
  }

  /**
   * The firewall that keeps a guest's published ports closed to other machines: `"ufw"`,
   * `"firewalld"`; undefined if there is none, or the ports are open.
   */
  closedBy({ forward, openPorts, ports }: GuestRules): string | undefined {
    if (!forward || openPorts || ports.length === 0) return undefined;
    return this.#findOthers().denies();
  }

  /**
   * Lists the guests that have rules in the kernel. Port ranges come as single ports. `forward` is
   * always true. Policies are not included.
   */
  listGuests(): GuestRules[] {
    return rulesOf(this.#store.readSets(GUEST_SET_NAMES).filter(({ owner }) => owner !== ""));
  }

  /** The owners of all rules in every place: guests, addresses and bridges. */
  owners(): Set<string> {
    const { closing, passes } = this.#parts.others();
    const guests = this.#store.readSets(GUEST_SET_NAMES);
    const others = [...this.#parts.policies, ...closing, ...passes]
      .flatMap((place) => [...place.read("any", []).entries.values()]);
    const owners = new Set([...guests, ...others].map(({ owner }) => owner));
    for (const nobody of ["", HOST_OWNER]) owners.delete(nobody);
    return owners;
  }

  /** Whether this backend has any rules of tapkit's. */
  exists(): boolean {
    return this.#store.exists();
  }

  /** Reads which host ports are mapped in this namespace, by tapkit and by others. */
  async mappedPorts(): Promise<MappedPorts> {
    this.#parts.memory.refresh();
    return await this.#parts.lookAtPorts();
  }

  #findOthers(): OtherFirewalls {
    this.#parts.memory.refresh();
    return this.#parts.others();
  }

  /**
   * Drops packets that would be forwarded from one link to another, for these pairs and no others.
   * Packets from guests, and to guests through ports, are not affected.
   *
   * @returns whether anything was changed
   */
  keepApart(family: Family, pairs: readonly LinkPair[]): boolean {
    if (pairs.length === 0 && !this.#store.exists()) return false;
    const have = this.#store.readSets([`apart${family}`]);
    const changed = this.#apply({ owner: HOST_OWNER, have, want: apartElements(family, pairs) });
    this.#remade.delete(family);
    return changed;
  }

  /** Finds the pairs of links that {@linkcode keepApart} should have set, but are missing. */
  differencesApart(family: Family, pairs: readonly LinkPair[]): Finding[] {
    if (pairs.length === 0) return [];
    const entries = byId(this.#store.readSets([`apart${family}`]));
    return apartElements(family, pairs).filter((element) => !entries.has(entryId(element)))
      .map((element) => this.#store.missing(element));
  }

  /**
   * Removes the rules that all guests share if no guest is left. The caller holds the lock that
   * guards adding rules.
   *
   * @returns whether anything was removed
   */
  removeIfUnused(): boolean {
    if (!this.#store.exists()) return false;
    for (const set of GUEST_SET_NAMES) if (this.#store.readSets([set]).length > 0) return false;
    this.#store.delete();
    return true;
  }

  /**
   * Ends connections to a guest's ports that lead elsewhere.
   *
   * @param gone ports of the guest that somebody else mapped before
   */
  endStaleFlows(rules: GuestRules, gone: readonly PortMapping[] = []): void {
    const wanted = elementsOf(validateRules(rules));
    this.flows.end({
      changed: [...wanted, ...elementsOf(validateRules({ ...rules, ports: gone }))],
      wanted: byId(wanted),
      leaving: [],
    });
  }

  [Symbol.dispose](): void {
    using stack = new DisposableStack();
    const { memory, legacy } = this.#parts;
    for (const part of [memory.nl, legacy, this.#store]) stack.use(part);
    this.flows.settle();
  }

  /** @param leaving former addresses of the owner; all their flows end */
  #apply(wish: Wish<Entry>, leaving: readonly string[] = []): boolean {
    const { have, want } = wish;
    if (have !== "any" && have.length + want.length + leaving.length === 0) return false;
    const { changed, mended, added, replaced, stale, foreign, gone } = bring(
      this.#store,
      wish,
      refuseConflict,
    );
    if (mended) { for (const family of [4, 6] as const) this.#remade.add(family); }
    const kept = new Set(addressesOf(want));
    const left = have === "any"
      ? addressesOf(stale).filter((address) => !kept.has(address))
      : leaving;
    this.flows.endGone(
      added,
      have === "any" ? [] : [...kept].filter((one) => !addressesOf(have).includes(one)),
    );
    // If an address has another owner now, its flows belong to that owner.
    const taken = new Set(foreign.map(({ key }) => key[0]!));
    // A TCP port that was free has no connections: its last owner's removal ended them.
    const flowing = added.filter((element) => hostPortOf(element).protocol !== "tcp");
    this.flows.end({
      // A process may have been killed after it removed elements, before it ended connections.
      changed: [...stale, ...gone, ...replaced, ...flowing],
      wanted: byId(want),
      leaving: left.filter((address) => !taken.has(address)),
    });
    return changed;
  }
}

/** Refuses a port that another owner has, and that leads elsewhere. */
function refuseConflict(found: Entry, wanted: Entry): void {
  if (found.owner === wanted.owner || sameValue(found, wanted)) return;
  const { protocol, hostIP, hostPort } = hostPortOf(wanted);
  const owner = found.owner;
  const holder = owner === "" ? "somebody without a tag" : owner;
  throw new PortConflictError(
    { protocol, hostIP, hostPort, owner },
    `already mapped to ${holder}`,
  );
}
