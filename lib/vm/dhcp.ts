/**
 * DHCP for every attached VM of the host, from one process that follows the records.
 *
 * @module
 */

import type { DhcpTap } from "../dhcp/server.ts";
import { DhcpServer } from "../dhcp/server.ts";
import { TapkitError } from "../errors.ts";
import type { Lock } from "../sys/flock.ts";
import { Inotify, InotifyEvent } from "../sys/inotify.ts";
import type { Attachment, Both } from "./record/attachment.ts";
import { linkNames, ownerTag, vmOfTag } from "./record/identity.ts";
import { LeaseBook } from "./leases.ts";
import { type HostPaths, hostPaths, recordNames } from "./record/paths.ts";
import { lockDhcpServer, tidyState } from "./record/locks.ts";
import { attachedSide, inRecordsDir, readVms } from "./record/store.ts";
import { currentResolvers, HostResolvers } from "./resolvers.ts";
import type { HostOptions, VmDns } from "./types.ts";

/**
 * A guest asks again every hour, so that it learns of other resolvers; and it keeps its address for a
 * day while nobody answers.
 */
const RENEWAL_SECONDS = 3600;
const LEASE_SECONDS = 24 * RENEWAL_SECONDS;

/** How long to serve. */
export interface ServeOptions extends HostOptions {
  /** Whether to end when no VM is attached; then another server running already is no error. */
  readonly exitWhenIdle?: boolean;
  /** Ends the service. */
  readonly signal?: AbortSignal;
}

/**
 * Answers DHCP on the TAP of every attached VM, and follows attachments as they come and go.
 *
 * One process serves a host. It needs no address: it reads and writes frames on the TAPs.
 *
 * @throws {TapkitError} when another process serves already, unless `exitWhenIdle`
 */
export async function serveDhcp(options: ServeOptions = {}): Promise<void> {
  const host = hostPaths(options);
  const { exitWhenIdle = false, signal } = options;
  try {
    // A VM attached between the last look and the lock's release found the server running.
    do {
      using lock = await lockSoon(host);
      if (lock === undefined) {
        if (exitWhenIdle) return;
        throw new TapkitError(`DHCP of ${host.stateDir} is answered by another process already`, {
          mend: "end that one first, or leave it to its work",
        });
      }
      await serveUntilDone(host, exitWhenIdle, signal);
    } while (signal?.aborted !== true && recordNames(host).length > 0);
  } finally {
    tidyState(host);
  }
}

/** Whoever only looks whether a server runs has the lock for a moment. */
async function lockSoon(host: HostPaths): Promise<Lock | undefined> {
  for (let attempt = 1; attempt < LOCK_ATTEMPTS; attempt++) {
    const lock = lockDhcpServer(host);
    if (lock !== undefined) return lock;
    await new Promise((resolve) => setTimeout(resolve, LOCK_DELAY_MS));
  }
  return lockDhcpServer(host);
}

const LOCK_ATTEMPTS = 5;
const LOCK_DELAY_MS = 20;

async function serveUntilDone(
  host: HostPaths,
  exitWhenIdle: boolean,
  signal: AbortSignal | undefined,
): Promise<void> {
  const resolvers = new HostResolvers();
  const taps = (attachments: readonly Attachment[]) =>
    attachments.flatMap((one) => dhcpTaps(attachedSide(one), resolvers.current));
  const beforeAnswer = () => {
    if (resolvers.refresh()) server.sync(taps(readVms(host)));
  };
  using book = new LeaseBook(host);
  const onLease = (key: string) => book.enter(key);
  using server = new DhcpServer({ note: host.note, beforeAnswer, onLease });
  using inotify = new Inotify();
  const idle = new AbortController();
  let watched: number | undefined;
  const follow = () => {
    let changed = changedVms(inotify.drain());
    if (exitWhenIdle && recordNames(host).length === 0) return idle.abort();
    // The directory goes with the last VM, and its watch with it.
    const events = InotifyEvent.MOVED_TO | InotifyEvent.DELETE;
    const watch = inRecordsDir(host, (directory) => inotify.watch(directory, events));
    if (watch !== watched) changed = undefined;
    watched = watch;
    const names = new Set(recordNames(host));
    book.keep((key) => names.has(vmOfTag(key)));
    if (changed === undefined) return server.sync(taps(readVms(host)));
    // Reading all of them at each change would take the longer the more there are.
    for (const key of server.errors.keys()) changed.add(vmOfTag(key));
    const records = readVms(host, [...changed]);
    server.sync(taps(records), (key) => changed.has(vmOfTag(key)));
  };
  server.watch(inotify.fd, follow);
  follow();
  const signals = signal === undefined ? [idle.signal] : [idle.signal, signal];
  await server.run(AbortSignal.any(signals));
}

/** The VMs whose records changed, by the names of the files that did. */
function changedVms(files: ReadonlySet<string> | undefined): Set<string> | undefined {
  if (files === undefined) return undefined;
  const suffix = ".json";
  return new Set(
    [...files].filter((name) => name.endsWith(suffix))
      .map((name) => name.slice(0, -suffix.length)),
  );
}

/**
 * What the server needs to know of a VM: one entry for each interface with an IPv4 address.
 *
 * @param host the host's resolvers, for a VM whose networks name none
 */
export function dhcpTaps(at: Both | undefined, host: VmDns): DhcpTap[] {
  if (at === undefined) return [];
  const { spec: { id }, facts } = at;
  const { nameservers, search } = currentResolvers(facts, host);
  const { path, is } = facts.netns;
  return facts.networks.flatMap(({ attachment: { ifName }, link }) => {
    const main = link?.addresses.find(({ address }) => !address.includes(":"));
    if (link === undefined || main === undefined) return [];
    return [{
      key: ownerTag(id, ifName),
      netnsPath: path,
      ...is === undefined ? {} : { netnsIs: is },
      tap: linkNames(ifName).tap,
      guest: {
        mac: link.mac,
        address: main.address,
        ...main.gateway === undefined ? {} : { gateway: main.gateway },
        routes: link.routes.filter(({ dst }) => !dst.includes(":")),
        nameservers,
        search,
        // RFC 1123 has no underscore.
        hostname: id.name.replaceAll("_", "-"),
        mtu: link.mtu,
        leaseSeconds: LEASE_SECONDS,
        renewalSeconds: RENEWAL_SECONDS,
      },
    }];
  });
}
