/**
 * The records of VMs, read anew only where they changed.
 *
 * @module
 */

import { describe, SyscallError, TapkitError } from "../../errors.ts";
import { Inotify, InotifyEvent } from "../../sys/inotify.ts";
import type { HostSession } from "../types.ts";
import type { Attachment } from "./attachment.ts";
import { type HostPaths, namesOfRecords, recordNames, vmsDir } from "./paths.ts";
import { readVm } from "./store.ts";

const EVENTS = InotifyEvent.MOVED_TO | InotifyEvent.MOVED_FROM | InotifyEvent.CLOSE_WRITE |
  InotifyEvent.DELETE;

interface Asked {
  readonly except: string | undefined;
  readonly note: (text: string) => void;
}

/**
 * Remembers the records of one state directory. The kernel queues the events of inotify while a file is
 * being replaced, so what is read here is what is on disk at that moment.
 */
class RecordMemory implements Disposable {
  readonly #host: HostPaths;
  readonly #known = new Map<string, Attachment>();
  /** The VMs whose records changed since they were read, or cannot be read. */
  readonly #unread = new Set<string>();
  #inotify: Inotify | undefined;
  #uses = 0;

  constructor(host: HostPaths) {
    this.#host = host;
  }

  /** The records, each read when it is asked for. */
  *each({ except, note }: Asked): Generator<readonly [name: string, Attachment]> {
    this.#follow();
    for (const known of [...this.#known]) if (known[0] !== except) yield known;
    for (const name of [...this.#unread]) {
      if (name === except) continue;
      const attachment = this.#read(name, note);
      if (attachment === undefined) continue;
      this.#unread.delete(name);
      this.#known.set(name, attachment);
      yield [name, attachment];
    }
  }

  #read(name: string, note: (text: string) => void): Attachment | undefined {
    try {
      const attachment = readVm(this.#host, name);
      if (attachment === undefined) this.#unread.delete(name);
      return attachment;
    } catch (error) {
      if (!(error instanceof TapkitError)) throw error;
      note(`warning: ${describe(error)}`);
      return undefined;
    }
  }

  /** Learns which records changed; without inotify all may have. */
  #follow(): void {
    const files = this.#inotify?.drain();
    // Most processes ask once.
    if (files === undefined && this.#uses++ > 0) this.#watch();
    if (files === undefined) {
      this.#known.clear();
      this.#unread.clear();
    }
    for (const name of files === undefined ? recordNames(this.#host) : namesOfRecords(files)) {
      this.#known.delete(name);
      this.#unread.add(name);
    }
  }

  #watch(): void {
    this[Symbol.dispose]();
    try {
      this.#inotify = new Inotify();
      this.#inotify.watch(vmsDir(this.#host), EVENTS);
    } catch (error) {
      // There is no record, or the host has no more inotify instances. Then all are read each time.
      if (!(error instanceof SyscallError)) throw error;
      this[Symbol.dispose]();
    }
  }

  [Symbol.dispose](): void {
    this.#inotify?.[Symbol.dispose]();
    this.#inotify = undefined;
  }
}

/** What `derive` makes of a record, made once for each that {@linkcode eachRecord} returns. */
export function perRecord<T>(derive: (attachment: Attachment) => T): (attachment: Attachment) => T {
  const known = new WeakMap<Attachment, T>();
  return (attachment) => {
    const found = known.get(attachment) ?? derive(attachment);
    known.set(attachment, found);
    return found;
  };
}

/**
 * The records of a host's VMs with their names, each read when it is asked for. What has not changed
 * since this session, or this process, read it is the same object.
 *
 * @param except a VM whose record is not read
 * @param note is told what cannot be read; the host's unless given
 */
export function eachRecord(
  host: HostPaths & { readonly session: HostSession },
  { except, note = host.note }: Partial<Asked> = {},
): Iterable<readonly [name: string, Attachment]> {
  const key = `records of ${host.stateDir}`;
  return host.session.share(key, () => new RecordMemory(host)).each({ except, note });
}
