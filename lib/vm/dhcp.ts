/**
 * DHCP for all attached VMs of the host, from one process that watches the records.
 *
 * @module
 */

import type { DhcpTap } from "../dhcp/server.ts";
import { DhcpServer } from "../dhcp/server.ts";
import { TapkitError } from "../errors.ts";
import { raiseDescriptorLimit } from "../sys/descriptors.ts";
import type { Lock } from "../sys/flock.ts";
import { isThere } from "../sys/text.ts";
import { Inotify, InotifyEvent } from "../sys/inotify.ts";
import type { Attachment, Both } from "./record/attachment.ts";
import { interfacesOf, ipv4Of } from "./record/derive.ts";
import { ownerTag, vmOfTag } from "./record/identity.ts";
import { LeaseBook } from "./leases.ts";
import {
  hasVms,
  type HostPaths,
  hostPaths,
  namesOfRecords,
  recordNames,
  recordPath,
} from "./record/paths.ts";
import {
  isDhcpServerEnding,
  lockDhcpServer,
  signDhcpServer,
  signOffDhcpServer,
  tidyState,
} from "./record/locks.ts";
import { attachedSide, inRecordsDir, readVms } from "./record/store.ts";
import { currentResolvers, HostResolvers } from "./resolvers.ts";
import type { HostOptions, VmDns } from "./types.ts";

/**
 * A guest renews every hour, to learn about new resolvers. Without an answer it keeps its address
 * for a day.
 */
const RENEWAL_SECONDS = 3600;
const LEASE_SECONDS = 24 * RENEWAL_SECONDS;

/** One for each interface, and some beside. */
const DESCRIPTORS = 65_536;

/** How to serve DHCP. */
export interface ServeOptions extends HostOptions {
  /** Whether to end when no VM is attached. Then it is not an error that another server runs. */
  readonly exitWhenIdle?: boolean;
  /** Ends the server. */
  readonly signal?: AbortSignal;
}

/** The DHCP server, for what runs beside it. */
export interface DhcpState {
  /** What it did, over all TAPs. */
  readonly totals: DhcpServer["totals"];
  /** Why TAPs cannot be served, by `"web/eth0"`. */
  readonly errors: DhcpServer["errors"];
  /** Ends the server if it is to end when idle, and nothing keeps it any more. */
  readonly endIfIdle: () => void;
}

/** What a process does beside answering DHCP, for as long as it is the one that does. */
export interface Beside {
  /** Begins. What it returns is disposed of before another process may answer. */
  readonly start: (dhcp: DhcpState) => AsyncDisposable | Promise<AsyncDisposable>;
  /** Whether it keeps a server that is to end when idle. */
  readonly isBusy?: () => boolean;
  /** Called with `"web/eth0"` when a guest was given its address. */
  readonly onLease?: (key: string) => void;
  /**
   * Called when records changed.
   *
   * @param names the VMs that the list is complete for; absent if it is for all
   */
  readonly onRecords?: (attachments: readonly Attachment[], names?: ReadonlySet<string>) => void;
}

/**
 * Answers DHCP on the TAPs of all attached VMs, and watches for VMs that are attached and removed.
 *
 * One process serves a host. It needs no address: it reads and writes frames on the TAPs.
 *
 * @throws {TapkitError} when another process serves this host, unless `exitWhenIdle`
 */
export async function serveDhcp(
  options: ServeOptions = {},
  beside: Beside = NOTHING,
): Promise<void> {
  const host = hostPaths(options);
  const { exitWhenIdle = false, signal } = options;
  raiseDescriptorLimit(DESCRIPTORS);
  try {
    // A VM that is attached just before the lock is released starts no server.
    do {
      using lock = await lockSoon(host, signal);
      if (lock === undefined) {
        if (exitWhenIdle || signal?.aborted) return;
        throw new TapkitError(`another process answers DHCP for ${host.stateDir} already`, {
          mend: "end that process first, or let it serve",
        });
      }
      signDhcpServer(host);
      await serveUntilDone(host, { exitWhenIdle, signal }, beside);
    } while (signal?.aborted !== true && hasVms(host));
  } finally {
    tidyState(host);
  }
}

const NOTHING: Beside = { start: () => ({ [Symbol.asyncDispose]: async () => {} }) };

/**
 * Takes the server's lock. A process that checks whether a server runs holds it for a moment, and one
 * that ends until it has undone what is under way.
 */
