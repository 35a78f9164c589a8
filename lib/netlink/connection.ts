/**
 * Netlink I/O: a socket, requests and their replies. Nothing else does netlink I/O.
 *
 * @module
 */

import { SyscallError, TapkitError } from "../errors.ts";
import { Errno } from "../sys/libc.ts";
import { Socket, SocketConst } from "../sys/socket.ts";
import { DecodeError, NetlinkError, type Subject } from "./errors.ts";
import type { BatchedRequest, Change, Query } from "./requests.ts";
import {
  collectReply,
  decodeAcknowledgement,
  decodeMessages,
  encodeMessage,
  headerAt,
  type Message,
  NETLINK,
  NLM_F,
  NLMSG,
  NLMSG_HDRLEN,
  type Reply,
  routeMessageName,
  walkMessages,
} from "./message.ts";

/** Netlink socket options (linux/netlink.h), and their level (linux/socket.h). */
const OPTION = { SOL_NETLINK: 270, CAP_ACK: 10, EXT_ACK: 11, GET_STRICT_CHK: 12 } as const;

/** asm-generic/socket.h. */
const SO_RCVTIMEO = 20;

const SO_SNDBUFFORCE = 32;

const SO_NETNS_COOKIE = 71;

/** A size that fits in every socket's send buffer. */
const SMALL_DATAGRAM = 64 * 1024;

/**
 * The kernel makes the datagrams of a dump as large as the largest buffer that it was offered, up
 * to 32 KiB. Other answers are shorter: a link with all its attributes takes 2 KiB.
 */
const RECEIVE_BUFFER_SIZE = 64 * 1024;

/** One buffer for all sockets: each answer is copied out of it immediately. */
const receiveBuffer = new Uint8Array(RECEIVE_BUFFER_SIZE);

/** The kernel answers during the send call. This limits the wait for a lost answer. */
const ANSWER_TIMEOUT_SECONDS = 30;

/** How often an inconsistent dump is repeated. */
const DUMP_ATTEMPTS = 16;

/**
 * A netlink socket. It belongs to the network namespace in which it was opened.
 *
 * Requests are synchronous: each returns when the kernel has done it. With `TAPKIT_DEBUG=netlink`
 * in the environment, every message is printed on stderr.
 *
 * ```ts
 * using nl = NetlinkConnection.open();
 * const links = listLinks(nl);
 * ```
 */
export class NetlinkConnection implements Disposable {
  readonly #socket: Socket;
  readonly #protocol: number;
  readonly #debug: boolean;
  #seq = 0;

  private constructor(socket: Socket, protocol: number) {
    this.#socket = socket;
    this.#protocol = protocol;
    this.#debug = (Deno.env.get("TAPKIT_DEBUG") ?? "").split(",").includes("netlink");
  }

  /**
   * Opens a connection in the calling thread's network namespace.
   *
   * @param protocol a constant of {@linkcode NETLINK}, `NETLINK.ROUTE` unless given
   */
  static open(protocol: number = NETLINK.ROUTE): NetlinkConnection {
    const { AF_NETLINK, SOCK_RAW, SOL_SOCKET } = SocketConst;
    const slow = protocol === NETLINK.NETFILTER;
    const socket = Socket.open(AF_NETLINK, SOCK_RAW, protocol, "netlink socket", { slow });
    try {
      for (const option of [OPTION.CAP_ACK, OPTION.EXT_ACK, OPTION.GET_STRICT_CHK]) {
        socket.setOption(OPTION.SOL_NETLINK, option, 1);
      }
      const timeout = new BigInt64Array([BigInt(ANSWER_TIMEOUT_SECONDS), 0n]);
      socket.setOption(SOL_SOCKET, SO_RCVTIMEO, new Uint8Array(timeout.buffer));
      // The kernel binds it to a port ID at the first send.
      return new NetlinkConnection(socket, protocol);
    } catch (error) {
      socket[Symbol.dispose]();
      throw error;
    }
  }

