/**
 * Network namespaces: creates, names, enters and deletes them as `ip netns` does.
 *
 * `setns` and `unshare` change the calling thread, so code that runs inside a namespace must be
 * synchronous: a promise would continue after the namespace was left, and a thread that the runtime
 * starts meanwhile would stay in it.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { removeIfThere } from "../files.ts";
import {
  closeFd,
  cstr,
  failedWith,
  libc,
  O_CREAT,
  O_EXCL,
  O_RDONLY,
  openFd,
  syscall,
  tolerate,
} from "./libc.ts";

/** The directory of named namespaces, as for `ip netns`. */
const NETNS_DIR = "/run/netns";

const CLONE_NEWNET = 0x40000000; // linux/sched.h
const MS_BIND = 0x1000; // linux/mount.h
const MS_REC = 0x4000;
const MS_SHARED = 1 << 20;
const MNT_DETACH = 2;

/** The namespace of the calling thread. `/proc/self` would be that of the main thread. */
const CURRENT = "/proc/thread-self/ns/net";

/** An open network namespace. It exists at least until it is disposed of. */
export class Netns implements Disposable {
  readonly fd: number;
  /** The path by which it was opened; none for an anonymous namespace. */
  readonly path?: string;

  constructor(fd: number, path?: string) {
    this.fd = fd;
    if (path !== undefined) this.path = path;
  }

  [Symbol.dispose](): void {
    closeFd(this.fd);
  }
}

/** A function that is not asynchronous. */
type Synchronous<T> = T extends PromiseLike<unknown> ? never : T;

/**
 * Runs `fn` in a namespace, and returns to the previous one, also when `fn` throws.
 *
 * Sockets that `fn` opens, children that it starts, and files of /proc/sys/net that it writes
 * belong to that namespace. /sys/class/net does not change.
 *
 * Equivalent to: `nsenter --net=PATH …`, without a process.
 *
 * @throws {TypeError} when `fn` returns a promise
 */
export function withNetns<T>(netns: Netns, fn: () => Synchronous<T>): T {
  using origin = currentNetns();
  setns(netns);
  try {
    return refusePromise(fn());
  } finally {
    returnTo(origin);
  }
}

/** A thread that stayed in another namespace would do everything that follows there. */
function returnTo(origin: Netns): void {
  try {
    setns(origin);
  } catch {
    setns(origin);
  }
}

function refusePromise<T>(value: T): T {
  if (typeof (value as { then?: unknown } | null | undefined)?.then === "function") {
    throw new TypeError("withNetns runs synchronous functions only: this one returned a promise");
  }
  return value;
}

function setns(netns: Netns): void {
  syscall("setns", netns.path ?? "network namespace", () => libc().setns(netns.fd, CLONE_NEWNET));
}

/** Opens the namespace of the calling thread. */
export function currentNetns(): Netns {
  return new Netns(openFd(CURRENT, O_RDONLY), CURRENT);
}

/**
 * Opens a namespace by path: a file under /run/netns, or /proc/PID/ns/net.
 *
 * @throws {SyscallError} when the path does not exist
 * @throws {TapkitError} when it is not a network namespace
 */
export function openNetns(path: string): Netns {
  const netns = new Netns(openFd(path, O_RDONLY), path);
  // NS_GET_NSTYPE (linux/nsfs.h) works for namespace files only.
  const NS_GET_NSTYPE = 0xb703n;
  if (libc().ioctl_integer(netns.fd, NS_GET_NSTYPE, 0n) === CLONE_NEWNET) return netns;
  netns[Symbol.dispose]();
  throw new TapkitError(`${path} is not a network namespace`, {
    mend: "name a file that `ip netns add` made, or /proc/PID/ns/net",
  });
}

/** Creates a namespace. It exists while it is open, or while something is in it. */
export function newNetns(path?: string): Netns {
  using origin = currentNetns();
  syscall("unshare", "network namespace", () => libc().unshare(CLONE_NEWNET));
  try {
    return new Netns(openFd(CURRENT, O_RDONLY), path);
  } finally {
    setns(origin);
  }
}

/** The path of a named namespace. */
export function netnsPath(name: string): string {
  return `${NETNS_DIR}/${name}`;
}

/**
 * Gives a namespace a name that `ip netns` sees.
 *
 * Equivalent to: `touch /run/netns/NAME; mount --bind PATH /run/netns/NAME`
 *
 * @throws {SyscallError} EEXIST when the name is taken
 */
export function nameNetns(name: string, netns: Netns): void {
  shareNetnsDir();
  const path = netnsPath(name);
  closeFd(openFd(path, O_CREAT | O_EXCL | O_RDONLY, 0));
  try {
    mount(`/proc/self/fd/${netns.fd}`, path, MS_BIND);
  } catch (error) {
    deleteNamedNetns(name);
    throw error;
  }
}

/**
 * Makes /run/netns a shared mount, so that a namespace that is bound there can be seen and unbound
 * from every mount namespace that has the directory by propagation.
 */
function shareNetnsDir(): void {
  Deno.mkdirSync(NETNS_DIR, { recursive: true, mode: 0o755 });
  try {
    mount("", NETNS_DIR, MS_SHARED | MS_REC);
  } catch (error) {
    // EINVAL: not a mount point yet.
    if (!failedWith(error, "EINVAL")) throw error;
    mount(NETNS_DIR, NETNS_DIR, MS_BIND | MS_REC);
    mount("", NETNS_DIR, MS_SHARED | MS_REC);
  }
}

function mount(source: string, target: string, flags: number): void {
  const [from, to, none] = [cstr(source), cstr(target), cstr("none")];
  syscall("mount", target, () => libc().mount(from, to, none, BigInt(flags), null));
}

/**
 * Deletes a namespace's name. The namespace itself ends with its last process and socket.
 *
 * Equivalent to: `ip netns delete NAME`
 *
 * @returns whether it existed; a file that a crash left without a mount counts too
 */
export function deleteNamedNetns(name: string): boolean {
  const path = netnsPath(name);
  const target = cstr(path);
  // EINVAL: a plain file, left by a crash between creation and mount. ENOENT: nothing.
  tolerate(
    ["EINVAL", "ENOENT"],
    () => syscall("umount2", path, () => libc().umount2(target, MNT_DETACH)),
  );
  return removeIfThere(path);
}
