/**
 * The host's firewall in nftables: guests' rules added, replaced, removed and checked.
 *
 * @module
 */

import { isIp, isLoopback } from "../inet/ip.ts";
import { PortConflictError, type PortMapping, type TakenPorts } from "../inet/ports.ts";
import { listAddresses } from "../netlink/address.ts";
import { deleteConntrack, openNetfilter } from "../netlink/conntrack.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { NetlinkError } from "../netlink/errors.ts";
import { currentNetns, type Netns, withNetns } from "../sys/netns.ts";
import { type FlowChange, flowIsStale, flowMatches } from "./flows.ts";
import {
  changeElements,
  deleteTable,
  readElements,
  readRuleMarks,
  readSet,
  tableExists,
} from "./kernel.ts";
import { Nftables, NftablesError } from "./libnftables.ts";
import { type GuestRules, validateRules } from "./model.ts";
import {
  type Element,
  elementId,
  elementsOf,
  hostPortOf,
  planAdd,
  planDropTable,
  planTable,
  portQuery,
  RULE_MARKS,
  type RuleMark,
  rulesOf,
  SET_NAMES,
  TABLE,
} from "./ruleset.ts";

/** What a change comes to. */
interface Change {
  /** Whose rules, for errors. */
  readonly owner: string;
  readonly unwanted: readonly Element[];
  readonly wanted: readonly Element[];
  /** Guests' addresses all flows of which end. */
  readonly leaving: readonly string[];
}

/** What a look at the table found. */
interface TableState {
  readonly exists: boolean;
  /** Whether it has all its rules. */
  readonly intact: boolean;
  /** Those it lacks. */
  readonly lacking: readonly string[];
}

/** How a transaction fails when the table changed after it was looked at. */
const RACE_CODES: ReadonlySet<string> = new Set(["EEXIST", "ENOENT"]);
const ATTEMPTS = 3;

/**
 * tapkit's nftables table in the network namespace this was opened in, wherever the thread
 * goes later.
 *
 * Every change is one transaction, which makes the table where it is missing and mends it where
 * somebody took rules away; then the tracked connections that the change concerns are forgotten.
 * Two processes that change ports at the same time need a lock of their caller's.
 *
 * Dispose it late: closing the socket after elements were deleted waits some 15 ms for the
 * kernel to have freed them.
 */
export class NftFirewall implements Disposable {
  readonly #netns: Netns;
  readonly #netfilter: NetlinkConnection;
  readonly #route: NetlinkConnection;

  private constructor(netns: Netns, netfilter: NetlinkConnection, route: NetlinkConnection) {
    this.#netns = netns;
    this.#netfilter = netfilter;
    this.#route = route;
  }

  /**
   * Opens the firewall of the current network namespace. Nothing is changed.
   */
  static open(): NftFirewall {
    using stack = new DisposableStack();
    const netns = stack.use(currentNetns());
    const netfilter = stack.use(openNetfilter());
    const route = stack.use(NetlinkConnection.open());
    stack.move();
    return new NftFirewall(netns, netfilter, route);
  }