  /** The kernel's number of the connection's namespace; `undefined` before Linux 5.14. */
  get netnsCookie(): string | undefined {
    const value = new BigUint64Array(1);
    try {
      this.#socket.getOption(SocketConst.SOL_SOCKET, SO_NETNS_COOKIE, new Uint8Array(value.buffer));
    } catch (error) {
      if (error instanceof SyscallError) return undefined;
      throw error;
    }
    return String(value[0]);
  }

  /**
   * Sends a request, and returns the messages of the answer without the acknowledgement. A dump
   * that changes meanwhile is repeated.
   *
   * @param type the message's type
   * @param flags {@linkcode NLM_F} in addition to REQUEST and ACK, which are always set
   * @param payload the message without its header
   * @param subject what the request is about, for the error
   * @throws {NetlinkError} when the kernel refuses; EINTR when a dump changes every time
   */
  request(type: number, flags: number, payload: Uint8Array, subject: Subject = {}): Message[] {
    return this.#run(type, flags | NLM_F.REQUEST | NLM_F.ACK, payload, subject);
  }

  /**
   * Like {@linkcode request}, without blocking the calling thread: for requests that take the
   * kernel long. Do not use the connection until it is done.
   */
  async requestAside(
    type: number,
    flags: number,
    payload: Uint8Array,
    subject: Subject = {},
  ): Promise<Message[]> {
    return await this.#aside(type, flags | NLM_F.REQUEST | NLM_F.ACK, payload, subject);
  }

