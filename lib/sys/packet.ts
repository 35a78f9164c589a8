/**
 * Packet sockets: whole Ethernet frames of one interface.
 *
 * @module
 */

import { type BpfInstruction, encodeBpf } from "./bpf.ts";
import { Socket, SocketConst } from "./socket.ts";

/** linux/if_ether.h: every protocol. On a bridge port, a socket for one protocol sees nothing. */
const ETH_P_ALL = 0x0003;
/** Size of `struct sockaddr_ll` (linux/if_packet.h). */
const SOCKADDR_LL_SIZE = 20;

/** How to open a packet socket. */
export interface PacketSocketOptions {
  /** The interface's index in the current network namespace. */
  readonly ifindex: number;
  /** Selects the frames; all when absent. */
  readonly filter?: readonly BpfInstruction[];
}

/**
 * Opens a nonblocking packet socket on an interface of the current network namespace.
 *
 * The filter is set before the socket receives anything. The socket keeps the interface's namespace
 * alive until it is closed.
 */
export function openPacketSocket(options: PacketSocketOptions): Socket {
  const type = SocketConst.SOCK_RAW | SocketConst.SOCK_NONBLOCK;
  // Protocol 0: receives nothing until it is bound.
  const socket = Socket.open(SocketConst.AF_PACKET, type, 0, "packet socket", { slow: true });
  try {
    if (options.filter !== undefined) attachFilter(socket, options.filter);
    socket.bind(sockaddrLl(options.ifindex));
    return socket;
  } catch (error) {
    socket[Symbol.dispose]();
    throw error;
  }
}

function sockaddrLl(ifindex: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(SOCKADDR_LL_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, SocketConst.AF_PACKET, true);
  view.setUint16(2, ETH_P_ALL, false);
  view.setInt32(4, ifindex, true);
  return bytes;
}

/** `struct sock_fprog` is a length and a pointer. */
function attachFilter(socket: Socket, program: readonly BpfInstruction[]): void {
  const instructions = encodeBpf(program);
  const fprog = new Uint8Array(16);
  const view = new DataView(fprog.buffer);
  view.setUint16(0, program.length, true);
  view.setBigUint64(8, Deno.UnsafePointer.value(Deno.UnsafePointer.of(instructions)), true);
  socket.setOption(SocketConst.SOL_SOCKET, SocketConst.SO_ATTACH_FILTER, fprog);
}
