/**
 * Host ports that processes have: who listens on one, and which one is free. All of it concerns
 * the current network namespace.
 *
 * @module
 */

import { SyscallError, TapkitError } from "../errors.ts";
import { readIfThere } from "../files.ts";
import { bytesToIp, type Family, ipToBytes, isIp } from "../inet/ip.ts";
import {
  expandPorts,
  formatPort,
  isWildcard,
  PortConflictError,
  type PortMapping,
  portsOverlap,
} from "../inet/ports.ts";
import { dockerConflict, proxiedContainer } from "./docker-ports.ts";
import { LITTLE_ENDIAN } from "../netlink/wire.ts";
import { Errno } from "../sys/libc.ts";
import { Socket } from "../sys/socket.ts";

/** linux/socket.h, linux/in.h, linux/in6.h, asm-generic/socket.h. */
const Inet = {
  AF_INET: 2,
  AF_INET6: 10,
  SOCK_STREAM: 1,
  SOCK_DGRAM: 2,
  IPPROTO_IP: 0,
  IPPROTO_IPV6: 41,
  IPPROTO_SCTP: 132,
  SOL_SOCKET: 1,
  SO_REUSEADDR: 2,
  IP_FREEBIND: 15,
  IPV6_V6ONLY: 26,
  IPV6_FREEBIND: 78,
} as const;

/** States in /proc/net/tcp and /proc/net/udp that wait for anybody (net/tcp_states.h). */
const LISTENING: Readonly<Record<string, string>> = { tcp: "0A", udp: "07" };

/** A process that listens on a host port. */
export interface Listener {
  readonly hostPort: number;
  /** Absent where none could be found: the kernel's own sockets, a process that hides, SCTP. */
  readonly process?: { readonly name: string; readonly pid: number };
}

/** The listener that a mapping would take packets from, if there is one. */
export function findListener(mapping: PortMapping): Listener | undefined {
  for (const port of expandPorts(mapping)) {
    const families: readonly Family[] = [4, 6];
    for (const family of families) {
      if (port.hostIP !== "" && isIp(port.hostIP) !== family) continue;
      if (canBind(port, family, true)) continue;
      // Of SCTP's sockets there is no table that tells their inodes.
      if (port.protocol === "sctp") return { hostPort: port.hostPort };
      const inode = findSocket(port, family);
      if (inode === undefined) continue;
      const process = findProcess(inode);
      return { hostPort: port.hostPort, ...(process === undefined ? {} : { process }) };
    }
  }
  return undefined;
}

/**
 * Refuses mappings of host ports that a process listens on.
 *
 * @param isOwn whether a container, as `docker:ADDRESS`, for which Docker listens is the asker's own
 * @throws {PortConflictError} naming the process
 */
export function refuseListeners(
  mappings: readonly PortMapping[],
  isOwn: (container: string) => boolean = () => false,
): void {
  for (const mapping of mappings) {
    const listener = findListener(mapping);
    if (listener === undefined) continue;
    const { hostPort, process } = listener;
    const owner = process === undefined ? "the kernel" : `${process.name} (pid ${process.pid})`;
    const { protocol, hostIP } = mapping;
    const container = process && proxiedContainer(process.pid);
    if (container !== undefined && isOwn(container)) continue;
    if (container !== undefined) {
      throw dockerConflict({ protocol, hostIP, hostPort, owner: container });
    }
    throw new PortConflictError(
      { protocol, hostIP, hostPort, owner },
      `in use by ${owner}`,
      "choose another host port, or stop that process",
    );
  }
}

/**
 * Chooses host ports for the mappings that ask for one with host port 0: free of other mappings,
 * of listeners and of live connections.
 *
 * @param isTaken whether somebody has a mapping of a host port
 * @throws {TapkitError} when none is free
 */
export function chooseHostPorts(
  mappings: readonly PortMapping[],
  isTaken: (candidate: PortMapping) => boolean,
): PortMapping[] {
  const chosen = mappings.filter(({ hostPort }) => hostPort !== 0);
  return mappings.map((mapping) => {
    if (mapping.hostPort !== 0) return mapping;
    const port = chooseHostPort(
      mapping,
      (candidate) => chosen.some((other) => portsOverlap(other, candidate)) || isTaken(candidate),
    );
    chosen.push(port);
    return port;
  });
}

function chooseHostPort(
  mapping: PortMapping,
  isTaken: (candidate: PortMapping) => boolean,
): PortMapping {
  const [first, last] = ephemeralRange();
  const reserved = reservedPorts();
  const count = last - first + 1;
  const start = Math.floor(Math.random() * count);
  for (let step = 0; step < count; step++) {
    const candidate = { ...mapping, hostPort: first + (start + step) % count };
    const { hostPort } = candidate;
    if (reserved.some(([low, high]) => low <= hostPort && hostPort <= high)) continue;
    if (isFree(candidate) && !isTaken(candidate)) return candidate;
  }
  throw new TapkitError(`no host port is free for "${formatPort(mapping)}"`, {
    mend: "name a port, widen net.ipv4.ip_local_port_range or shorten ip_local_reserved_ports",
  });
}

function ephemeralRange(): [number, number] {
  const text = Deno.readTextFileSync("/proc/sys/net/ipv4/ip_local_port_range");
  const [first, last] = text.trim().split(/\s+/).map(Number);
  return [first ?? 32768, last ?? 60999];
}