async function lockSoon(
  host: HostPaths,
  signal: AbortSignal | undefined,
): Promise<Lock | undefined> {
  for (let attempt = 1; signal?.aborted !== true; attempt++) {
    const lock = lockDhcpServer(host);
    if (lock !== undefined) return lock;
    if (attempt >= LOCK_ATTEMPTS && !isDhcpServerEnding(host)) return undefined;
    await new Promise((resolve) => setTimeout(resolve, LOCK_DELAY_MS));
  }
}

const LOCK_ATTEMPTS = 5;
const LOCK_DELAY_MS = 20;

async function serveUntilDone(
  host: HostPaths,
  { exitWhenIdle, signal }: { exitWhenIdle: boolean; signal: AbortSignal | undefined },
  beside: Beside,
): Promise<void> {
  const resolvers = new HostResolvers();
  const taps = (attachments: readonly Attachment[]) =>
    attachments.flatMap((one) => dhcpTaps(attachedSide(one), resolvers.current));
  const beforeAnswer = () => {
    if (resolvers.refresh()) server.sync(taps(readVms(host)));
  };
  using book = new LeaseBook(host);
  const onLease = (key: string) => {
    book.enter(key);
    beside.onLease?.(key);
  };
  using server = new DhcpServer({ note: host.note, beforeAnswer, onLease });
  using inotify = new Inotify();
  const idle = new AbortController();
  let watched: number | undefined;
  const isIdle = () => exitWhenIdle && beside.isBusy?.() !== true && !hasVms(host);
  /** Of all records: reading the directory at each change would take longer with every VM. */
  let names = new Set<string>();
  const follow = () => {
    const files = inotify.drain();
    let changed = files && new Set(namesOfRecords(files));
    if (changed === undefined) names = new Set(recordNames(host));
    for (const name of changed ?? []) {
      if (isThere(recordPath(host, name))) names.add(name);
      else names.delete(name);
    }
    if (names.size === 0 && isIdle()) return idle.abort();
    // The directory is deleted with the last VM, and its watch with it.
    const events = InotifyEvent.MOVED_TO | InotifyEvent.DELETE;
    const watch = inRecordsDir(host, (directory) => inotify.watch(directory, events));
    if (watch !== watched) {
      changed = undefined;
      names = new Set(recordNames(host));
    }
    watched = watch;
    book.keep((key) => names.has(vmOfTag(key)));
    if (changed === undefined) {
      const records = readVms(host);
      beside.onRecords?.(records);
      return server.sync(taps(records));
    }
    for (const key of server.errors.keys()) changed.add(vmOfTag(key));
    const records = readVms(host, [...changed]);
    beside.onRecords?.(records, changed);
    server.sync(taps(records), (key) => changed.has(vmOfTag(key)));
  };
  await using _beside = await beside.start({
    get totals() {
      return server.totals;
    },
    get errors() {
      return server.errors;
    },
    endIfIdle: () => isIdle() && idle.abort(),
  });
  server.watch(inotify.fd, follow);
  follow();
  const signals = signal === undefined ? [idle.signal] : [idle.signal, signal];
  await server.run(AbortSignal.any(signals));
  signOffDhcpServer(host);
}

/**
 * What the server needs for a VM: one entry for each interface with an IPv4 address.
 *
 * @param host the host's resolvers, for a VM whose networks name none
 */
export function dhcpTaps(at: Both | undefined, host: VmDns): DhcpTap[] {
  if (at === undefined) return [];
  const { spec: { id }, facts } = at;
  const { nameservers, search } = currentResolvers(facts, host);
  const { path, is } = facts.netns;
  return interfacesOf(at).flatMap((link) => {
    const main = ipv4Of(link);
    if (main === undefined) return [];
    return [{
      key: ownerTag(id, link.name),
      netnsPath: path,
      ...is === undefined ? {} : { netnsIs: is },
      tap: link.tap,
      guest: {
        ...main,
        mac: link.mac,
        routes: link.routes.filter(({ dst }) => !dst.includes(":")),
        nameservers,
        search,
        // RFC 1123 does not allow an underscore.
        hostname: id.name.replaceAll("_", "-"),
        mtu: link.mtu,
        leaseSeconds: LEASE_SECONDS,
        renewalSeconds: RENEWAL_SECONDS,
      },
    }];
  });
}
