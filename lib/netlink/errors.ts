/**
 * Errors of netlink: a request that the kernel refused, and malformed bytes.
 *
 * @module
 */

import { SyscallError, TapkitError } from "../errors.ts";
import { errnoMend, errnoName } from "../sys/libc.ts";

/** Bytes that are not a netlink message, or not the expected one. */
export class DecodeError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "DecodeError";
  /** The position of the error in the bytes. */
  readonly offset: number;

  /** An error whose message has the offset, in bytes. */
  constructor(problem: string, offset: number) {
    super(`malformed netlink message at byte ${offset}: ${problem}`);
    this.offset = offset;
  }
}

/** What a request is about, for its error. */
export interface Subject {
  /** The kernel's name of the message if it is not of NETLINK_ROUTE: `"IPCTNL_MSG_CT_DELETE"`. */
  readonly op?: string;
  /** The verb: `"create"`. */
  readonly action?: string;
  /** The object: `link "ignite0"`. A function is called only after a failure. */
  readonly object?: string | (() => string);
  /** The kernel option that is missing if the error is EOPNOTSUPP or ENOENT: `"CONFIG_BRIDGE"`. */
  readonly feature?: string;
}

/** A refused request. */
export interface NetlinkFailure extends Subject {
  readonly op: string;
  readonly object?: string;
  readonly errno: number;
  readonly extAck?: string;
  readonly offset?: number;
}

/** Texts of strerror(3) for the most frequent errors. */
const REASONS: Readonly<Record<string, string>> = {
  EPERM: "operation not permitted",
  ENOENT: "no such object",
  ESRCH: "no such object",
  EINTR: "the tables changed while they were read",
  EACCES: "permission denied",
  EBUSY: "busy",
  EEXIST: "already exists",
  ENODEV: "no such device",
  EINVAL: "invalid argument",
  ENOSPC: "no space left",
  ERANGE: "value out of range",
  EOPNOTSUPP: "not supported",
  EAFNOSUPPORT: "address family not supported",
  EADDRINUSE: "address in use",
  EADDRNOTAVAIL: "no such address",
  ENETDOWN: "network is down",
  ENETUNREACH: "network is unreachable",
  EHOSTUNREACH: "no route to host",
  ENOBUFS: "no buffer space left",
};

const MISSING_FEATURE: ReadonlySet<string> = new Set(["EOPNOTSUPP", "ENOENT", "EAFNOSUPPORT"]);

/** The kernel refused a netlink request. */
export class NetlinkError extends SyscallError {
  /** The class's name. */
  override readonly name: string = "NetlinkError";
  /** The kernel's message (extended acknowledgement). */
  readonly extAck?: string;
  /** Offset of the error in the request, including its 16-byte header. */
  readonly offset?: number;
  /** The kernel option that is likely missing: `"CONFIG_BRIDGE"`. */
  readonly missingFeature?: string;

  /** An error whose message and mend are made of the failure's fields. */
  constructor(failure: NetlinkFailure) {
    const { op, errno, extAck, offset, feature } = failure;
    const code = errnoName(errno);
    const object = failure.object ?? "netlink request";
    const reason = extAck ?? REASONS[code];
    const missing = MISSING_FEATURE.has(code) ? feature : undefined;
    super({ op, object, errno, code }, {
      message: `cannot ${failure.action ?? op} ${object}: ` +
        (reason === undefined ? code : `${reason} (${code})`),
      mend: missing !== undefined
        ? `use a kernel with ${missing}`
        : code === "EPERM"
        ? "run as root, or with the capability CAP_NET_ADMIN"
        : code === "EEXIST"
        ? undefined
        // rtnetlink answers this for a link whose IPv6 is off. Without permission it is EPERM.
        : code === "EACCES"
        ? "turn IPv6 on for that link: sysctl -w net.ipv6.conf.LINK.disable_ipv6=0"
        : errnoMend(code),
    });
    if (extAck !== undefined) this.extAck = extAck;
    if (offset !== undefined) this.offset = offset;
    if (missing !== undefined) this.missingFeature = missing;
  }
}
