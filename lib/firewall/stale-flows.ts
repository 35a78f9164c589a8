/**
 * Ends the tracked connections that a change of guests' rules concerns.
 *
 * @module
 */

import { isLoopback } from "../inet/ip.ts";
import type { PortMapping } from "../inet/ports.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { countFlows, deleteEach, deleteFlows } from "../netlink/conntrack.ts";
import type { NftMemory } from "../netlink/nftables/memory.ts";
import { readSysctl } from "../sys/sysctl.ts";
import { type FlowChange, flowIsStale, flowMatches, type GoneGuest, leadsToGone } from "./flows.ts";
import { type GoneGuests, matchesOfGone, SearchAhead } from "./gone-flows.ts";
import { type Entry, entryId } from "./place.ts";

/** What {@linkcode StaleFlows} works with. */
export interface FlowParts {
  readonly memory: Pick<NftMemory, "nl">;
  /** The addresses of the namespace, without prefix lengths. */
  readonly ownAddresses: () => ReadonlySet<string>;
  /** Opens another NETLINK_NETFILTER connection. */
  readonly open: () => NetlinkConnection;
  /** Removed guests whose connections have not been ended. */
  readonly gone: GoneGuests;
}

const CONNTRACK_MAX = "net/netfilter/nf_conntrack_max";
/** From this part of what the kernel can track on, removed guests' connections give their room back. */
const CROWDED = 1 / 64;

/** With more ports a removed guest's connections are ended at once. */
const MOST_NOTED = 64;

/**
 * The connections of one network namespace. To find them the kernel walks its whole table, so that is done
 * where it cannot be avoided, once for as many changes as may wait for it.
 */
export class StaleFlows {
  readonly #parts: FlowParts;
  /** Changes whose connections have not been ended yet. */
  readonly #putOff: FlowChange[] = [];
  #putOffLimit = 0;
  /** Removed guests whose connections are ended with this. */
  readonly #leaving: GoneGuest[] = [];
  readonly #ahead = new SearchAhead();

  constructor(parts: FlowParts) {
    this.#parts = parts;
  }

  /**
   * Begins to search for connections of removed guests that had one of these ports, which are going to be
   * added. It takes as long as the kernel's table is, and nothing waits for it before {@linkcode searched}.
   */
  searchAhead(ports: readonly PortMapping[]): void {
    const gone = ports.length === 0 ? [] : this.#parts.gone.read();
    this.#ahead.begin(gone, ports, this.#parts.open);
  }

  /** Waits for what {@linkcode searchAhead} began. */
  async searched(): Promise<void> {
    await this.#ahead.end();
  }

  /**
   * From now on, stale connections are searched once for several added guests, because each search
   * makes the kernel walk its whole table. The search happens at the latest before a rule is removed
   * and when this settles. After a kill, attaching again does it.
   *
   * @param limit the number of guests after which the search happens
   */
  putOff(limit: number): void {
    this.#putOffLimit = limit;
  }

  /** Does the searches that were put off. From now on none are. */
  settle(): void {
    this.#putOffLimit = 0;
    this.#endPutOff();
    this.#endLeaving();
  }

  /**
   * Notes a guest that goes, before it does.
   *
   * @returns false where its connections are to be ended at once
   */
  note(have: readonly Entry[], addresses: readonly string[]): boolean {
    const ports = have.filter(({ value }) => value !== undefined);
    if (ports.length > MOST_NOTED) return false;
    const flows = countFlows(this.#parts.memory.nl) ?? 1;
    // What is not tracked now is not translated later.
    if (flows === 0) return true;
    const crowded = flows > Number(readSysctl(CONNTRACK_MAX) ?? 0) * CROWDED;
    if (crowded && this.#putOffLimit === 0) return false;
    this.#parts.gone.add({ ports, addresses });
    if (crowded) this.#leaving.push({ ports, addresses });
    return true;
  }

  /** Ends the connections of removed guests, where one of their ports or addresses is given out again. */
  endGone(added: readonly Entry[], addresses: readonly string[]): void {
    if (added.length + addresses.length === 0) return;
    const gone = this.#parts.gone.read();
    if (gone.length === 0) return;
    const had = new Set(gone.flatMap((guest) => guest.addresses));
    const again = addresses.filter((address) => had.has(address));
    const ports = new Set(gone.flatMap((guest) => guest.ports.map(entryId)));
    if (again.length === 0 && !added.some((element) => ports.has(entryId(element)))) return;
    const found = again.length === 0 ? this.#ahead.take(gone) : undefined;
    if (found === undefined) this.#deleteGone(gone, again);
    else deleteEach(this.#parts.memory.nl, found.filter((flow) => leadsToGone(flow, gone)));
    for (const address of again) had.delete(address);
    this.#parts.gone.write(had.size === 0 ? [] : [{ ports: [], addresses: [...had] }]);
  }

  /** Ends the connections of guests that this removed from a crowded table. */
  #endLeaving(): void {
    const leaving = this.#leaving.splice(0);
    if (leaving.length === 0) return;
    const addresses = leaving.flatMap((guest) => guest.addresses);
    this.#deleteGone(leaving, addresses);
    const left = this.#parts.gone.read()
      .filter((guest) => !guest.addresses.some((address) => addresses.includes(address)));
    this.#parts.gone.write(left);
  }

  #deleteGone(gone: readonly GoneGuest[], addresses: readonly string[]): void {
    deleteFlows(this.#parts.memory.nl, {
      addresses,
      matches: matchesOfGone(gone),
      confirm: (flow) => leadsToGone(flow, gone),
    });
  }

  /** Ends the connections that a change concerns, or puts that off. */
  end(change: FlowChange): void {
    const { changed, wanted, leaving } = change;
    const onlyAdds = leaving.length === 0 && changed.every((one) => wanted.has(entryId(one)));
    if (!onlyAdds) this.#endPutOff();
    this.#putOff.push(change);
    if (!onlyAdds || this.#putOff.length >= this.#putOffLimit) this.#endPutOff();
  }

  #endPutOff(): void {
    if (this.#putOff.length === 0) return;
    const changes = this.#putOff.splice(0);
    const change: FlowChange = {
      changed: changes.flatMap(({ changed }) => changed),
      wanted: new Map(changes.flatMap(({ wanted }) => [...wanted])),
      leaving: changes.flatMap(({ leaving }) => leaving),
    };
    let local: ReadonlySet<string> | undefined;
    const isLocal = (address: string) =>
      isLoopback(address) || (local ??= this.#parts.ownAddresses()).has(address);
    deleteFlows(this.#parts.memory.nl, {
      addresses: change.leaving,
      matches: flowMatches(change),
      confirm: (flow) => flowIsStale(flow, change, isLocal),
    });
  }
}
