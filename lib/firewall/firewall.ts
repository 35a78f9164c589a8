/**
 * The host's firewall: guests' rules added, replaced, removed and checked, wherever they are kept.
 *
 * @module
 */

import { type Family, isIp, isLoopback } from "../inet/ip.ts";
import { PortConflictError, type PortMapping } from "../inet/ports.ts";
import { deleteFlows } from "../netlink/conntrack.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { type FlowChange, flowIsStale, flowMatches } from "./flows.ts";
import type { Gate } from "./gate.ts";
import type { MappedPorts } from "./mapped-ports.ts";
import { type GuestRules, validateRules } from "./model.ts";
import type { PolicyStore } from "./policy.ts";
import { type ElementChange, reconcile, sameValue } from "./reconcile.ts";
import type { ElementStore, FirewallKind } from "./store.ts";
import {
  apartElements,
  type Element,
  elementId,
  elementsOf,
  familiesOf,
  GUEST_SET_NAMES,
  hostPortOf,
  type LinkPair,
  rulesOf,
  SET_NAMES,
} from "./ruleset.ts";

/** What a change comes to. */
interface Change extends ElementChange {
  /** Guests' addresses all flows of which end. */
  readonly leaving: readonly string[];
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
  readonly #policies: PolicyStore;
  readonly #netfilter: NetlinkConnection;
  readonly #ownAddresses: () => ReadonlySet<string>;
  /** Changes whose tracked connections have not been looked for yet. */
  readonly #putOff: FlowChange[] = [];
  #putOffLimit = 0;
  /** Whether another backend may hold rules of tapkit's too, by now. */
  readonly isMixed: () => boolean;
  readonly #gates: readonly Gate[];
  #remade = false;
  readonly #lookAtPorts: () => Promise<MappedPorts>;

