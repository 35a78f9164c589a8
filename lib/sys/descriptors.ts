/**
 * How many descriptors this process may have open.
 *
 * @module
 */

import { libc, syscall } from "./libc.ts";

/** asm-generic/resource.h. */
const RLIMIT_NOFILE = 7;

/**
 * Raises the soft limit to so many descriptors, or to the hard limit if that is less. Deno does so when it
 * starts, a binary that it compiled does not.
 *
 * Equivalent to: `ulimit -Sn MOST`
 *
 * @returns the soft limit after that
 * @throws {SyscallError} when the kernel refuses
 */
export function raiseDescriptorLimit(most: number): number {
  /** `struct rlimit`: the soft limit, the hard one. */
  const limits = new BigUint64Array(2);
  const bytes = new Uint8Array(limits.buffer);
  const set = (to: Uint8Array<ArrayBuffer> | null, from: Uint8Array<ArrayBuffer> | null) =>
    syscall("prlimit", "open descriptors", () => libc().prlimit(0, RLIMIT_NOFILE, to, from));
  set(null, bytes);
  const [soft = 0n, hard = 0n] = limits;
  const wanted = hard < BigInt(most) ? hard : BigInt(most);
  if (soft >= wanted) return Number(soft);
  limits[0] = wanted;
  set(bytes, null);
  return Number(wanted);
}
