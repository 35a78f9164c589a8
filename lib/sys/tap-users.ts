/**
 * Which processes have a TAP open.
 *
 * @module
 */

import { closeFd, libc, syscall } from "./libc.ts";

/** The same on every architecture (asm-generic/unistd.h). */
const SYS = { pidfd_open: 434n, pidfd_getfd: 438n } as const;
/** linux/if_tun.h: a descriptor of the namespace that the device is in. */
const TUNGETDEVNETNS = 0x54e3n;

/** A process that has a TAP open. */
export interface TapUser {
  readonly pid: number;
  /** What the kernel calls it: the beginning of its program's name. */
  readonly name: string;
}

/**
 * Finds the processes that have TAPs of a network namespace open, wherever they are themselves.
 * One that cannot be asked which namespace its TAP is in counts too.
 *
 * Looks at every descriptor of the machine, which takes a while.
 *
 * @param netnsPath leads to the namespace
 * @param taps the names of TAPs there
 */
export function tapUsers(netnsPath: string, taps: readonly string[]): TapUser[] {
  const { dev, ino } = Deno.statSync(netnsPath);
  const isThere = (path: string) => {
    const found = Deno.statSync(path);
    return found.dev === dev && found.ino === ino;
  };
  return processes().flatMap((pid) => {
    try {
      const uses = tunDescriptors(pid)
        .some(({ fd, tap }) => taps.includes(tap) && isIn(pid, fd, isThere));
      return uses ? { pid, name: Deno.readTextFileSync(`/proc/${pid}/comm`).trim() } : [];
    } catch {
      // It has just ended.
      return [];
    }
  });
}

function processes(): number[] {
  return [...Deno.readDirSync("/proc")].map(({ name }) => Number(name)).filter((pid) => pid > 0);
}

function tunDescriptors(pid: number): { fd: number; tap: string }[] {
  return [...Deno.readDirSync(`/proc/${pid}/fd`)].flatMap(({ name }) => {
    // A jail has the device under another path.
    if (!/\/tun\b/.test(Deno.readLinkSync(`/proc/${pid}/fd/${name}`))) return [];
    const [, tap] = /^iff:\s*(\S+)/m.exec(Deno.readTextFileSync(`/proc/${pid}/fdinfo/${name}`)) ??
      [];
    return tap === undefined ? [] : { fd: Number(name), tap };
  });
}

/** Whether the TAP of a descriptor of a process is in a namespace. */
function isIn(pid: number, fd: number, isThere: (path: string) => boolean): boolean {
  const open: number[] = [];
  const keep = (op: string, call: () => number | bigint) => {
    const got = syscall(op, `process ${pid}`, call);
    open.push(got);
    return got;
  };
  try {
    const process = keep(
      "pidfd_open",
      () => libc().syscall(SYS.pidfd_open, BigInt(pid), 0n, 0n, 0n, 0n),
    );
    const tap = keep(
      "pidfd_getfd",
      () => libc().syscall(SYS.pidfd_getfd, BigInt(process), BigInt(fd), 0n, 0n, 0n),
    );
    const netns = keep("TUNGETDEVNETNS", () => libc().ioctl_integer(tap, TUNGETDEVNETNS, 0n));
    return isThere(`/proc/self/fd/${netns}`);
  } catch {
    return true;
  } finally {
    for (const descriptor of open) closeFd(descriptor);
  }
}
