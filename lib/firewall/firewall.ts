/**
 * The host's firewall: guests' rules changed and compared, wherever they are kept.
 *
 * @module
 */

import { type Finding, sentence } from "../finding.ts";
import { type Family, isLoopback } from "../inet/ip.ts";
import { PortConflictError, type PortMapping } from "../inet/ports.ts";
import { deleteFlows } from "../netlink/conntrack.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { type FlowChange, flowIsStale, flowMatches } from "./flows.ts";
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
import type { ElementStore, FirewallKind } from "./store.ts";

/** One difference between a guest's rules and the kernel's. */
export interface FirewallDifference extends Finding {
  readonly layer: FirewallLayer;
}

/**
 * tapkit's rules in the network namespace this was opened in, wherever the thread goes later.
 *
 * Every change is one transaction, which makes the rules that all guests share where they are
 * missing and mends them where somebody took some away; then the tracked connections that the
 * change concerns are forgotten. Two processes that change ports at the same time need a lock of
 * their caller's.
 *
 * Dispose it late: closing the socket after elements were deleted waits some 15 ms for the
 * kernel to have freed them.
 */
export class Firewall implements Disposable {
  readonly #store: ElementStore;
  readonly #policies: readonly Place[];
  readonly #netfilter: NetlinkConnection;
  readonly #ownAddresses: () => ReadonlySet<string>;
  /** Changes whose tracked connections have not been looked for yet. */
  readonly #putOff: FlowChange[] = [];
  #putOffLimit = 0;
  /** Whether another backend may hold rules of tapkit's too, by now. */
  readonly isMixed: () => boolean;
  readonly #others: () => OtherFirewalls;
  #remade = false;
  readonly #lookAtPorts: () => Promise<MappedPorts>;

  /** @param store closed with this, as the connection is; all of one namespace */
  constructor(
    store: ElementStore,
    { policies, netfilter, ownAddresses, isMixed, others, lookAtPorts }: {
      readonly policies: readonly Place[];
      readonly netfilter: NetlinkConnection;
      /** The namespace's, without prefix lengths. */
      readonly ownAddresses: () => ReadonlySet<string>;
      readonly isMixed: () => boolean;
      /** Looks for the firewalls of others. */
      readonly others: () => OtherFirewalls;
      readonly lookAtPorts: () => Promise<MappedPorts>;
    },
  ) {
    this.#store = store;
    this.#policies = policies;
    this.#netfilter = netfilter;
    this.#ownAddresses = ownAddresses;
    this.isMixed = isMixed;
    this.#others = others;
    this.#lookAtPorts = lookAtPorts;
  }

  /** Whether the rules that all guests share were missing, and were made anew since this was opened. */
  get remade(): boolean {
    return this.#remade;
  }

  /** Which backend it is. */
  get kind(): FirewallKind {
    return this.#store.kind;
  }

  /**
   * Brings an owner's rules from what they were to what is wanted: what is in both is not touched,
   * nor are its connections; those of what goes end. What is not there, or has become another
   * owner's meanwhile, is passed over.
   *
   * @param have `"any"` where it is not known: whatever is tagged with the owner. Absent, it had none
   * @param want absent where it is to have none
   * @returns whether anything was changed
   * @throws {InputError} when the rules are malformed
   * @throws {PortConflictError} when another owner has one of the host ports
   * @throws {LimitsError} where the kernel lacks what limits are made of
   * @throws {TapkitError} when libnftables is needed, for a policy or a chain of others, and missing
   */
  change(
    owner: string,
    have: GuestRules | "any" | undefined,
    want: GuestRules | undefined,
  ): boolean {
    const before = typeof have === "object" ? validateRules(have) : have;
    const after = want && validateRules(want);
    const { closing, passes } = this.#others();
    // What drops is there before anything is let in, and goes after it.
    const places = [...this.#policies, ...closing, this.#store, ...passes];
    if (after === undefined) places.reverse();
    return places.map((place) => this.#bring(place, owner, before, after)).includes(true);
  }

  #bring(
    place: Place,
    owner: string,
    before: GuestRules | "any" | undefined,
    after: GuestRules | undefined,
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
      return this.#apply({ owner, have, want }, leaving);
    }
    return have.length + want.length > 0 && bring(place, { owner, have, want }).changed;
  }

