/**
 * Which tracked connections a change of the rules ends, pure.
 *
 * A connection is translated as its first packet was: without this, a client of a port that
 * changed hands would go on reaching the old guest, or nobody.
 *
 * @module
 */

import { familyOf } from "../inet/ip.ts";
import { protocolName } from "../inet/ports.ts";
import type { Flow, FlowMatch } from "../netlink/conntrack.ts";
import { hostPortOf } from "./guest-elements.ts";
import { type Entry, entryId } from "./place.ts";

/** A change of the rules, as far as connections are concerned. */
export interface FlowChange {
  /** Elements added or removed. */
  readonly changed: readonly Entry[];
  /** The owner's elements afterwards, by their identities. */
  readonly wanted: ReadonlyMap<string, Entry>;
  /** Guests' addresses all flows of which end. */
  readonly leaving: readonly string[];
}

/** What a removed guest had. */
export interface GoneGuest {
  /** The elements of its ports: where each led to. */
  readonly ports: readonly Pick<Entry, "set" | "key" | "value">[];
  readonly addresses: readonly string[];
  /** When it was removed, in milliseconds of the clock: the same guest may come and go again. */
  readonly at?: number;
}

/** The flows to look at: those to the changed ports, but for what leaves with its guest. */
export function flowMatches({ changed, wanted, leaving }: FlowChange): FlowMatch[] {
  const matches = new Map<string, FlowMatch>();
  for (const element of changed) {
    const id = entryId(element);
    if (element.value === undefined) continue;
    if (!wanted.has(id) && leaving.includes(element.value[0]!)) continue;
    matches.set(id, portMatch(element));
  }
  return [...matches.values()];
}

function portMatch(element: Entry): FlowMatch {
  const { protocol, hostIP, hostPort } = hostPortOf(element);
  return {
    protocol,
    originalDestinationPort: hostPort,
    family: element.set.endsWith("4") ? 4 : 6,
    ...(element.key.length === 3 ? { originalDestination: hostIP } : {}),
  };
}

/**
 * Whether a flow that matches has to end. One to the same port of another machine has not, nor
 * one that already leads where its port leads now: it lived through a repair.
 *
 * @param isLocal whether an address is the host's
 */
export function flowIsStale(
  { original, reply }: Flow,
  { wanted }: FlowChange,
  isLocal: (address: string) => boolean,
): boolean {
  if (!isLocal(original.destination)) return false;
  const target = elementIds(original).map((id) => wanted.get(id)).find(Boolean)?.value;
  return target === undefined || target[0] !== reply.source || target[1] !== `${reply.sourcePort}`;
}

/** Whether a flow came by a port of a removed guest, and leads to that guest. */
export function leadsToGone({ original, reply }: Flow, gone: readonly GoneGuest[]): boolean {
  const ids = elementIds(original);
  return gone.some(({ ports }) =>
    ports.some((port) =>
      ids.includes(entryId(port)) && port.value?.[0] === reply.source &&
      port.value[1] === `${reply.sourcePort}`
    )
  );
}

/** The identities of the elements that a flow's first packet may have met, in their order. */
function elementIds({ destination, protocol, destinationPort }: Flow["original"]): string[] {
  const family = familyOf(destination);
  const port = [protocolName(protocol), `${destinationPort}`];
  return [
    entryId({ set: `ports_at${family}`, key: [destination, ...port] }),
    entryId({ set: `ports${family}`, key: port }),
  ];
}
