/**
 * Starting a process as another user.
 *
 * libc changes the user of all threads; the system calls change that of the calling one, which a
 * process that it starts then has.
 *
 * @module
 */

import { libc, syscall } from "./libc.ts";

/** As whom a process runs. */
export interface Credentials {
  readonly uid: number;
  readonly gid: number;
  /** Groups beside that one. */
  readonly groups: readonly number[];
}

/** asm/unistd_64.h, asm-generic/unistd.h. */
const SYS = {
  x86_64: { getgroups: 115n, setgroups: 116n, setresuid: 117n, setresgid: 119n, prctl: 157n },
  aarch64: { getgroups: 158n, setgroups: 159n, setresuid: 147n, setresgid: 149n, prctl: 167n },
}[Deno.build.arch];

/** linux/prctl.h. */
const PR_CAP_AMBIENT = 47n;
const PR_CAP_AMBIENT_CLEAR_ALL = 4n;
/** linux/limits.h. */
const NGROUPS_MAX = 65_536;

/**
 * Runs `fn` as another user, who has none of root's capabilities then, and comes back. A program
 * that it starts cannot come back: execve(2) takes what is kept for that.
 */
export function asUser<T>({ uid, gid, groups }: Credentials, fn: () => T): T {
  const ours = currentGroups();
  const call = (op: keyof typeof SYS, ...[a = 0n, b = 0n, c = 0n]: bigint[]) =>
    syscall(op, `user ${uid}`, () => libc().syscall(SYS[op], a, b, c, 0n, 0n));
  const setGroups = (list: readonly number[]) => {
    const bytes = new Uint32Array(list);
    return syscall(
      "setgroups",
      `user ${uid}`,
      () => libc().syscall_buffer(SYS.setgroups, BigInt(list.length), new Uint8Array(bytes.buffer)),
    );
  };
  try {
    call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
    setGroups(groups);
    call("setresgid", BigInt(gid), BigInt(gid), 0n);
    call("setresuid", BigInt(uid), BigInt(uid), 0n);
    return fn();
  } finally {
    call("setresuid", 0n, 0n, 0n);
    call("setresgid", 0n, 0n, 0n);
    setGroups(ours);
  }
}

function currentGroups(): number[] {
  const list = new Uint32Array(NGROUPS_MAX);
  const count = syscall(
    "getgroups",
    "this process",
    () => libc().syscall_buffer(SYS.getgroups, BigInt(list.length), new Uint8Array(list.buffer)),
  );
  return [...list.subarray(0, count)];
}
