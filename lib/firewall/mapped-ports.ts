/**
 * Which host ports the kernel maps, whoever made the rules.
 *
 * @module
 */

import { isLoopback } from "../inet/ip.ts";
import { isWildcard, type PortMapping, type TakenPorts } from "../inet/ports.ts";
import { type NftMemory, setKey } from "../netlink/nftables/memory.ts";
import type { NftTable } from "../netlink/nftables/objects.ts";
import type { ForeignPorts, NetnsView } from "./foreign-ports.ts";
import { readElements, readSet } from "../netlink/nftables/elements.ts";
import { hostPortOf, portQuery } from "./guest-elements.ts";
import { isOwnTable, MAIN_TABLE } from "./ruleset.ts";
import { setOf } from "./table.ts";
import type { Survey } from "./store.ts";

/** What a look at the kernel found. */
export interface MappedPorts {
  /**
   * Mappings that `wanted` could meet. tapkit's own in nftables are asked for now, whose cost does
   * not grow with their number, but for those of single addresses; these and the others are as of the
   * look.
   */
  of(wanted: readonly PortMapping[]): TakenPorts[];
  /** Sentences on what could not be read. */
  readonly unread: readonly string[];
}

/**
 * Looks at all that maps ports in a namespace.
 *
 * @param memory of the namespace, refreshed
 */
export async function lookAtPorts(
  view: NetnsView,
  { tables = [], legacy }: Survey,
  memory: NftMemory,
): Promise<MappedPorts> {
  const foreign = tables.filter((table) => !isOwnTable(table));
  const old = legacy.filter(({ name }) => name === "nat");
  const { taken, unread } = foreign.length + old.length === 0
    ? { taken: [], unread: [] }
    : await foreignPorts(view, foreign, old, memory);
  const isOwn = tables.length > foreign.length;
  let local: ReadonlySet<string> | undefined;
  const isLocal = (address: string) =>
    isWildcard(address) || isLoopback(address) || (local ??= view.ownAddresses()).has(address);
  return {
    // What is mapped of an address that is not the host's is in nobody's way but that address's.
    of: (wanted) => [
      ...isOwn ? portsInTable(memory, wanted) : [],
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

/** The kernel does not tell of changes of the old tables. */
async function foreignPorts(
  view: NetnsView,
  tables: readonly NftTable[],
  legacy: readonly NftTable[],
  memory: NftMemory,
): Promise<ForeignPorts> {
  const { foreignPorts } = await import("./foreign-ports.ts");
  const read = () => foreignPorts(view, tables, legacy);
  return legacy.length > 0 ? read() : memory.recall("ports of others", read);
}

const mainSet = (set: string) => setOf(MAIN_TABLE, set);

function portsInTable(memory: NftMemory, wanted: readonly PortMapping[]): TakenPorts[] {
  const { nl } = memory;
  const { keys, whole } = portQuery(wanted);
  const found = [
    ...whole.map(mainSet).flatMap((set) => memory.recall(setKey(set), () => readSet(nl, set))),
    ...readElements(nl, keys, mainSet),
  ];
  return found.map((element) => ({
    owner: element.owner,
    mappings: [{ ...hostPortOf(element), vmPort: Number(element.value?.[1]) }],
  }));
}
