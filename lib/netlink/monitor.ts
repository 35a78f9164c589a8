/**
 * What the kernel tells of changes: rtnetlink's of this namespace and of those that it has links into,
 * nf_tables' of this one. Decoded as far as a listener has to know where to look.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { attempt, Errno, failedWith, libc } from "../sys/libc.ts";
import { Socket, SocketConst } from "../sys/socket.ts";
import { decodeLink } from "./link-message.ts";
import { decodeMessages, type Message, NETLINK, NLMSG, RTM } from "./message.ts";
import { NFGENMSG_LEN, NFNL_SUBSYS } from "./nfnetlink.ts";
import { NFT_MSG, NFTA_GEN, NFTA_TABLE } from "./nftables/constants.ts";
import { Decoder } from "./wire.ts";

/** Groups of rtnetlink (linux/rtnetlink.h) and of nfnetlink (linux/netfilter/nfnetlink.h). */
const RTNLGRP = {
  LINK: 1,
  TC: 4,
  IPV4_IFADDR: 5,
  IPV4_ROUTE: 7,
  IPV6_IFADDR: 9,
  IPV6_ROUTE: 11,
  IPV4_NETCONF: 24,
  IPV6_NETCONF: 25,
} as const;
const NFNLGRP_NFTABLES = 7;

/** Socket options (linux/netlink.h, asm-generic/socket.h). */
const SOL_NETLINK = 270;
const NETLINK_ADD_MEMBERSHIP = 1;
const NETLINK_LISTEN_ALL_NSID = 8;
const SO_RCVBUFFORCE = 33;

/** What a flood of notifications is kept in until it is read. */
const RECEIVE_BUFFER = 16 * 1024 * 1024;
const DATAGRAM_SIZE = 64 * 1024;

/** Who made a change of nf_tables. */
export interface Author {
  readonly pid: number;
  /** As the kernel has it: the first 15 characters. */
  readonly name: string;
}

/** What changed. */
export type Notice =
  /** More came than could be kept: anything may have changed. */
  | { readonly about: "lost" }
  /** A transaction of nf_tables. */
  | {
    readonly about: "nftables";
    /** What it took away: tables, chains, rules or sets, or no more than elements. */
    readonly takes?: "rules" | "elements";
    readonly tables: readonly string[];
    readonly by?: Author;
  }
  | {
    readonly about: "link" | "address" | "route" | "qdisc" | "filter" | "setting";
    /** Whether it is gone. */
    readonly gone: boolean;
    /** The namespace, by the number that this one knows it by; this one if absent. */
    readonly nsid?: number;
    /** Of which link, by number; absent where that is not told. */
    readonly index?: number;
    /** Of a link: its name. */
    readonly name?: string;
    /** Of a link that is there: whether it is up. */
    readonly up?: boolean;
    /** Of a port that is there: its bridge. */
    readonly master?: number;
  };

/** By message type: what it is about, and whether that is gone. */
const ROUTE_NOTICES: Readonly<
  Record<number, readonly [about: Exclude<Notice["about"], "lost" | "nftables">, gone: boolean]>
> = {
  [RTM.NEWLINK]: ["link", false],
  [RTM.DELLINK]: ["link", true],
  [RTM.NEWADDR]: ["address", false],
  [RTM.DELADDR]: ["address", true],
  [RTM.NEWROUTE]: ["route", false],
  [RTM.DELROUTE]: ["route", true],
  [RTM.NEWQDISC]: ["qdisc", false],
  [RTM.DELQDISC]: ["qdisc", true],
  [RTM.NEWTFILTER]: ["filter", false],
  [RTM.DELTFILTER]: ["filter", true],
  [RTM.NEWNETCONF]: ["setting", false],
  [RTM.DELNETCONF]: ["setting", true],
};

/** Listens in the network namespace in which it was opened. Both descriptors are for an epoll. */
export class Monitor implements Disposable {
  readonly #route: Listener;
  readonly #nftables: Listener;
  /** Of the transaction whose end has not been heard. */
  #tables = new Set<string>();
  #takes: "rules" | "elements" | undefined;

