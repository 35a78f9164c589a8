/**
 * The DHCP server: a packet socket on every guest's TAP, and one epoll for all of them.
 *
 * @module
 */

import { askWhetherGuestWaits } from "../checkpoint.ts";
import { asError, describe, SyscallError, TapkitError } from "../errors.ts";
import { parseMac } from "../inet/mac.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { isSameNetns, type NetnsIdentity, netnsIdentity } from "../netlink/identity.ts";
import { requireLink } from "../netlink/link.ts";
import type { Mutable } from "../netlink/wire.ts";
import { Epoll } from "../sys/epoll.ts";
import { failedWith } from "../sys/libc.ts";
import { openNetns, withNetns } from "../sys/netns.ts";
import { openPacketSocket } from "../sys/packet.ts";
import { type Socket, SocketConst } from "../sys/socket.ts";
import { dhcpSocketFilter } from "./filter.ts";
import { buildUdpFrame, parseUdpFrame } from "./frame.ts";
import { BOOTPS } from "./headers.ts";
import { type DhcpGuest, type DhcpLease, prepareLease } from "./lease.ts";
import { DhcpFormatError } from "./options.ts";
import { decodeDhcp, encodeDhcp } from "./packet.ts";
import { type DhcpAnswer, type DhcpReply, respond } from "./responder.ts";

/** A TAP whose guest is served. */
export interface DhcpTap {
  /** A unique key: `"web/eth0"`. */
  readonly key: string;
  /** The path of its network namespace. */
  readonly netnsPath: string;
  /** The identity of that namespace, if known. Another namespace at the path is not the owner's. */
  readonly netnsIs?: NetnsIdentity;
  /** Its name in the namespace. */
  readonly tap: string;
  readonly guest: DhcpGuest;
}

/** Counters of one TAP. */
export interface DhcpCounters {
  /** Frames to the port of DHCP servers. */
  readonly received: number;
  /** Of those, malformed frames. */
  readonly malformed: number;
  /** Requests that are not for this server, or not from the guest. */
  readonly ignored: number;
  readonly offered: number;
  readonly acked: number;
  readonly naked: number;
  readonly declined: number;
  readonly released: number;
  /** Replies that the kernel did not accept. */
  readonly unsent: number;
}

/** Options of a server. */
export interface DhcpServerOptions {
  /**
   * Called with the reason, in one line, when a TAP cannot be served; once until the reason
   * changes.
   */
  readonly note?: ((text: string) => void) | undefined;
  /** Called when a request arrives, before the answer. It may call {@linkcode DhcpServer.sync}. */
  readonly beforeAnswer?: (() => void) | undefined;
  /** Called with the TAP's key when its guest was given its address. */
  readonly onLease?: ((key: string) => void) | undefined;
}

/** An open TAP. */
interface Station {
  readonly tap: DhcpTap;
  readonly socket: Socket;
  /** The TAP's own MAC, the source of replies. */
  readonly mac: Uint8Array;
  /** Distinguishes the namespace from a later one with the same path. */
  readonly inode: number | null;
  /** The input of the lease, to detect a change. */
  guest: string;
  lease: DhcpLease;
  readonly counters: Mutable<DhcpCounters>;
}

/** DHCP fits in frames of 1,514 bytes. Longer frames are truncated, and count as malformed. */
const FRAME_SIZE = 2048;
/** The receive buffer of a guest. It is small, because it is memory of the host. */
const RECEIVE_BUFFER_SIZE = 32 * 1024;
const BROADCAST_MAC = new Uint8Array(6).fill(0xff);
/** The first and the longest delay until a TAP that went down is tried again; milliseconds. */
const FIRST_LOOK = 20;
const LAST_LOOK = 1000;

/**
 * Answers the guests' DHCP. It has no address of its own: it reads and writes frames on the TAPs.
 *
 * A socket keeps the namespace of its TAP alive, so it is closed as soon as the TAP is gone. Abort
 * {@linkcode run} and await it before you dispose of the server.
 */
export class DhcpServer implements Disposable {
  readonly #epoll = new Epoll();
  readonly #options: DhcpServerOptions;
  readonly #stations = new Map<string, Station>();
  readonly #byFd = new Map<number, Station>();
  readonly #watches = new Map<number, () => void>();
  readonly #errors = new Map<string, Error>();
  /** TAPs that went down. The kernel reports that once, and does not report a later deletion. */
  readonly #down = new Set<Station>();
  #lookDelay = FIRST_LOOK;
  #lookTime = 0;
  readonly #frame = new Uint8Array(FRAME_SIZE);
  /** The counters of the TAPs that were closed. */
  readonly #closed = newCounters();

