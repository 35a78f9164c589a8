/**
 * Which host ports the kernel maps, whoever made the rules.
 *
 * @module
 */

import { isLoopback } from "../inet/ip.ts";
import { isWildcard, type PortMapping, type TakenPorts } from "../inet/ports.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { withNetns } from "../sys/netns.ts";
import type { NetnsView } from "./foreign-ports.ts";
import { readElements, readSet } from "../netlink/nftables/elements.ts";
import { listTables } from "../netlink/nftables/objects.ts";
import { hostPortOf, portQuery } from "./guest-elements.ts";
import { isOwnTable, MAIN_TABLE } from "./ruleset.ts";
import { setOf } from "./table.ts";
import { legacyTables } from "./xtables.ts";

/** What a look at the kernel found. */
export interface MappedPorts {
  /**
   * Mappings that `wanted` could meet. tapkit's own in nftables are asked for now, whose cost does
   * not grow with their number; the others are as of the look.
   */
  of(wanted: readonly PortMapping[]): TakenPorts[];
  /** Sentences on what could not be read. */
  readonly unread: readonly string[];
}

/** Looks at all that maps ports in a namespace: nothing of it is remembered from an earlier time. */
export async function lookAtPorts(view: NetnsView): Promise<MappedPorts> {
  const { netns, netfilter } = view;
  const tables = listTables(netfilter) ?? [];
  const foreign = tables.filter((table) => !isOwnTable(table));
  const legacy = withNetns(netns, legacyTables).filter(({ name }) => name === "nat");
  const { taken, unread } = foreign.length + legacy.length === 0
    ? { taken: [], unread: [] }
    : (await import("./foreign-ports.ts")).foreignPorts(view, foreign, legacy);
  const isOwn = tables.length > foreign.length;
  let local: ReadonlySet<string> | undefined;
  const isLocal = (address: string) =>
    isWildcard(address) || isLoopback(address) || (local ??= view.ownAddresses()).has(address);
  return {
    // What is mapped of an address that is not the host's is in nobody's way but that address's.
    of: (wanted) => [
      ...isOwn ? portsInTable(netfilter, wanted) : [],
      ...taken.map(({ mappings, ...owner }) => ({
        ...owner,
        mappings: mappings.filter(({ hostIP }) =>
          isLocal(hostIP) || wanted.some((port) => port.hostIP === hostIP)
        ),
      })),
    ],
    unread,
  };
}

const mainSet = (set: string) => setOf(MAIN_TABLE, set);

function portsInTable(nl: NetlinkConnection, wanted: readonly PortMapping[]): TakenPorts[] {
  const { keys, whole } = portQuery(wanted);
  const found = [
    ...whole.flatMap((set) => readSet(nl, mainSet(set))),
    ...readElements(nl, keys, mainSet),
  ];
  return found.map((element) => ({
    owner: element.owner,
    mappings: [{ ...hostPortOf(element), vmPort: Number(element.value?.[1]) }],
  }));
}
