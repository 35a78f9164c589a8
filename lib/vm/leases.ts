/**
 * Which guest asked for its address, and when. The DHCP server writes it for `--list`.
 *
 * @module
 */

import { readIfThere, replaceFile } from "../files.ts";
import { interfacesOf, ipv4Of } from "./record/derive.ts";
import { ownerTag } from "./record/identity.ts";
import { type HostPaths, hostPaths } from "./record/paths.ts";
import { dhcpFile } from "./record/locks.ts";
import { attachedSide, readVms } from "./record/store.ts";
import type { HostOptions } from "./types.ts";

/** The DHCP lease of one interface. */
export interface GuestLease {
  /** The VM's name. */
  readonly vm: string;
  /** `"eth0"`. */
  readonly interface: string;
  /** Lower case, colons. */
  readonly mac: string;
  /** With its prefix length. */
  readonly address: string;
  /** When the guest last got it, in ISO 8601; `null` if the guest has not asked yet. */
  readonly asked: string | null;
}

/** When each guest asked, by `"web/eth0"`. */
type Asked = Readonly<Record<string, string>>;

/** The least time between two writes of the file, in milliseconds. */
const WRITE_EVERY = 1000;

/** The leases of all interfaces of attached VMs that have an IPv4 address. */
export function listLeases(options: HostOptions = {}): GuestLease[] {
  const host = hostPaths(options);
  const asked = readAsked(host);
  return readVms(host).flatMap((stored) => attachedSide(stored) ?? []).flatMap((at) => {
    const { id } = at.spec;
    return interfacesOf(at).flatMap((link): GuestLease[] => {
      const { name, mac } = link;
      const { address } = ipv4Of(link) ?? {};
      if (address === undefined) return [];
      const time = asked[ownerTag(id, name)] ?? null;
      return [{ vm: id.name, interface: name, mac, address, asked: time }];
    });
  });
}

function readAsked(host: HostPaths): Asked {
  try {
    return JSON.parse(readIfThere(dhcpFile(host, "leases")) ?? "{}");
  } catch {
    // The file is for information. Nothing depends on it.
    return {};
  }
}

/** Records which guest asked when, and writes that to the file from time to time. */
export class LeaseBook implements Disposable {
  readonly #host: HostPaths;
  readonly #asked: Map<string, string>;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(host: HostPaths) {
    this.#host = host;
    this.#asked = new Map(Object.entries(readAsked(host)));
  }

  /** Records that a guest got its address. */
  enter(key: string): void {
    this.#asked.set(key, new Date().toISOString());
    this.#timer ??= setTimeout(() => this.#write(), WRITE_EVERY);
  }

  /** Deletes entries that are no longer served. */
  keep(isServed: (key: string) => boolean): void {
    for (const key of [...this.#asked.keys()]) if (!isServed(key)) this.#asked.delete(key);
  }

  #write(): void {
    this.#timer = undefined;
    try {
      const text = JSON.stringify(Object.fromEntries(this.#asked));
      replaceFile(dhcpFile(this.#host, "leases"), `${text}\n`);
    } catch {
      // The directory is deleted with the last VM.
    }
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}