/** Ranges of ports that the kernel chooses for nobody: they are kept for who asks for one by its number. */
function reservedPorts(): [number, number][] {
  const text = readIfThere("/proc/sys/net/ipv4/ip_local_reserved_ports") ?? "";
  return text.trim().split(",").filter(Boolean).map((range): [number, number] => {
    const [low = 0, high = low] = range.split("-").map(Number);
    return [low, high];
  });
}

function isFree(port: PortMapping): boolean {
  const families: readonly Family[] = [4, 6];
  return families.every((family) =>
    (port.hostIP !== "" && isIp(port.hostIP) !== family) || canBind(port, family, false)
  );
}

/**
 * Whether a socket can be bound to a host port. The kernel answers at once, where the tables of
 * /proc take the longer the more connections there are.
 *
 * @param lenient whether TCP connections that live or linger on the port do not count
 */
function canBind(port: PortMapping, family: Family, lenient: boolean): boolean {
  const { protocol, hostIP, hostPort } = port;
  const type = protocol === "udp" ? Inet.SOCK_DGRAM : Inet.SOCK_STREAM;
  const domain = family === 4 ? Inet.AF_INET : Inet.AF_INET6;
  const name = `${protocol} port ${hostPort}`;
  try {
    using socket = Socket.open(domain, type, protocol === "sctp" ? Inet.IPPROTO_SCTP : 0, name);
    if (family === 6) {
      socket.setOption(Inet.IPPROTO_IPV6, Inet.IPV6_V6ONLY, 1);
      socket.setOption(Inet.IPPROTO_IPV6, Inet.IPV6_FREEBIND, 1);
    } else {
      socket.setOption(Inet.IPPROTO_IP, Inet.IP_FREEBIND, 1);
    }
    if (protocol === "tcp" && lenient) {
      socket.setOption(Inet.SOL_SOCKET, Inet.SO_REUSEADDR, 1);
    }
    socket.bind(
      sockaddr(family, hostIP === "" ? (family === 4 ? "0.0.0.0" : "::") : hostIP, hostPort),
    );
    return true;
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    if (EXHAUSTED.has(error.errno)) throw error;
    // Anything else says that the kernel lacks the family or protocol: then nobody listens.
    // EACCES says nothing of the port, and the tables of /proc decide.
    return error.errno !== Errno.EADDRINUSE && error.errno !== Errno.EACCES;
  }
}

/** Failures that say nothing of a port. */
const EXHAUSTED: ReadonlySet<number> = new Set([
  Errno.EMFILE,
  Errno.ENFILE,
  Errno.ENOMEM,
  Errno.ENOBUFS,
]);

/** `struct sockaddr_in` or `struct sockaddr_in6`. */
function sockaddr(family: Family, address: string, port: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(family === 4 ? 16 : 28);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, family === 4 ? Inet.AF_INET : Inet.AF_INET6, LITTLE_ENDIAN);
  view.setUint16(2, port);
  bytes.set(ipToBytes(address), family === 4 ? 4 : 8);
  return bytes;
}

/** The inode of the socket that listens on a port. */
function findSocket(port: PortMapping, family: Family): string | undefined {
  const state = LISTENING[port.protocol];
  if (state === undefined) return undefined;
  const tables = family === 4 ? [port.protocol, `${port.protocol}6`] : [`${port.protocol}6`];
  for (const table of tables) {
    for (const line of readTable(table).split("\n").slice(1)) {
      // sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode
      const fields = line.trim().split(/\s+/);
      if (fields[3] !== state) continue;
      const [address = "", number = ""] = (fields[1] ?? "").split(":");
      if (parseInt(number, 16) !== port.hostPort) continue;
      if (listensFor(parseTableAddress(address), port.hostIP, family)) return fields[9];
    }
  }
  return undefined;
}

/** /proc/net would be the main thread's namespace. */
function readTable(table: string): string {
  return readIfThere(`/proc/thread-self/net/${table}`) ?? "";
}

/** Words of four bytes in host order, in hexadecimal. */
function parseTableAddress(hex: string): string {
  const bytes = new Uint8Array(hex.length / 2);
  const view = new DataView(bytes.buffer);
  for (let index = 0; index < bytes.length; index += 4) {
    view.setUint32(index, parseInt(hex.slice(2 * index, 2 * index + 8), 16), LITTLE_ENDIAN);
  }
  return bytesToIp(bytes);
}

function listensFor(address: string, hostIP: string, family: Family): boolean {
  const listening = address.startsWith("::ffff:") ? address.slice("::ffff:".length) : address;
  if (listening === "::") return true; // of IPv4 packets too, unless IPV6_V6ONLY
  if (isIp(listening) !== family) return false;
  return isWildcard(hostIP) || isWildcard(listening) || listening === hostIP;
}

function findProcess(inode: string): { name: string; pid: number } | undefined {
  const target = `socket:[${inode}]`;
  for (const { name } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      for (const { name: fd } of Deno.readDirSync(`/proc/${name}/fd`)) {
        if (Deno.readLinkSync(`/proc/${name}/fd/${fd}`) !== target) continue;
        return { name: Deno.readTextFileSync(`/proc/${name}/comm`).trim(), pid: Number(name) };
      }
    } catch {
      // The process, or its descriptor, ended while it was looked at.
    }
  }
  return undefined;
}
