/**
 * The host ports that records have, of VMs and of addresses: what tapkit has given to whom, whether
 * or not its rules are in the kernel at the moment.
 *
 * @module
 */

import { SyscallError } from "../errors.ts";
import type { TakenPorts } from "../inet/ports.ts";
import { Inotify, InotifyEvent } from "../sys/inotify.ts";
import { portsOf } from "./record/derive.ts";
import { addressTag } from "./record/identity.ts";
import { addressNames, type HostPaths } from "./record/paths.ts";
import { inRecordsDir, readAddresses, readVms, sidesOf } from "./record/store.ts";

const EVENTS = InotifyEvent.MOVED_TO | InotifyEvent.MOVED_FROM | InotifyEvent.CLOSE_WRITE |
  InotifyEvent.DELETE;

/**
 * Reads them. Whoever reads for many VMs is told by the kernel which records changed since the last
 * time, and only those are read again.
 */
export class RecordedPorts implements Disposable {
  readonly #host: HostPaths;
  readonly #vms = new Map<string, TakenPorts>();
  #inotify: Inotify | undefined;
  #reads = 0;

  constructor(host: HostPaths) {
    this.#host = host;
  }

  /** All of them. The caller holds the host's lock. */
  read(): TakenPorts[] {
    const changed = this.#changed();
    if (changed === undefined) this.#vms.clear();
    for (const name of changed ?? []) this.#vms.delete(name);
    if (changed?.length !== 0) {
      for (const attachment of readVms(this.#host, changed)) {
        const sides = sidesOf(attachment);
        const { name } = sides[0]!.spec.id;
        const mappings = sides.flatMap(({ spec }) => portsOf(spec.claims));
        if (mappings.length > 0) this.#vms.set(name, { owner: name, mappings });
      }
    }
    return [...this.#vms.values(), ...readAddressPorts(this.#host)];
  }

  /** The VMs whose records changed; undefined where it may be any. */
  #changed(): string[] | undefined {
    const files = this.#inotify?.drain();
    // Most read once only.
    if (files === undefined && this.#reads++ > 0) this.#watch();
    return files === undefined
      ? undefined
      : [...files].filter((file) => file.endsWith(".json")).map((file) => file.slice(0, -5));
  }

  #watch(): void {
    this[Symbol.dispose]();
    try {
      const inotify = this.#inotify = new Inotify();
      inRecordsDir(this.#host, (directory) => inotify.watch(directory, EVENTS));
    } catch (error) {
      // A host has few of them for all its processes: then all is read each time.
      if (!(error instanceof SyscallError)) throw error;
      this[Symbol.dispose]();
    }
  }

  [Symbol.dispose](): void {
    this.#inotify?.[Symbol.dispose]();
    this.#inotify = undefined;
  }
}

function readAddressPorts(host: HostPaths): TakenPorts[] {
  if (addressNames(host).length === 0) return [];
  return readAddresses(host).flatMap(sidesOf)
    .map(({ to, claims }) => ({ owner: addressTag(to), mappings: portsOf(claims) }));
}
