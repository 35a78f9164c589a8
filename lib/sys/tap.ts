/**
 * TAP devices.
 *
 * @module
 */

import { type SyscallError, TapkitError } from "../errors.ts";
import { closeFd, failedWith, libc, O_NONBLOCK, O_RDWR, openFd, syscall } from "./libc.ts";
import { writeSysctl } from "./sysctl.ts";

/** linux/if_tun.h. */
const Tun = {
  TUNSETIFF: 0x400454can,
  TUNSETPERSIST: 0x400454cbn,
  TUNSETOWNER: 0x400454ccn,
  TUNSETGROUP: 0x400454cen,
  IFF_TAP: 0x0002,
  IFF_NO_PI: 0x1000,
  IFF_MULTI_QUEUE: 0x0100,
  IFF_VNET_HDR: 0x4000,
  IFF_TUN_EXCL: 0x8000,
} as const;

const DEVICE = "/dev/net/tun";
/** The largest MTU of a TAP, in bytes: 65535 minus an Ethernet header (drivers/net/tun.c). */
export const MAX_TAP_MTU = 65521;
/** The most queues of a TAP: MAX_TAP_QUEUES (drivers/net/tun.c). */
export const MAX_TAP_QUEUES = 256;
const IFNAMSIZ = 16;
/** Size of `struct ifreq` (linux/if.h). */
const IFREQ_SIZE = 40;

/** How to create a TAP. */
export interface TapOptions {
  /** Its name, 1 to 15 bytes. */
  readonly name: string;
  /** The uid that may open it, besides root. */
  readonly owner?: number;
  /** The gid that may open it, besides root. */
  readonly group?: number;
  /** Whether it has several queues. */
  readonly multiQueue?: boolean;
  /** Whether the namespace's own stack does not use IPv6 on it. That of who opens it passes all the same. */
  readonly quiet?: boolean;
}

/**
 * Creates a persistent TAP in the current network namespace.
 *
 * Equivalent to: `ip tuntap add dev NAME mode tap [user UID] [group GID] [multi_queue]`, and
 * `sysctl net.ipv6.conf.NAME.disable_ipv6=1` for a quiet one
 *
 * @throws {SyscallError} EBUSY when a link with that name exists
 */
export function createTap(options: TapOptions): void {
  const fd = openTap(options, Tun.IFF_TUN_EXCL);
  try {
    const set = (op: string, request: bigint, value: number) =>
      syscall(op, `TAP "${options.name}"`, () => libc().ioctl_integer(fd, request, BigInt(value)));
    if (options.owner !== undefined) set("TUNSETOWNER", Tun.TUNSETOWNER, options.owner);
    if (options.group !== undefined) set("TUNSETGROUP", Tun.TUNSETGROUP, options.group);
    if (options.quiet) writeSysctl(`net/ipv6/conf/${options.name}/disable_ipv6`, "1");
    set("TUNSETPERSIST", Tun.TUNSETPERSIST, 1);
  } finally {
    closeFd(fd);
  }
}

/**
 * Opens a queue of a TAP in the current network namespace, as a VMM does. If no TAP has that name,
 * creates one that exists until the descriptor is closed.
 *
 * @param header whether frames have a `virtio_net_hdr`; without it they have no header
 * @param extraFlags IFF_TUN_EXCL refuses a TAP that exists
 * @returns a nonblocking, close-on-exec descriptor
 */
export function openTap(
  { name, multiQueue = false, header = false }: Pick<TapOptions, "name" | "multiQueue"> & {
    readonly header?: boolean;
  },
  extraFlags = 0,
): number {
  const bytes = new TextEncoder().encode(name);
  if (bytes.length === 0 || bytes.length >= IFNAMSIZ) {
    throw new RangeError(`the name of a TAP has 1 to 15 bytes: "${name}"`);
  }
  const ifreq = new Uint8Array(IFREQ_SIZE);
  ifreq.set(bytes);
  const flags = Tun.IFF_TAP | Tun.IFF_NO_PI | extraFlags |
    (multiQueue ? Tun.IFF_MULTI_QUEUE : 0) | (header ? Tun.IFF_VNET_HDR : 0);
  new DataView(ifreq.buffer).setUint16(IFNAMSIZ, flags, true);
  const fd = openDevice();
  try {
    syscall("TUNSETIFF", `TAP "${name}"`, () => libc().ioctl(fd, Tun.TUNSETIFF, ifreq));
    return fd;
  } catch (error) {
    closeFd(fd);
    throw failedWith(error, "ENOTTY") ? noDevice(error) : error;
  }
}

function openDevice(): number {
  try {
    return openFd(DEVICE, O_RDWR | O_NONBLOCK);
  } catch (error) {
    if (failedWith(error, "EISDIR")) throw noDevice(error);
    if (!failedWith(error, "ENOENT", "ENODEV", "ENXIO")) throw error;
    throw new TapkitError(`${DEVICE} cannot be opened: ${error.code}`, {
      mend: "load the kernel's TUN/TAP driver (modprobe tun)",
      cause: error,
    });
  }
}

function noDevice(cause: SyscallError): TapkitError {
  return new TapkitError(`${DEVICE} is not the kernel's TUN/TAP device: ${cause.code}`, {
    mend: `delete ${DEVICE}, and create it: mknod ${DEVICE} c 10 200`,
    cause,
  });
}
