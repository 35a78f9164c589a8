/**
 * Requests that several of make one datagram: what {@linkcode NetlinkConnection} takes. No code.
 *
 * @module
 */

import type { Errno } from "../sys/libc.ts";
import type { NetlinkError, Subject } from "./errors.ts";

/** One request of several in a datagram. */
export interface BatchedRequest {
  readonly type: number;
  readonly flags: number;
  /** A multiple of four bytes. */
  readonly payload: Uint8Array;
}

/** A request for one object. */
export interface Query {
  readonly type: number;
  readonly payload: Uint8Array;
  readonly subject?: Subject;
  /** The kernel's errors that say that there is no such object. */
  readonly absent?: readonly (keyof typeof Errno)[];
}

/** A request for a change. */
export interface Change extends BatchedRequest {
  readonly subject?: Subject;
  /** Is called when the kernel refused it. Throws the error, unless it does not matter. */
  readonly refused?: (error: NetlinkError) => void;
}
