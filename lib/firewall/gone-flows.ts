/**
 * The ports and addresses of VMs that were removed, whose connections the kernel may still track. To end
 * these means to walk the kernel's whole table, of all namespaces: so that is done where a port or an address
 * is given out again, once for all that piled up; or by the resident before that, while nobody waits.
 *
 * Kept in /run/tapkit/gone-NETNS.jsonl, a removal in each line. Who reads or writes it holds the host's lock;
 * of two state directories the later line stands.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { discardFile, removeIfEmpty, replaceFile } from "../files.ts";
import type { PortMapping } from "../inet/ports.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import {
  deleteEach,
  findFlowsAside,
  type FlowMatch,
  type FoundFlow,
} from "../netlink/conntrack.ts";
import { isSame } from "../same.ts";
import { readText } from "../sys/text.ts";
import { flowMatches, type GoneGuest, leadsToGone } from "./flows.ts";
import { hostPortOf } from "./guest-elements.ts";

/** Gone after a reboot, as the connections are. */
const RUN_DIRECTORY = "/run/tapkit";

/** The removed guests of the calling thread's network namespace. */
export class GoneGuests {
  readonly #path: string;
  readonly #directory: string;
  /** What was read last: it is long, and mostly what it was. */
  #known: { readonly text: string; readonly guests: readonly GoneGuest[] } = {
    text: "",
    guests: [],
  };

  /** @param directory only a test names another */
  constructor(directory = RUN_DIRECTORY) {
    this.#directory = directory;
    const { ino } = Deno.statSync("/proc/thread-self/ns/net");
    this.#path = `${directory}/gone-${ino}.jsonl`;
  }

  /** All of them. Lines that are damaged are passed over. */
  read(): readonly GoneGuest[] {
    const text = readText(this.#path) ?? "";
    if (text !== this.#known.text) this.#known = { text, guests: text.split("\n").flatMap(parse) };
    return this.#known.guests;
  }

  add(guest: GoneGuest): void {
    Deno.mkdirSync(this.#directory, { recursive: true, mode: 0o755 });
    const line = JSON.stringify({ ...guest, at: Date.now() });
    Deno.writeTextFileSync(this.#path, `${line}\n`, { append: true, mode: 0o600 });
  }

  /** Puts these in the place of all. */
  write(guests: readonly GoneGuest[]): void {
    if (guests.length > 0) {
      replaceFile(this.#path, guests.map((guest) => `${JSON.stringify(guest)}\n`).join(""));
      return;
    }
    discardFile(this.#path);
    removeIfEmpty(this.#directory);
  }
}

function parse(line: string): GoneGuest[] {
  try {
    const { ports, addresses, at } = JSON.parse(line);
    if (!Array.isArray(ports) || !Array.isArray(addresses)) return [];
    return [{ ports, addresses, ...typeof at === "number" ? { at } : {} }];
  } catch {
    return [];
  }
}

/** How many searches are made ahead: each walks the whole table. */
const MOST_AHEAD = 8;

/** What finds the connections of removed guests by their ports. */
export function matchesOfGone(gone: readonly GoneGuest[]): FlowMatch[] {
  const changed = gone.flatMap(({ ports }) => ports.map((port) => ({ ...port, owner: "" })));
  return flowMatches({ changed, wanted: new Map(), leaving: [] });
}

/** A search that goes on, or has ended. */
interface Search {
  readonly gone: readonly GoneGuest[];
  readonly flows: Promise<readonly FoundFlow[]>;
  /** Absent until it has ended, and where it failed. */
  found?: readonly FoundFlow[];
}

/** A search of connections of removed guests that goes on while something else is done. */
export class SearchAhead {
  #search: Search | undefined;

  /**
   * Begins one, where a port is among those of removed guests. The kernel walks its table on another thread.
   *
   * @param open opens a NETLINK_NETFILTER connection
   */
  begin(
    gone: readonly GoneGuest[],
    ports: readonly PortMapping[],
    open: () => NetlinkConnection,
  ): void {
    const isWanted = ({ protocol, hostPort }: Pick<PortMapping, "protocol" | "hostPort">) =>
      ports.some((port) => port.protocol === protocol && port.hostPort === hostPort);
    if (!gone.some((guest) => guest.ports.some((port) => isWanted(hostPortOf(port))))) return;
    const matches = matchesOfGone(gone);
    if (matches.length > MOST_AHEAD) return;
    const flows = search(open(), matches);
    // Who waits for it hears of a failure.
    flows.catch(() => {});
    this.#search = { gone, flows };
  }

  /** Waits until it has ended. */
  async end(): Promise<void> {
    const search = this.#search;
    if (search === undefined) return;
    try {
      search.found = await search.flows;
    } catch (error) {
      if (!(error instanceof TapkitError)) throw error;
    }
  }

  /** What it found, once; undefined where it was not for the ports of all these guests. */
  take(gone: readonly GoneGuest[]): readonly FoundFlow[] | undefined {
    const search = this.#search;
    this.#search = undefined;
    const covers = gone.every((one) =>
      one.ports.length === 0 || search?.gone.some((two) => isSame(one, two))
    );
    return covers ? search?.found : undefined;
  }
}

async function search(
  nl: NetlinkConnection,
  matches: readonly FlowMatch[],
): Promise<readonly FoundFlow[]> {
  using _nl = nl;
  return await findFlowsAside(nl, matches);
}

/**
 * Ends the connections to ports of removed guests before one is given out again, which then takes no walk.
 * The walk blocks nobody. Where the ports are many, that is left to who needs one of them.
 *
 * @param nl a NETLINK_NETFILTER connection that nobody else uses
 * @param file of the calling thread's namespace
 * @param locked does its argument with the host's lock held
 */
export async function endGoneFlows(
  nl: NetlinkConnection,
  file: GoneGuests,
  locked: (act: () => void) => Promise<void>,
): Promise<void> {
  const gone = file.read().filter(({ ports }) => ports.length > 0);
  const matches = matchesOfGone(gone);
  if (matches.length === 0 || matches.length > MOST_AHEAD) return;
  const flows = await findFlowsAside(nl, matches);
  await locked(() => {
    // What was given out again meanwhile is not listed any more: its connections are somebody's.
    const [searched, others] = partition(
      file.read(),
      (one) => gone.some((two) => isSame(one, two)),
    );
    deleteEach(nl, flows.filter((flow) => leadsToGone(flow, searched)));
    const addresses = [...new Set(searched.flatMap((guest) => guest.addresses))];
    file.write([...others, ...addresses.length === 0 ? [] : [{ ports: [], addresses }]]);
  });
}

function partition<T>(all: readonly T[], belongs: (one: T) => boolean): [T[], T[]] {
  return [all.filter(belongs), all.filter((one) => !belongs(one))];
}
