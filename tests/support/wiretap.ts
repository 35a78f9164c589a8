/** A packet socket on an interface of any namespace: frames put there, and frames that come by. */

import { SyscallError } from "../../lib/errors.ts";
import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import { requireLink } from "../../lib/netlink/link.ts";
import { Errno } from "../../lib/sys/libc.ts";
import { openNetns, withNetns } from "../../lib/sys/netns.ts";
import { openPacketSocket } from "../../lib/sys/packet.ts";
import { type Socket, SocketConst } from "../../lib/sys/socket.ts";

/** linux/if_packet.h: the sixth field of `struct sockaddr_ll`, and what it says of own frames. */
const [SOCKADDR_LL_SIZE, PACKET_TYPE, PACKET_OUTGOING] = [20, 10, 4];
/** Room for what comes while the test does other things. */
const BUFFER = 4 << 20;
const FRAME_SIZE = 65_600;
/** asm-generic/socket.h. */
const SO_RCVBUFFORCE = 33;

/** Sends and hears what passes an interface. */
export class Wiretap implements Disposable {
  readonly #socket: Socket;
  readonly #buffer = new Uint8Array(FRAME_SIZE);
  #heard: string[] = [];

  private constructor(socket: Socket) {
    this.#socket = socket;
  }

  /** @param path of the namespace, as the real machine has it */
  static open(path: string, link: string): Wiretap {
    using netns = openNetns(path);
    const socket = withNetns(netns, () => {
      using nl = NetlinkConnection.open();
      return openPacketSocket({ ifindex: requireLink(nl, link).index });
    });
    socket.setOption(SocketConst.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER);
    return new Wiretap(socket);
  }

  /** Sends a frame out of the interface. */
  send(frame: Uint8Array): void {
    this.#socket.send(frame.slice());
  }

  /** Forgets what came so far. */
  clear(): void {
    this.#drain();
    this.#heard = [];
  }

  /** What came in since, in hexadecimal. */
  get heard(): readonly string[] {
    this.#drain();
    return this.#heard;
  }

  #drain(): void {
    const from = new Uint8Array(SOCKADDR_LL_SIZE);
    while (true) {
      try {
        const length = this.#socket.receive(this.#buffer, 0, from);
        if (from[PACKET_TYPE] === PACKET_OUTGOING) continue;
        this.#heard.push(this.#buffer.subarray(0, length).toHex());
      } catch (error) {
        if (error instanceof SyscallError && error.errno === Errno.EAGAIN) return;
        throw error;
      }
    }
  }

  [Symbol.dispose](): void {
    this.#socket[Symbol.dispose]();
  }
}