  /** Compares a guest's rules with the kernel's. */
  differences(rules: GuestRules): FirewallDifference[] {
    const valid = validateRules(rules);
    const { closing, passes } = this.#others();
    return [...this.#policies, this.#store, ...valid.forward ? [...passes, ...closing] : []]
      .flatMap((place) =>
        compare(place, valid.owner, place.want(valid))
          .map((finding) => ({ layer: place.layer, ...finding }))
      );
  }

  /** {@linkcode change} of a guest that had no rules. */
  add(rules: GuestRules): boolean {
    return this.change(rules.owner, undefined, rules);
  }

  replace(old: GuestRules, wanted: GuestRules): boolean {
    return this.change(wanted.owner, old, wanted);
  }

  remove(rules: GuestRules): boolean {
    return this.change(rules.owner, rules, undefined);
  }

  /** Removes a guest's ports alone. */
  removePorts(rules: GuestRules): boolean {
    return this.#apply({
      owner: rules.owner,
      have: elementsOf(validateRules(rules)).filter(({ value }) => value !== undefined),
      want: [],
    });
  }

  removeOwner(owner: string): boolean {
    return this.change(owner, "any", undefined);
  }

  /** {@linkcode differences} as sentences. */
  check(rules: GuestRules): string[] {
    return this.differences(rules).map(sentence);
  }

  /** Whether another firewall drops what is forwarded unless it is let pass. */
  dropsForwarded(): boolean {
    return this.#others().drops();
  }

  /**
   * What keeps a guest's published ports closed to other machines: `"ufw"`, `"firewalld"`.
   * Undefined where nothing does, or they are open.
   */
  closedBy({ forward, openPorts, ports }: GuestRules): string | undefined {
    if (!forward || openPorts || ports.length === 0) return undefined;
    return this.#others().denies();
  }

  /**
   * The guests whose rules the kernel has. Ranges come as single ports, `forward` as true, and
   * policies not at all.
   */
  listGuests(): GuestRules[] {
    return rulesOf(this.#store.readSets(GUEST_SET_NAMES).filter(({ owner }) => owner !== ""));
  }

  /** Whether there are rules of tapkit's at all, of this backend. */
  exists(): boolean {
    return this.#store.exists();
  }

  /** Looks at all that maps host ports in this namespace, whoever and whatever made it. */
  async mappedPorts(): Promise<MappedPorts> {
    return await this.#lookAtPorts();
  }

  /**
   * Has what comes from one link dropped where it would be forwarded to another, for these pairs and
   * no others; what comes from a guest, or goes to it by a port, is no matter of this.
   *
   * @returns whether anything was changed
   */
  keepApart(family: Family, pairs: readonly LinkPair[]): boolean {
    if (pairs.length === 0 && !this.#store.exists()) return false;
    const have = this.#store.readSets([`apart${family}`]);
    return this.#apply({ owner: HOST_OWNER, have, want: apartElements(family, pairs) });
  }

  /** The pairs of links that {@linkcode keepApart} is to keep so, and are not. */
  differencesApart(family: Family, pairs: readonly LinkPair[]): FirewallDifference[] {
    const want = apartElements(family, pairs);
    const { entries } = this.#store.read([], want);
    return want.filter((element) => !entries.has(entryId(element)))
      .map((element) => ({ layer: "rules", ...this.#store.missing(element) }));
  }

  checkApart(family: Family, pairs: readonly LinkPair[]): string[] {
    return this.differencesApart(family, pairs).map(sentence);
  }

  /**
   * Takes away what guests share when there are no more of them. The caller holds the lock under
   * which rules are added.
   *
   * @returns whether there was anything to take away
   */
  removeIfUnused(): boolean {
    if (!this.#store.exists()) return false;
    for (const set of GUEST_SET_NAMES) if (this.#store.readSets([set]).length > 0) return false;
    this.#store.delete();
    return true;
  }

  /**
   * Ends connections to a guest's ports that lead elsewhere, as {@linkcode add} does for ports
   * that are new.
   *
   * @param gone ports of its that somebody else mapped, and does not any more
   */
  endStaleFlows(rules: GuestRules, gone: readonly PortMapping[] = []): void {
    const wanted = elementsOf(validateRules(rules));
    this.#forgetFlows({
      changed: [...wanted, ...elementsOf(validateRules({ ...rules, ports: gone }))],
      wanted: byId(wanted),
      leaving: [],
    });
  }

  /**
   * From now on connections that added ports make stale are looked for once for several guests:
   * the kernel goes through all it tracks each time. It is done before any rule is removed, and
   * when this is disposed; who is killed before attaches again.
   *
   * @param limit after how many guests at the latest
   */
  putOffFlows(limit: number): void {
    this.#putOffLimit = limit;
  }

  [Symbol.dispose](): void {
    using stack = new DisposableStack();
    for (const part of [this.#netfilter, this.#store]) stack.use(part);
    this.#endPutOffFlows();
  }

  /** @param leaving addresses that were the owner's, and all flows of which end */
  #apply(wish: Wish<Entry>, leaving: readonly string[] = []): boolean {
    const { have, want } = wish;
    if (have !== "any" && have.length + want.length + leaving.length === 0) return false;
    const { changed, mended, added, replaced, stale, foreign, gone } = bring(
      this.#store,
      wish,
      refuseConflict,
    );
    if (mended) this.#remade = true;
    const kept = new Set(addressesOf(want));
    const left = have === "any"
      ? addressesOf(stale).filter((address) => !kept.has(address))
      : leaving;
    // Of an address that has become another owner's since, the flows are theirs.
    const taken = new Set(foreign.map(({ key }) => key[0]!));
    // A TCP port that was free has no connections: whoever had it before ended them.
    const flowing = added.filter((element) => hostPortOf(element).protocol !== "tcp");
    this.#forgetFlows({
      // Who was killed before may have removed elements, and not ended their connections.
      changed: [...stale, ...gone, ...replaced, ...flowing],
      wanted: byId(want),
      leaving: left.filter((address) => !taken.has(address)),
    });
    return changed;
  }

  #forgetFlows(change: FlowChange): void {
    const { changed, wanted, leaving } = change;
    const onlyAdds = leaving.length === 0 && changed.every((one) => wanted.has(entryId(one)));
    if (!onlyAdds) this.#endPutOffFlows();
    this.#putOff.push(change);
    if (!onlyAdds || this.#putOff.length >= this.#putOffLimit) this.#endPutOffFlows();
  }

  #endPutOffFlows(): void {
    if (this.#putOff.length === 0) return;
    const changes = this.#putOff.splice(0);
    const change: FlowChange = {
      changed: changes.flatMap(({ changed }) => changed),
      wanted: new Map(changes.flatMap(({ wanted }) => [...wanted])),
      leaving: changes.flatMap(({ leaving }) => leaving),
    };
    let local: ReadonlySet<string> | undefined;
    const isLocal = (address: string) =>
      isLoopback(address) || (local ??= this.#ownAddresses()).has(address);
    deleteFlows(this.#netfilter, {
      addresses: change.leaving,
      matches: flowMatches(change),
      confirm: (flow) => flowIsStale(flow, change, isLocal),
    });
  }
}

/** A port that leads elsewhere for somebody else is theirs; anything else was left behind. */
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