  /**
   * @param receiveBuffer bytes in which notifications are kept until they are read
   * @throws {SyscallError} when the kernel refuses
   */
  constructor({ receiveBuffer = RECEIVE_BUFFER } = {}) {
    using stack = new DisposableStack();
    this.#route = stack.use(new Listener(NETLINK.ROUTE, Object.values(RTNLGRP), receiveBuffer));
    this.#route.hearOthers();
    this.#nftables = stack.use(new Listener(NETLINK.NETFILTER, [NFNLGRP_NFTABLES], receiveBuffer));
    stack.move();
  }

  get fds(): readonly number[] {
    return [this.#route.fd, this.#nftables.fd];
  }

  /** All that has been told and not read, by datagrams, each read when it is asked for. */
  *read(): Generator<readonly Notice[]> {
    yield* this.#route.read(routeNotice);
    yield* this.#nftables.read((one) => this.#nft(one));
  }

  #nft({ type, payload }: Message): Notice | undefined {
    if (type >> 8 !== NFNL_SUBSYS.NFTABLES) return undefined;
    const message = type & 0xff;
    const attributes = new Decoder(payload).skip(NFGENMSG_LEN).attributes();
    if (message !== NFT_MSG.NEWGEN) {
      if (TAKING.includes(message)) this.#takes = "rules";
      else if (message === NFT_MSG.DELSETELEM) this.#takes ??= "elements";
      // Every object's table is its first attribute.
      const table = [...attributes].find(({ type }) => type === NFTA_TABLE.NAME);
      if (table !== undefined) this.#tables.add(table.value.asString());
      return undefined;
    }
    let pid = 0;
    let name = "";
    for (const { type, value } of attributes) {
      if (type === NFTA_GEN.PROC_PID) pid = value.asU32be();
      else if (type === NFTA_GEN.PROC_NAME) name = value.asString();
    }
    const notice: Notice = {
      about: "nftables",
      ...this.#takes === undefined ? {} : { takes: this.#takes },
      tables: [...this.#tables],
      ...pid === 0 ? {} : { by: { pid, name } },
    };
    this.#tables = new Set();
    this.#takes = undefined;
    return notice;
  }

  [Symbol.dispose](): void {
    this.#route[Symbol.dispose]();
    this.#nftables[Symbol.dispose]();
  }
}

const TAKING: readonly number[] = [
  NFT_MSG.DELTABLE,
  NFT_MSG.DELCHAIN,
  NFT_MSG.DELRULE,
  NFT_MSG.DELSET,
];

function routeNotice({ type, payload }: Message, nsid: number | undefined): Notice | undefined {
  const [about, gone] = ROUTE_NOTICES[type] ?? [];
  if (about === undefined || gone === undefined) return undefined;
  const where = nsid === undefined ? {} : { nsid };
  if (about === "link") {
    const { index, name, up, master } = decodeLink(payload);
    const there = { up, ...master === undefined ? {} : { master } };
    return { about, gone, ...where, index, name, ...gone ? {} : there };
  }
  const index = indexOf(about, payload);
  return { about, gone, ...where, ...index === undefined ? {} : { index } };
}

/** Where a message has the number of its link. */
function indexOf(about: string, payload: Uint8Array): number | undefined {
  const decoder = new Decoder(payload);
  // struct ifaddrmsg and struct tcmsg have it as their second word.
  if (about !== "route" && about !== "setting") return decoder.skip(4).i32();
  const [header, attribute] = about === "route"
    ? [RTMSG_LEN, RTA_OIF]
    : [NETCONFMSG_LEN, NETCONFA_IFINDEX];
  for (const { type, value } of decoder.skip(header).attributes()) {
    if (type === attribute) return value.asU32();
  }
  return undefined;
}

/** linux/rtnetlink.h, linux/netconf.h; `struct netconfmsg` is a byte, and its attributes are aligned. */
const RTMSG_LEN = 12;
const RTA_OIF = 4;
const NETCONFMSG_LEN = 4;
const NETCONFA_IFINDEX = 1;

/** `struct msghdr` and `struct iovec` of 64-bit Linux; the one ancillary datum is an nsid. */
const MSGHDR_SIZE = 56;
const CONTROL_SIZE = 64;
const CMSG_LEN = 16;

/** A socket that is sent notifications. */
class Listener implements Disposable {
  readonly #socket: Socket;
  readonly #datagram = new Uint8Array(DATAGRAM_SIZE);
  readonly #control = new Uint8Array(CONTROL_SIZE);
  readonly #vector = new BigUint64Array(2);
  readonly #header = new Uint8Array(MSGHDR_SIZE);