  constructor(options: DhcpServerOptions = {}) {
    this.#options = options;
  }

  /** The counters of each TAP since it was opened, by key. */
  get counters(): ReadonlyMap<string, DhcpCounters> {
    return new Map([...this.#stations].map(([key, { counters }]) => [key, { ...counters }]));
  }

  /** The counters of all TAPs together since the server began, of closed ones too. */
  get totals(): DhcpCounters {
    const totals = { ...this.#closed };
    for (const { counters } of this.#stations.values()) addCounters(totals, counters);
    return totals;
  }

  /** Why a wanted TAP is not open, by key. The next {@linkcode sync} tries again. */
  get errors(): ReadonlyMap<string, Error> {
    return new Map(this.#errors);
  }

  /**
   * Serves the TAPs of the list: opens new ones, closes others, and updates changed leases. A TAP
   * that cannot be opened is in {@linkcode errors}.
   *
   * @param concerns the keys that the list is complete for; other TAPs stay as they are
   */
  sync(taps: readonly DhcpTap[], concerns: (key: string) => boolean = () => true): void {
    const wanted = new Map(taps.map((tap) => [tap.key, tap]));
    for (const [key, station] of [...this.#stations]) {
      if (concerns(key) && !isSameDevice(station, wanted.get(key))) this.#close(station);
    }
    this.#lookAtDown();
    for (const key of [...this.#errors.keys()]) {
      if (concerns(key) && !wanted.has(key)) this.#errors.delete(key);
    }
    for (const tap of wanted.values()) this.#serveTap(tap);
  }

  #serveTap(tap: DhcpTap): void {
    const station = this.#stations.get(tap.key);
    try {
      if (station === undefined) this.#open(tap);
      else renewLease(station, tap.guest);
      this.#errors.delete(tap.key);
    } catch (thrown) {
      if (station !== undefined) this.#close(station);
      const error = asError(thrown);
      const told = this.#errors.get(tap.key)?.message === error.message;
      this.#errors.set(tap.key, error);
      if (!told) this.#options.note?.(`warning: no DHCP for ${tap.key}: ${describe(error)}`);
    }
  }

  #open(tap: DhcpTap): void {
    const station = openStation(tap);
    this.#stations.set(tap.key, station);
    this.#byFd.set(station.socket.fd, station);
    try {
      this.#epoll.add(station.socket.fd);
    } catch (error) {
      this.#close(station);
      throw error;
    }
  }

  #close(station: Station): void {
    this.#stations.delete(station.tap.key);
    addCounters(this.#closed, station.counters);
    this.#byFd.delete(station.socket.fd);
    this.#down.delete(station);
    this.#epoll.remove(station.socket.fd);
    station.socket[Symbol.dispose]();
  }

  /**
   * Makes {@linkcode run} call back when there is something new to read of another descriptor. The caller
   * keeps the descriptor, and reads all there is.
   */
  watch(fd: number, onReadable: () => void): void {
    this.#epoll.add(fd, { once: true });
    this.#watches.set(fd, onReadable);
  }

  /** Serves until `signal` is aborted, or a watch's callback throws. */
  async run(signal: AbortSignal): Promise<void> {
    const wake = () => this.#epoll.wake();
    signal.addEventListener("abort", wake);
    askWhetherGuestWaits(() => this.#epoll.isReady());
    try {
      while (!signal.aborted) {
        for (const fd of await this.#epoll.wait(this.#down.size === 0 ? -1 : this.#lookDelay)) {
          if (signal.aborted) return;
          this.#handle(fd);
        }
        if (performance.now() >= this.#lookTime) this.#lookAtDown();
      }
    } finally {
      signal.removeEventListener("abort", wake);
      askWhetherGuestWaits(undefined);
    }
  }

  #handle(fd: number): void {
    const callback = this.#watches.get(fd);
    if (callback !== undefined) return callback();
    const station = this.#byFd.get(fd);
    if (station === undefined) return;
    // One frame at a time, so that a guest that floods does not delay the others.
    const length = this.#receive(station);
    if (length === undefined) return this.#examine(station);
    this.#options.beforeAnswer?.();
    if (this.#byFd.get(fd) === station) this.#answer(station, this.#frame.subarray(0, length));
  }

  #receive(station: Station): number | undefined {
    try {
      return station.socket.receive(this.#frame);
    } catch (error) {
      if (error instanceof SyscallError) return undefined;
      throw error;
    }
  }

  /** The kernel reports ENETDOWN once, to the next call. */
  #examine(station: Station): void {
    const state = linkState(station.socket);
    if (state === "gone") return this.#close(station);
    if (state === "up") return;
    this.#down.add(station);
    this.#lookDelay = FIRST_LOOK;
    this.#lookTime = performance.now() + FIRST_LOOK;
  }

  #lookAtDown(): void {
    for (const station of [...this.#down]) {
      const state = linkState(station.socket);
      if (state === "gone") this.#close(station);
      else if (state === "up") this.#down.delete(station);
    }
    this.#lookDelay = Math.min(2 * this.#lookDelay, LAST_LOOK);
    this.#lookTime = performance.now() + this.#lookDelay;
  }

  #answer(station: Station, frame: Uint8Array): void {
    const { counters } = station;
    counters.received++;
    try {
      const datagram = parseUdpFrame(frame);
      const answer: DhcpAnswer = datagram?.destinationPort === BOOTPS
        ? respond(decodeDhcp(datagram.payload), station.lease)
        : { outcome: "ignored" };
      counters[answer.outcome]++;
      if ("reply" in answer) sendReply(station, answer);
      if (answer.outcome === "acked") this.#options.onLease?.(station.tap.key);
    } catch (error) {
      if (error instanceof DhcpFormatError) {
        counters.malformed++;
      } else if (error instanceof SyscallError) {
        counters.unsent++;
        this.#examine(station);
      } else {
        throw error;
      }
    }
  }

  [Symbol.dispose](): void {
    for (const station of [...this.#stations.values()]) this.#close(station);
    this.#epoll[Symbol.dispose]();
  }
}

function openStation(tap: DhcpTap): Station {
  const lease = prepareLease(tap.guest);
  const inode = inodeOf(tap.netnsPath);
  using netns = openNetns(tap.netnsPath);
  return withNetns(netns, () => {
    using nl = NetlinkConnection.open();
    if (tap.netnsIs !== undefined && !isSameNetns(tap.netnsIs, netnsIdentity(netns, nl))) {
      throw new TapkitError(`${tap.netnsPath} is another network namespace now`);
    }
    const link = requireLink(nl, tap.tap);
    const mac = parseMac(link.mac ?? "");
    const socket = openPacketSocket({ ifindex: link.index, filter: dhcpSocketFilter() });
    socket.setOption(SocketConst.SOL_SOCKET, SocketConst.SO_RCVBUF, RECEIVE_BUFFER_SIZE);
    return {
      tap,
      socket,
      mac,
      inode,
      guest: JSON.stringify(tap.guest),
      lease,
      counters: newCounters(),
    };
  });
}

function newCounters(): Mutable<DhcpCounters> {
  return {
    received: 0,
    malformed: 0,
    ignored: 0,
    offered: 0,
    acked: 0,
    naked: 0,
    declined: 0,
    released: 0,
    unsent: 0,
  };
}

function addCounters(to: Mutable<DhcpCounters>, from: DhcpCounters): void {
  for (const name of Object.keys(from) as (keyof DhcpCounters)[]) to[name] += from[name];
}

function inodeOf(path: string): number | null {
  try {
    return Deno.statSync(path).ino;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
}

function isSameDevice({ tap, inode }: Station, wanted: DhcpTap | undefined): boolean {
  return wanted !== undefined && wanted.tap === tap.tap && wanted.netnsPath === tap.netnsPath &&
    inode === inodeOf(tap.netnsPath);
}

function renewLease(station: Station, guest: DhcpGuest): void {
  const text = JSON.stringify(guest);
  if (text === station.guest) return;
  station.lease = prepareLease(guest);
  station.guest = text;
}

/** Sends an empty frame: the kernel looks at the device before it refuses that. */
function linkState(socket: Socket): "up" | "down" | "gone" {
  try {
    socket.send(new Uint8Array(0));
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    if (failedWith(error, "ENXIO", "ENODEV")) return "gone";
    if (failedWith(error, "ENETDOWN")) return "down";
  }
  return "up";
}

function sendReply(station: Station, answer: DhcpReply): void {
  const { reply, destination, maximumSize } = answer;
  station.socket.send(buildUdpFrame({
    sourceMac: station.mac,
    destinationMac: destination.broadcast ? BROADCAST_MAC : station.lease.macBytes,
    sourceIp: station.lease.serverIdentifier,
    destinationIp: destination.ip,
    sourcePort: BOOTPS,
    destinationPort: destination.port,
    payload: encodeDhcp(reply, maximumSize),
  }));
}