  async #aside(
    type: number,
    flags: number,
    payload: Uint8Array,
    subject: Subject,
  ): Promise<Message[]> {
    const request = this.#next(type, flags, payload);
    const message = encodeMessage(request);
    // Sending it again fails with a reason.
    if (!await this.#socket.sendAside(message)) this.#socket.send(message);
    return this.#answer(request, subject).messages;
  }

  /**
   * Asks for several objects with one datagram. Like {@linkcode request}, without acknowledgements,
   * which would be more messages to receive.
   *
   * @returns the answer to each; undefined for what is absent
   * @throws {NetlinkError} the first other refusal
   */
  ask(queries: readonly Query[]): (Message | undefined)[] {
    const requests = queries.map((query) => ({ ...query, flags: 0 }));
    return this.#inOneDatagram(requests).map((answer, index) => {
      if (answer?.type !== NLMSG.ERROR) return answer;
      const { type, subject = {}, absent = [] } = queries[index]!;
      const verdict = decodeAcknowledgement(answer);
      if (absent.some((code) => Errno[code] === verdict.errno)) return undefined;
      throw this.#refusal(type, subject, verdict);
    });
  }

  /** Asks for one object; returns the kernel's answer. */
  query(type: number, payload: Uint8Array, subject: Subject = {}): Message {
    return this.ask([{ type, payload, subject }])[0]!;
  }

  /**
   * Makes several changes with one datagram, one after the other. One that is refused does not keep
   * the kernel from those after it.
   *
   * @returns which ones were done
   * @throws {NetlinkError} the first refusal that matters
   */
  changeAll(changes: readonly Change[]): boolean[] {
    if (changes.length === 0) return [];
    // A refusal comes unasked, and when the last one is done, so are all.
    const requests = changes.map((change, index) =>
      index < changes.length - 1 ? change : { ...change, flags: change.flags | NLM_F.ACK }
    );
    return this.#inOneDatagram(requests).map((answer, index) => {
      const verdict = answer && decodeAcknowledgement(answer);
      if (verdict === undefined || verdict.errno === 0) return true;
      const { type, subject = {}, refused } = changes[index]!;
      const error = this.#refusal(type, subject, verdict);
      if (refused === undefined) throw error;
      refused(error);
      return false;
    });
  }

  /** Makes a change; returns false if the kernel refused it, and that does not matter. */
  change(change: Change): boolean {
    return this.changeAll([change])[0]!;
  }

  /** Asks for a whole table: {@linkcode request} with `NLM_F.DUMP`. */
  dump(type: number, payload: Uint8Array, subject: Subject = {}): Message[] {
    return this.#run(type, NLM_F.REQUEST | NLM_F.DUMP, payload, subject);
  }

  /** Like {@linkcode dump}, without blocking the calling thread until the kernel has looked at the table. */
  async dumpAside(type: number, payload: Uint8Array, subject: Subject = {}): Promise<Message[]> {
    return await this.#aside(type, NLM_F.REQUEST | NLM_F.DUMP, payload, subject);
  }

  /**
   * Reads a whole table without keeping it: a router has hundreds of thousands of routes. If the
   * table changes meanwhile, it is read again.
   *
   * @param visit gets the payload of an answer, a view that is valid until `visit` returns
   */
  scan(
    type: number,
    payload: Uint8Array,
    subject: Subject,
    visit: (view: DataView, offset: number, end: number) => void,
  ): void {
    for (let attempt = 0; attempt < DUMP_ATTEMPTS; attempt++) {
      const request = this.#next(type, NLM_F.REQUEST | NLM_F.DUMP, payload);
      this.#socket.send(encodeMessage(request));
      if (this.#visitAnswer(request, subject, visit)) return;
    }
    throw this.#refusal(type, subject, { errno: Errno.EINTR });
  }

  /** @returns whether the table did not change */
  #visitAnswer(
    { type, seq }: Message,
    subject: Subject,
    visit: (view: DataView, offset: number, end: number) => void,
  ): boolean {
    let interrupted = false;
    let verdict: Reply["verdict"];
    while (verdict === undefined) {
      const datagram = this.#receiveBytes(type, subject);
      walkMessages(datagram, (view, offset, end) => {
        const header = headerAt(view, offset);
        if (header.seq !== seq) return;
        if ((header.flags & NLM_F.DUMP_INTR) !== 0) interrupted = true;
        if (header.type === NLMSG.ERROR || header.type === NLMSG.DONE) {
          const payload = datagram.subarray(offset + NLMSG_HDRLEN, end);
          verdict = decodeAcknowledgement({ ...header, payload });
        } else if (header.type !== NLMSG.NOOP) {
          visit(view, offset + NLMSG_HDRLEN, end);
        }
      });
    }
    if (verdict.errno !== 0) throw this.#refusal(type, subject, verdict);
    return !interrupted;
  }

  /**
   * Sends several requests in one datagram, and waits for the acknowledgement of each that has
   * `NLM_F.ACK`.
   *
   * @throws {NetlinkError} the first refusal
   */
  batch(requests: readonly BatchedRequest[], subject: Subject = {}): void {
    const pending = new Map<number, number>();
    const first = this.#seq + 1;
    const parts = requests.map(({ type, flags, payload }) => {
      const seq = ++this.#seq;
      if ((flags & NLM_F.ACK) !== 0) pending.set(seq, type);
      const message = { type, flags: flags | NLM_F.REQUEST, seq, pid: 0, payload };
      if (this.#debug) this.#trace(">", message);
      return encodeMessage(message);
    });
    this.#sendAll(parts);
    while (pending.size > 0) {
      for (const message of this.#receive(requests[0]!.type, subject)) {
        if (this.#debug) this.#trace("<", message);
        if (message.seq < first || message.type !== NLMSG.ERROR) continue;
        const verdict = decodeAcknowledgement(message);
        const type = requests[message.seq - first]?.type ?? requests[0]!.type;
        if (verdict.errno !== 0) throw this.#refusal(type, subject, verdict);
        pending.delete(message.seq);
      }
    }
  }

  /**
   * Sends requests in one datagram, and waits for the last one's answer.
   *
   * @returns the first message that answers each
   */
  #inOneDatagram(requests: readonly Change[]): (Message | undefined)[] {
    const sent = requests.map(({ type, flags, payload }) =>
      this.#next(type, flags | NLM_F.REQUEST, payload)
    );
    this.#sendAll(sent.map(encodeMessage));
    const answers: (Message | undefined)[] = sent.map(() => undefined);
    const { type, subject = {} } = requests[0]!;
    while (answers.at(-1) === undefined) {
      for (const message of this.#receive(type, subject)) {
        if (this.#debug) this.#trace("<", message);
        const index = sent.findIndex(({ seq }) => seq === message.seq);
        if (index >= 0 && message.type !== NLMSG.NOOP) answers[index] ??= message;
      }
    }
    return answers;
  }

  /** The kernel refuses a datagram that is larger than the socket's send buffer. */
  #sendAll(parts: readonly Uint8Array<ArrayBuffer>[]): void {
    if (parts.length === 1) return void this.#socket.send(parts[0]!);
    const size = parts.reduce((sum, part) => sum + part.length, 0);
    if (size > SMALL_DATAGRAM) {
      // The kernel's overhead counts too.
      this.#socket.setOption(SocketConst.SOL_SOCKET, SO_SNDBUFFORCE, 2 * size);
    }
    const datagram = new Uint8Array(size);
    let offset = 0;
    for (const part of parts) {
      datagram.set(part, offset);
      offset += part.length;
    }
    this.#socket.send(datagram);
  }

  [Symbol.dispose](): void {
    this.#socket[Symbol.dispose]();
  }

  #run(type: number, flags: number, payload: Uint8Array, subject: Subject): Message[] {
    for (let attempt = 0; attempt < DUMP_ATTEMPTS; attempt++) {
      const reply = this.#exchange(type, flags, payload, subject);
      if (!reply.interrupted) return reply.messages;
    }
    throw this.#refusal(type, subject, { errno: Errno.EINTR });
  }

  #exchange(type: number, flags: number, payload: Uint8Array, subject: Subject): Reply {
    const request = this.#next(type, flags, payload);
    this.#socket.send(encodeMessage(request));
    return this.#answer(request, subject);
  }

  #next(type: number, flags: number, payload: Uint8Array): Message {
    this.#seq = this.#seq === 0xffffffff ? 1 : this.#seq + 1;
    const request = { type, flags, seq: this.#seq, pid: 0, payload };
    if (this.#debug) this.#trace(">", request);
    return request;
  }

  #answer(request: Message, subject: Subject): Reply {
    const { type } = request;
    const reply: Reply = { messages: [], interrupted: false };
    while (reply.verdict === undefined) {
      const messages = this.#receive(type, subject);
      if (this.#debug) { for (const message of messages) this.#trace("<", message); }
      collectReply(reply, messages, request);
    }
    if (reply.verdict.errno !== 0) throw this.#refusal(type, subject, reply.verdict);
    return reply;
  }

  #receive(type: number, subject: Subject): Message[] {
    // A copy, because the result is used after the next answer.
    return decodeMessages(this.#receiveBytes(type, subject).slice());
  }

  /** Receives one datagram, in a buffer that the next one reuses. */
  #receiveBytes(type: number, subject: Subject): Uint8Array<ArrayBuffer> {
    const { MSG_TRUNC } = SocketConst;
    const buffer = receiveBuffer;
    try {
      const length = this.#socket.receive(buffer, MSG_TRUNC);
      if (length > buffer.length) {
        throw new DecodeError(`datagram of ${length} bytes was truncated`, buffer.length);
      }
      return buffer.subarray(0, length);
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error;
      if (error.errno === Errno.EAGAIN) {
        throw new TapkitError(
          `the kernel did not answer ${this.#opName(type, subject)} within ` +
            `${ANSWER_TIMEOUT_SECONDS} seconds`,
          { cause: error },
        );
      }
      throw this.#refusal(type, subject, { errno: error.errno });
    }
  }

  #refusal(
    type: number,
    subject: Subject,
    verdict: { errno: number; extAck?: string; offset?: number },
  ): NetlinkError {
    const object = typeof subject.object === "function" ? subject.object() : subject.object;
    const op = this.#opName(type, subject);
    return new NetlinkError({ ...subject, ...verdict, op, object: object ?? "netlink request" });
  }

  #opName(type: number, subject: Subject): string {
    if (subject.op !== undefined) return subject.op;
    return this.#protocol === NETLINK.ROUTE ? routeMessageName(type) : `message type ${type}`;
  }

  #trace(direction: "<" | ">", message: Message): void {
    const name = message.type === NLMSG.ERROR
      ? "NLMSG_ERROR"
      : message.type === NLMSG.DONE
      ? "NLMSG_DONE"
      : this.#opName(message.type, {});
    const hex = message.payload.toHex();
    console.error(
      `netlink ${direction} ${name} flags=0x${
        message.flags.toString(16)
      } seq=${message.seq} ${hex}`,
    );
  }
}