  /** @param store closed with this, as the connection is; all of one namespace */
  constructor(
    store: ElementStore,
    { policies, netfilter, ownAddresses, isMixed, gates, lookAtPorts }: {
      readonly policies: PolicyStore;
      readonly netfilter: NetlinkConnection;
      /** The namespace's, without prefix lengths. */
      readonly ownAddresses: () => ReadonlySet<string>;
      readonly isMixed: () => boolean;
      readonly gates: readonly Gate[];
      readonly lookAtPorts: () => Promise<MappedPorts>;
    },
  ) {
    this.#store = store;
    this.#policies = policies;
    this.#netfilter = netfilter;
    this.#ownAddresses = ownAddresses;
    this.isMixed = isMixed;
    this.#gates = gates;
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
   * Adds a guest's rules; what is there already stays.
   *
   * @returns whether anything was changed
   * @throws {InputError} when the rules are malformed
   * @throws {PortConflictError} when another owner has one of the host ports
   * @throws {TapkitError} when libnftables is needed, for a policy or a chain of others, and missing
   */
  add(rules: GuestRules): boolean {
    const wanted = validateRules(rules);
    // What drops is there before anything is let in.
    const policed = this.#policies.replace(undefined, wanted);
    const added = this.#apply({
      owner: wanted.owner,
      unwanted: [],
      wanted: elementsOf(wanted),
      leaving: [],
    });
    return this.#openGates(wanted) || policed || added;
  }

  /**
   * Makes a guest's rules what is wanted instead of what they were: what is in both is not
   * touched, nor are its connections.
   *
   * @returns whether anything was changed
   * @throws {InputError} when the rules are malformed
   * @throws {PortConflictError} when another owner has one of the host ports
   */
  replace(old: GuestRules, wanted: GuestRules): boolean {
    const [before, after] = [validateRules(old), validateRules(wanted)];
    const elements = elementsOf(after);
    const kept = new Set(elements.map(elementId));
    const policed = this.#policies.replace(before, after);
    const replaced = this.#apply({
      owner: after.owner,
      unwanted: elementsOf(before).filter((element) => !kept.has(elementId(element))),
      wanted: elements,
      leaving: before.addresses.filter((address) => !after.addresses.includes(address)),
    });
    return this.#openGates(after) || policed || replaced;
  }

  /**
   * Removes a guest's rules and ends its connections. What is not there, or has become
   * another owner's meanwhile, is passed over.
   *
   * @returns whether anything was removed
   */
  remove(rules: GuestRules): boolean {
    const unwanted = validateRules(rules);
    const { owner, addresses } = unwanted;
    const closed = this.#closeGates(owner);
    const removed = this.#apply({
      owner,
      unwanted: elementsOf(unwanted),
      wanted: [],
      leaving: addresses,
    });
    return this.#policies.replace(unwanted, undefined) || removed || closed;
  }

  /**
   * Removes a guest's ports and ends the connections that came by them; the guest's other rules
   * and connections stay. What is not there is passed over.
   *
   * @returns whether anything was removed
   */
  removePorts(rules: GuestRules): boolean {
    const valid = validateRules(rules);
    const unwanted = elementsOf(valid).filter(({ value }) => value !== undefined);
    return this.#apply({ owner: valid.owner, unwanted, wanted: [], leaving: [] });
  }

  /**
   * Removes whatever is tagged with an owner, when its rules are not known any more.
   *
   * @returns whether anything was removed
   */
  removeOwner(owner: string): boolean {
    const rules = this.listGuests().find((guest) => guest.owner === owner);
    const removed = rules === undefined ? this.#closeGates(owner) : this.remove(rules);
    return this.#policies.removeOwner(owner) || removed;
  }

  /** Compares a guest's rules with the kernel's; returns a sentence for each difference. */
  check(rules: GuestRules): string[] {
    const valid = validateRules(rules);
    const wanted = elementsOf(valid);
    const problems = [...this.#policies.check(valid)];
    if (wanted.length === 0) return problems;
    problems.push(...this.#store.look(familiesOf(wanted)).problems);
    const present = this.#store.read(wanted);
    const kind = this.#store.kind;
    for (const element of wanted) {
      const found = present.get(elementId(element));
      const what = describeElement(element);
      if (found === undefined) problems.push(`${what} is missing from ${kind}`);
      else if (!sameValue(found, element)) {
        problems.push(`${what} leads to ${found.value?.join(":")} in ${kind} (${found.owner})`);
      } else if (found.owner !== element.owner) {
        problems.push(`${what} is tagged ${found.owner || "by nobody"} in ${kind}`);
      }
    }
    if (valid.forward) {
      const ports = this.#portsOf(valid);
      problems.push(...this.#gates.flatMap((gate) => gate.check(valid, ports)));
    }
    return problems;
  }

  /** Whether another firewall drops what is forwarded unless it is let pass. */
  dropsForwarded(): boolean {
    return this.#gates.some(({ drops }) => drops);
  }

  /**
   * What keeps a guest's published ports closed to other machines: `"ufw"`, `"firewalld"`.
   * Undefined where nothing does, or they are open.
   */
  closedBy({ forward, openPorts, ports }: GuestRules): string | undefined {
    if (!forward || openPorts || ports.length === 0) return undefined;
    return this.#gates.find(({ denies }) => denies !== undefined)?.denies;
  }

  #portsOf({ openPorts }: GuestRules): "open" | "closed" {
    const denied = this.#gates.some(({ denies }) => denies !== undefined);
    return openPorts || !denied ? "open" : "closed";
  }

  #openGates(rules: GuestRules): boolean {
    if (!rules.forward || this.#gates.length === 0) return false;
    const ports = this.#portsOf(rules);
    return this.#gates.map((gate) => gate.open(rules, ports)).includes(true);
  }

  #closeGates(owner: string): boolean {
    return this.#gates.map((gate) => gate.close(owner)).includes(true);
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
    const wanted = apartElements(family, pairs);
    const kept = new Set(wanted.map(elementId));
    const unwanted = this.#store.readSets([`apart${family}`])
      .filter((element) => !kept.has(elementId(element)));
    const owner = [...wanted, ...unwanted][0]?.owner ?? "";
    return this.#apply({ owner, unwanted, wanted, leaving: [] });
  }

  /** A sentence for each pair of links that {@linkcode keepApart} is to keep so, and are not. */
  checkApart(family: Family, pairs: readonly LinkPair[]): string[] {
    const wanted = apartElements(family, pairs);
    const present = this.#store.read(wanted);
    return wanted.filter((element) => !present.has(elementId(element)))
      .map((element) => `${describeElement(element)} is missing from ${this.kind}`);
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
      wanted: new Map(wanted.map((element) => [elementId(element), element])),
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

  #apply(change: Change): boolean {
    const { wanted, leaving } = change;
    const { changed, remade, touched, foreign } = reconcile(
      this.#store,
      SET_NAMES,
      change,
      refuseConflict,
    );
    if (remade) this.#remade = true;
    // Of an address that has become another owner's since, the flows are theirs.
    const taken = new Set(foreign.map(({ key }) => key[0]!));
    this.#forgetFlows({
      changed: touched,
      wanted: new Map(wanted.map((element) => [elementId(element), element])),
      leaving: leaving.filter((address) => !taken.has(address)),
    });
    return changed;
  }

  #forgetFlows(change: FlowChange): void {
    const { changed, wanted, leaving } = change;
    const onlyAdds = leaving.length === 0 && changed.every((one) => wanted.has(elementId(one)));
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
function refuseConflict(found: Element, wanted: Element): void {
  if (found.owner === wanted.owner || sameValue(found, wanted)) return;
  const { protocol, hostIP, hostPort } = hostPortOf(wanted);
  const owner = found.owner;
  const holder = owner === "" ? "somebody without a tag" : owner;
  throw new PortConflictError(
    { protocol, hostIP, hostPort, owner },
    `already mapped to ${holder}`,
  );
}

function describeElement(element: Element): string {
  const { set, key, value } = element;
  if (value === undefined) {
    if (set.startsWith("apart")) {
      return `the rule that IPv${set.at(-1)} is not forwarded from "${key[0]}" to "${key[1]}"`;
    }
    if (set.startsWith("reachable")) return `what lets ${key[1]} reach the guest ${key[0]}`;
    if (set.startsWith("relayed")) return `the host's address for what is mapped to ${key[0]}`;
    return set.startsWith("guests")
      ? `the guest ${key[0]} behind "${key[1]}"`
      : `the private guest ${key[0]}`;
  }
  const { protocol, hostIP, hostPort } = hostPortOf(element);
  const address = isIp(hostIP) === 6 ? `[${hostIP}]` : hostIP;
  return `the mapping of ${address}:${hostPort}/${protocol}`;
}
