/**
 * Which guest asked for its address, and when: kept by the DHCP server for whoever wants to know.
 *
 * @module
 */

import { readIfThere, replaceFile } from "../files.ts";
import { type HostPaths, hostPaths } from "./record/paths.ts";
import { dhcpFile } from "./record/locks.ts";
import { attachedSide, readVms } from "./record/store.ts";
import type { HostOptions } from "./types.ts";

/** What became of the DHCP of one interface. */
export interface GuestLease {
  readonly vm: string;
  /** `"eth0"`. */
  readonly interface: string;
  readonly mac: string;
  /** With its prefix length. */
  readonly address: string;
  /** When the guest was last given it, in ISO 8601; `null` when it has not asked yet. */
  readonly asked: string | null;
}

/** When who asked, by `"web/eth0"`. */
type Asked = Readonly<Record<string, string>>;

/** A guest that asks without end has the file written no oftener; milliseconds. */
const WRITE_EVERY = 1000;

/** The DHCP of every attached VM's interfaces that have an IPv4 address. */
export function listLeases(options: HostOptions = {}): GuestLease[] {
  const host = hostPaths(options);
  const asked = readAsked(host);
  return readVms(host).flatMap((stored) => attachedSide(stored) ?? [])
    .flatMap(({ spec: { id: { name: vm } }, facts }) =>
      facts.networks.flatMap(({ attachment: { ifName }, link }): GuestLease[] => {
        const main = link?.addresses.find(({ address }) => !address.includes(":"));
        if (link === undefined || main === undefined) return [];
        const { mac } = link;
        const { address } = main;
        return [{ vm, interface: ifName, mac, address, asked: asked[`${vm}/${ifName}`] ?? null }];
      })
    );
}

function readAsked(host: HostPaths): Asked {
  try {
    return JSON.parse(readIfThere(dhcpFile(host, "leases")) ?? "{}");
  } catch {
    // It is a help, and nothing depends on it.
    return {};
  }
}

/** The server's notes of who asked, written now and then. */
export class LeaseBook implements Disposable {
  readonly #host: HostPaths;
  readonly #asked: Map<string, string>;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(host: HostPaths) {
    this.#host = host;
    this.#asked = new Map(Object.entries(readAsked(host)));
  }

  /** Notes that a guest was given its address. */
  enter(key: string): void {
    this.#asked.set(key, new Date().toISOString());
    this.#timer ??= setTimeout(() => this.#write(), WRITE_EVERY);
  }

  /** Forgets those that are not served any more. */
  keep(isServed: (key: string) => boolean): void {
    for (const key of [...this.#asked.keys()]) if (!isServed(key)) this.#asked.delete(key);
  }

  #write(): void {
    this.#timer = undefined;
    try {
      const text = JSON.stringify(Object.fromEntries(this.#asked));
      replaceFile(dhcpFile(this.#host, "leases"), `${text}\n`);
    } catch {
      // The directory goes with the last VM.
    }
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}
