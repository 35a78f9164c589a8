/** Datagrams for the host's loopback addresses, and whether they came in. */

import { bytes, ethernet, ipv4, udp } from "./frames.ts";
import type { Machine } from "./machine.ts";

const [ETH_P_IP, ETH_P_8021Q, ETH_P_8021AD] = [0x0800, 0x8100, 0x88a8];
/** To a port that nobody listens on. */
const DATAGRAM = udp({ source: 5000, destination: 9 }, 40);

/** Frames to the host's loopback addresses, in every dress. */
export function loopbackFrames(from: string, to: string, source: string): Uint8Array[] {
  const packet = (destination: string, sender = source) =>
    ipv4(DATAGRAM, { source: sender, destination });
  return [
    bytes(ethernet(ETH_P_IP, { from, to }), packet("127.0.0.1")),
    bytes(ethernet(ETH_P_IP, { from, to }), packet("127.200.0.1")),
    bytes(ethernet(ETH_P_IP, { from, to }), packet("127.0.0.1", "127.0.0.1")),
    ...[1, 2, 3, 5].map((tags) =>
      bytes(ethernet(ETH_P_IP, { from, to }, Array(tags).fill(ETH_P_8021Q)), packet("127.0.0.1"))
    ),
    bytes(ethernet(ETH_P_IP, { from, to }, [ETH_P_8021AD]), packet("127.0.0.1")),
  ];
}

/** How many datagrams came to a port of the host that nobody listens on. */
export async function unheard(host: Machine): Promise<number> {
  const [names, values] = (await host.sh("grep ^Udp: /proc/net/snmp")).split("\n")
    .map((line) => line.split(" "));
  return Number(values![names!.indexOf("NoPorts")]);
}

/** The same to an address that may be reached. */
export function honestFrame(from: string, to: string, source: string, destination: string) {
  return bytes(ethernet(ETH_P_IP, { from, to }), ipv4(DATAGRAM, { source, destination }));
}