  constructor(protocol: number, groups: readonly number[], receiveBuffer: number) {
    const { AF_NETLINK, SOCK_RAW, SOCK_NONBLOCK, SOL_SOCKET } = SocketConst;
    const name = "netlink socket for notifications";
    this.#socket = Socket.open(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, protocol, name, {
      slow: true,
    });
    try {
      this.#socket.setOption(SOL_SOCKET, SO_RCVBUFFORCE, receiveBuffer);
      // The kernel tells nothing to a socket without a port.
      this.#socket.bind(new Uint8Array(new Uint16Array([AF_NETLINK, 0, 0, 0, 0, 0]).buffer));
      for (const group of groups) {
        this.#socket.setOption(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group);
      }
    } catch (error) {
      this.#socket[Symbol.dispose]();
      throw error;
    }
    const address = (bytes: Uint8Array<ArrayBuffer> | BigUint64Array<ArrayBuffer>) =>
      BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes)));
    this.#vector.set([address(this.#datagram), BigInt(DATAGRAM_SIZE)]);
    const header = new DataView(this.#header.buffer);
    header.setBigUint64(16, address(this.#vector), true);
    header.setBigUint64(24, 1n, true);
    header.setBigUint64(32, address(this.#control), true);
  }

  get fd(): number {
    return this.#socket.fd;
  }

  /** Also listens to the namespaces that this one has a number for, by a link into them. */
  hearOthers(): void {
    try {
      this.#socket.setOption(SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1);
    } catch (cause) {
      if (!failedWith(cause, "EPERM")) throw cause;
      throw new TapkitError("what changes in VMs' network namespaces cannot be listened to", {
        mend: "run it as root, or with the capability CAP_NET_BROADCAST too",
        cause,
      });
    }
  }

  /** What has come, as `decode` reads it. */
  *read(
    decode: (message: Message, nsid: number | undefined) => Notice | undefined,
  ): Generator<readonly Notice[]> {
    for (let size; (size = this.#receive()) !== undefined;) {
      if (size === "lost") {
        yield [{ about: "lost" }];
        continue;
      }
      const nsid = this.#nsid();
      yield decodeMessages(this.#datagram.slice(0, size)).flatMap((message): Notice | Notice[] =>
        message.type === NLMSG.OVERRUN ? { about: "lost" } : decode(message, nsid) ?? []
      );
    }
  }

  #receive(): number | "lost" | undefined {
    const header = new DataView(this.#header.buffer);
    header.setBigUint64(40, BigInt(CONTROL_SIZE), true);
    try {
      return attempt(
        "recvmsg",
        "netlink socket for notifications",
        [Errno.EAGAIN],
        () => libc().recvmsg(this.#socket.fd, this.#header, 0),
      );
    } catch (error) {
      if (failedWith(error, "ENOBUFS")) return "lost";
      throw error;
    }
  }

  /** The ancillary datum: `struct cmsghdr`, then an int. */
  #nsid(): number | undefined {
    const length = new DataView(this.#header.buffer).getBigUint64(40, true);
    if (length < BigInt(CMSG_LEN + 4)) return undefined;
    const control = new DataView(this.#control.buffer);
    const [level, type] = [control.getInt32(8, true), control.getInt32(12, true)];
    return level === SOL_NETLINK && type === NETLINK_LISTEN_ALL_NSID
      ? control.getInt32(CMSG_LEN, true)
      : undefined;
  }

  [Symbol.dispose](): void {
    this.#socket[Symbol.dispose]();
  }
}