  /**
   * Adds a guest's rules; what is there already stays.
   *
   * @returns whether anything was changed
   * @throws {InputError} when the rules are malformed
   * @throws {PortConflictError} when another owner has one of the host ports
   * @throws {TapkitError} when the table is to be made and libnftables is not installed
   */
  add(rules: GuestRules): boolean {
    const wanted = validateRules(rules);
    return this.#apply({
      owner: wanted.owner,
      unwanted: [],
      wanted: elementsOf(wanted),
      leaving: [],
    });
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
    return this.#apply({
      owner: after.owner,
      unwanted: elementsOf(before).filter((element) => !kept.has(elementId(element))),
      wanted: elements,
      leaving: before.addresses.filter((address) => !after.addresses.includes(address)),
    });
  }

  /**
   * Removes a guest's rules and ends its connections. What is not there, or has become
   * another owner's meanwhile, is passed over.
   *
   * @returns whether anything was removed
   */
  remove(rules: GuestRules): boolean {
    const { owner, addresses, ...rest } = validateRules(rules);
    const unwanted = elementsOf({ owner, addresses, ...rest });
    return this.#apply({ owner, unwanted, wanted: [], leaving: addresses });
  }

  /**
   * Removes whatever is tagged with an owner, when its rules are not known any more.
   *
   * @returns whether anything was removed
   */
  removeOwner(owner: string): boolean {
    const rules = this.listGuests().find((guest) => guest.owner === owner);
    return rules === undefined ? false : this.remove(rules);
  }

  /** Compares a guest's rules with the kernel's; returns a sentence for each difference. */
  check(rules: GuestRules): string[] {
    const wanted = elementsOf(validateRules(rules));
    const { exists, lacking } = this.#look();
    const table = `the nftables table "inet ${TABLE}"`;
    const problems = exists
      ? lacking.map((mark) => `${table} lacks the rule "${mark}"`)
      : [`${table} is missing`];
    const present = readElements(this.#netfilter, wanted);
    for (const element of wanted) {
      const found = present.get(elementId(element));
      const what = describeElement(element);
      if (found === undefined) problems.push(`${what} is missing from nftables`);
      else if (!sameValue(found, element)) {
        problems.push(`${what} leads to ${found.value?.join(":")} in nftables (${found.owner})`);
      } else if (found.owner !== element.owner) {
        problems.push(`${what} is tagged ${found.owner || "by nobody"} in nftables`);
      }
    }
    return problems;
  }

  /** The guests whose rules the kernel has. Ranges come as single ports, `forward` as true. */
  listGuests(): GuestRules[] {
    return rulesOf(this.#readAll().filter(({ owner }) => owner !== ""));
  }

  /**
   * The mappings in the table that `wanted` could meet, by their owners' tags; all there are
   * where a host port is to be chosen. The cost does not grow with the number of mappings.
   *
   * @returns undefined where there is no table to ask
   */
  portsInTheWay(wanted: readonly PortMapping[]): TakenPorts[] | undefined {
    if (!tableExists(this.#netfilter)) return undefined;
    const { keys, whole } = portQuery(wanted);
    const found = [
      ...whole.flatMap((set) => readSet(this.#netfilter, set)),
      ...readElements(this.#netfilter, keys).values(),
    ];
    return found.map((element) => ({
      owner: element.owner,
      mappings: [{ ...hostPortOf(element), vmPort: Number(element.value?.[1]) }],
    }));
  }

  /**
   * Takes the table away when no guest has rules in it. The caller holds the lock under which
   * rules are added.
   *
   * @returns whether it was taken away
   */
  removeTableIfUnused(): boolean {
    if (!tableExists(this.#netfilter)) return false;
    for (const set of SET_NAMES) if (readSet(this.#netfilter, set).length > 0) return false;
    deleteTable(this.#netfilter);
    return true;
  }

  [Symbol.dispose](): void {
    this.#netns[Symbol.dispose]();
    this.#netfilter[Symbol.dispose]();
    this.#route[Symbol.dispose]();
  }

  /**
   * A process that changed the table between the look at it and the transaction makes the
   * transaction fail whole: then the look is taken again.
   */
  #apply(change: Change): boolean {
    for (let attempt = 1;; attempt++) {
      try {
        return this.#tryToApply(change);
      } catch (error) {
        const refused = error instanceof NftablesError || error instanceof NetlinkError;
        const raced = refused && RACE_CODES.has(error.code ?? "");
        if (!raced || attempt === ATTEMPTS) throw error;
      }
    }
  }

  #tryToApply(change: Change): boolean {
    const { owner, unwanted, wanted, leaving } = change;
    const table = this.#look();
    const present = table.intact
      ? readElements(this.#netfilter, [...unwanted, ...wanted])
      : new Map(this.#readAll().map((element) => [elementId(element), element]));
    const stale: Element[] = [];
    const missing: Element[] = [];
    // Addresses and ports that have become another owner's since.
    const foreign = new Set<string>();
    for (const element of unwanted) {
      const holder = present.get(elementId(element))?.owner;
      if (holder === owner) stale.push(element);
      else if (holder !== undefined) foreign.add(element.key[0]!);
    }
    for (const element of wanted) {
      const found = present.get(elementId(element));
      if (found !== undefined && sameValue(found, element) && found.owner === owner) continue;
      refuseConflict(found, element);
      if (found !== undefined) stale.push(found);
      missing.push(element);
    }
    // What is only removed does not call for rules.
    const changed = table.intact || wanted.length === 0
      ? this.#changeElements(stale, missing, owner)
      : this.#makeTable(planMend(table.exists, [...present.values()], stale, missing));
    this.#forgetFlows({
      changed: [...stale, ...missing],
      wanted: new Map(wanted.map((element) => [elementId(element), element])),
      leaving: leaving.filter((address) => !foreign.has(address)),
    });
    return changed;
  }

  #changeElements(remove: readonly Element[], add: readonly Element[], owner: string): boolean {
    if (remove.length + add.length === 0) return false;
    changeElements(this.#netfilter, { remove, add }, owner);
    return true;
  }

  #makeTable(commands: string): boolean {
    using nft = withNetns(this.#netns, () => Nftables.open());
    nft.run(commands, `make the table "inet ${TABLE}"`);
    return true;
  }

  #look(): TableState {
    let lacking = lackingRules(readRuleMarks(this.#netfilter));
    if (lacking.length === 0) return { exists: true, intact: true, lacking };
    if (!tableExists(this.#netfilter)) return { exists: false, intact: false, lacking };
    // Another process may have made it, rules and all, since they were looked for.
    lacking = lackingRules(readRuleMarks(this.#netfilter));
    return { exists: true, intact: lacking.length === 0, lacking };
  }

  #readAll(): Element[] {
    return SET_NAMES.flatMap((set) => readSet(this.#netfilter, set));
  }

  #forgetFlows(change: FlowChange): void {
    const matches = flowMatches(change);
    if (matches.length === 0) return;
    let local: ReadonlySet<string> | undefined;
    const isLocal = (address: string) =>
      isLoopback(address) || (local ??= this.#localAddresses()).has(address);
    deleteConntrack(this.#netfilter, matches, (flow) => flowIsStale(flow, change, isLocal));
  }

  #localAddresses(): Set<string> {
    return new Set(listAddresses(this.#route).map(({ address }) => address.split("/", 1)[0]!));
  }
}

function lackingRules(marks: readonly RuleMark[]): string[] {
  const present = new Set(marks.map(markText));
  return RULE_MARKS.map(markText).filter((mark) => !present.has(mark));
}

/** The table anew, with the elements there were. */
function planMend(
  exists: boolean,
  present: readonly Element[],
  stale: readonly Element[],
  missing: readonly Element[],
): string {
  const gone = new Set(stale.map(elementId));
  const kept = present.filter((element) => !gone.has(elementId(element)));
  return (exists ? planDropTable() : "") + planTable() + planAdd([...kept, ...missing]);
}

function markText({ chain, comment }: RuleMark): string {
  return `${chain}: ${comment}`;
}

function sameValue(a: Element, b: Element): boolean {
  return (a.value ?? []).join() === (b.value ?? []).join();
}

/** A port that leads elsewhere for somebody else is theirs; anything else was left behind. */
function refuseConflict(found: Element | undefined, wanted: Element): void {
  if (found === undefined || found.owner === wanted.owner || sameValue(found, wanted)) return;
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
    return set.startsWith("guests")
      ? `the guest ${key[0]} behind "${key[1]}"`
      : `the private guest ${key[0]}`;
  }
  const { protocol, hostIP, hostPort } = hostPortOf(element);
  const address = isIp(hostIP) === 6 ? `[${hostIP}]` : hostIP;
  return `the mapping of ${address}:${hostPort}/${protocol}`;
}
