/**
 * The ports and addresses of VMs that were removed, whose connections the kernel may still track. To end
 * these means to walk the kernel's whole table, of all namespaces: so that is done where a port or an address
 * is given out again, once for all that piled up.
 *
 * Kept in /run/tapkit/gone-NETNS.jsonl, a removal in each line. Who reads or writes it holds the host's lock;
 * of two state directories the later line stands.
 *
 * @module
 */

import { discardFile, removeIfEmpty, replaceFile } from "../files.ts";
import { readText } from "../sys/text.ts";
import type { Entry } from "./place.ts";

/** What a removed guest had. */
export interface GoneGuest {
  /** The elements of its ports: where each led to. */
  readonly ports: readonly Pick<Entry, "set" | "key" | "value">[];
  readonly addresses: readonly string[];
}

/** Gone after a reboot, as the connections are. */
const RUN_DIRECTORY = "/run/tapkit";

/** The removed guests of the calling thread's network namespace. */
export class GoneGuests {
  readonly #path: string;
  readonly #directory: string;

  /** @param directory only a test names another */
  constructor(directory = RUN_DIRECTORY) {
    this.#directory = directory;
    const { ino } = Deno.statSync("/proc/thread-self/ns/net");
    this.#path = `${directory}/gone-${ino}.jsonl`;
  }

  /** All of them. Lines that are damaged are passed over. */
  read(): GoneGuest[] {
    return (readText(this.#path) ?? "").split("\n").flatMap((line) => {
      try {
        const { ports, addresses } = JSON.parse(line);
        return Array.isArray(ports) && Array.isArray(addresses) ? [{ ports, addresses }] : [];
      } catch {
        return [];
      }
    });
  }

  add(guest: GoneGuest): void {
    Deno.mkdirSync(this.#directory, { recursive: true, mode: 0o755 });
    Deno.writeTextFileSync(this.#path, `${JSON.stringify(guest)}\n`, { append: true, mode: 0o600 });
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
