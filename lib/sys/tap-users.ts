/**
 * Finds the processes that have a TAP open.
 *
 * @module
 */

import { closeFd, libc, syscall } from "./libc.ts";
import { Netns, openNetns } from "./netns.ts";

/** The same on every architecture (asm-generic/unistd.h). */
const SYS = { pidfd_open: 434n, pidfd_getfd: 438n } as const;
/** linux/if_tun.h: returns a descriptor of the device's namespace. */
const TUNGETDEVNETNS = 0x54e3n;

/** A process that has a TAP open. */
export interface TapUser {
  readonly pid: number;
  /** Its name in the kernel: the first characters of the program's name. */
  readonly name: string;
}

/**
 * Finds the processes that have TAPs of a network namespace open. The processes may be in others.
 *
 * Looks at every descriptor on the machine, which takes time.
 *
 * @param isMeant whether a TAP with that name counts
 * @param isThat whether a namespace is the wanted one
 */
export function tapUsers(
  isMeant: (tap: string) => boolean,
  isThat: (netns: Netns) => boolean,
): TapUser[] {
  return processes().flatMap((pid) => {
    try {
      const uses = tunDescriptors(pid).some(({ fd, tap }) => {
        if (!isMeant(tap)) return false;
        using netns = netnsOf(pid, fd);
        return isThat(netns);
      });
      return uses ? { pid, name: Deno.readTextFileSync(`/proc/${pid}/comm`).trim() } : [];
    } catch {
      // The process has ended.
      return [];
    }
  });
}

function processes(): number[] {
  return [...Deno.readDirSync("/proc")].map(({ name }) => Number(name)).filter((pid) => pid > 0);
}

function tunDescriptors(pid: number): { fd: number; tap: string }[] {
  return [...Deno.readDirSync(`/proc/${pid}/fd`)].flatMap(({ name }) => {
    // In a jail, the device has another path.
    if (!/\/tun\b/.test(Deno.readLinkSync(`/proc/${pid}/fd/${name}`))) return [];
    const [, tap] = /^iff:\s*(\S+)/m.exec(Deno.readTextFileSync(`/proc/${pid}/fdinfo/${name}`)) ??
      [];
    return tap === undefined ? [] : { fd: Number(name), tap };
  });
}

/** The namespace of a TAP that a process has open; the process's own if that cannot be read. */
function netnsOf(pid: number, fd: number): Netns {
  const open: number[] = [];
  const keep = (op: string, call: () => number | bigint) => {
    const got = syscall(op, `process ${pid}`, call);
    open.push(got);
    return BigInt(got);
  };
  const { pidfd_open, pidfd_getfd } = SYS;
  try {
    const process = keep(
      "pidfd_open",
      () => libc().syscall(pidfd_open, BigInt(pid), 0n, 0n, 0n, 0n),
    );
    const tap = keep(
      "pidfd_getfd",
      () => libc().syscall(pidfd_getfd, process, BigInt(fd), 0n, 0n, 0n),
    );
    const get = () => libc().ioctl_integer(Number(tap), TUNGETDEVNETNS, 0n);
    return new Netns(syscall("TUNGETDEVNETNS", `process ${pid}`, get));
  } catch {
    // Linux before 5.6, or access is denied.
    return openNetns(`/proc/${pid}/ns/net`);
  } finally {
    for (const descriptor of open) closeFd(descriptor);
  }
}
