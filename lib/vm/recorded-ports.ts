/**
 * The host ports in the records of VMs and addresses, whether or not their rules are in the kernel.
 *
 * @module
 */

import { SyscallError } from "../errors.ts";
import type { TakenPorts } from "../inet/ports.ts";
import { Inotify, InotifyEvent } from "../sys/inotify.ts";
import { isThere } from "../sys/text.ts";
import { portsOf } from "./record/derive.ts";
import { addressTag } from "./record/identity.ts";
import { addressesDir, type HostPaths, namesOfRecords, recordNames } from "./record/paths.ts";
import { inRecordsDir, readAddresses, readVms, sidesOf } from "./record/store.ts";

const EVENTS = InotifyEvent.MOVED_TO | InotifyEvent.MOVED_FROM | InotifyEvent.CLOSE_WRITE |
  InotifyEvent.DELETE;

/**
 * Reads the ports of all records. From the second time on, inotify tells which records changed, and
 * only those are read again.
 */
export class RecordedPorts implements Disposable {
  readonly #host: HostPaths;
  readonly #vms = new Map<string, TakenPorts>();
  /** The VMs whose records changed since they were read. */
  readonly #unread = new Set<string>();
  #inotify: Inotify | undefined;
  #reads = 0;

  constructor(host: HostPaths) {
    this.#host = host;
  }

  /**
   * The ports of all records but one. The caller holds the host's lock.
   *
   * @param except whose ports are not asked for, a VM or the tag of an address
   */
  read(except: string): TakenPorts[] {
    const changed = this.#changed();
    if (changed === undefined) {
      this.#vms.clear();
      this.#unread.clear();
    }
    for (const name of changed ?? recordNames(this.#host)) {
      this.#vms.delete(name);
      this.#unread.add(name);
    }
    const names = [...this.#unread].filter((name) => name !== except);
    for (const attachment of names.length === 0 ? [] : readVms(this.#host, names)) {
      const sides = sidesOf(attachment);
      const { name } = sides[0]!.spec.id;
      const mappings = sides.flatMap(({ spec }) => portsOf(spec.claims));
      if (mappings.length > 0) this.#vms.set(name, { owner: name, mappings });
    }
    for (const name of names) this.#unread.delete(name);
    return [...this.#vms.values(), ...readAddressPorts(this.#host)]
      .filter(({ owner }) => owner !== except);
  }

  /** The VMs whose records changed; undefined if all may have changed. */
  #changed(): string[] | undefined {
    const files = this.#inotify?.drain();
    // Most sessions read once.
    if (files === undefined && this.#reads++ > 0) this.#watch();
    return files && namesOfRecords(files);
  }

  #watch(): void {
    this[Symbol.dispose]();
    try {
      const inotify = this.#inotify = new Inotify();
      inRecordsDir(this.#host, (directory) => inotify.watch(directory, EVENTS));
    } catch (error) {
      // The host's limit of inotify instances is reached. Then all records are read each time.
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
  if (!isThere(addressesDir(host))) return [];
  return readAddresses(host).flatMap(sidesOf)
    .map(({ to, claims }) => ({ owner: addressTag(to), mappings: portsOf(claims) }));
}
