/**
 * Starting a process as another user.
 *
 * libc changes the user of all threads. The system calls change the user of the calling thread
 * only, and a process that this thread starts inherits it.
 *
 * @module
 */

import { libc, syscall } from "./libc.ts";

/** The user and groups of a process. */
export interface Credentials {
  readonly uid: number;
  readonly gid: number;
  /** Supplementary groups. */
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
 * Runs `fn` as another user, without root's capabilities, and changes back. A program that `fn`
 * starts cannot change back: execve(2) replaces the saved user ID.
 *
 * @throws {SyscallError} EPERM when this process may not become another user
 */
export function asUser<T>({ uid, gid, groups }: Credentials, fn: () => T): T {
  const call = (op: keyof typeof SYS, ...[a = 0n, b = 0n, c = 0n]: bigint[]) =>
    syscall(op, `user ${uid}`, () => libc().syscall(SYS[op], a, b, c, 0n, 0n));
  const setGroups = (list: readonly number[]) => {
    const bytes = new Uint8Array(new Uint32Array(list).buffer);
    const call = () => libc().syscall_buffer(SYS.setgroups, BigInt(list.length), bytes);
    return syscall("setgroups", `user ${uid}`, call);
  };
  const [ourUid, ourGid, ourGroups] = [BigInt(Deno.uid()!), BigInt(Deno.gid()!), currentGroups()];
  using back = new DisposableStack();
  call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
  setGroups(groups);
  back.defer(() => setGroups(ourGroups));
  call("setresgid", BigInt(gid), BigInt(gid), ourGid);
  back.defer(() => call("setresgid", ourGid, ourGid, ourGid));
  call("setresuid", BigInt(uid), BigInt(uid), ourUid);
  back.defer(() => call("setresuid", ourUid, ourUid, ourUid));
  return fn();
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
