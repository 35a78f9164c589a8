/**
 * libc through FFI: its functions, opened at first use, and `syscall`, which calls them.
 *
 * Every call here is synchronous: errno and network namespaces belong to a thread, and a
 * nonblocking FFI call runs on another one. The exceptions are calls that wait: `epoll_wait`,
 * `flock_wait`, `usleep_wait`, `close_wait`, and `send_wait`, in which the kernel does the work of a
 * netlink request.
 *
 * @module
 */

import { SyscallError, TapkitError } from "../errors.ts";

/**
 * A comment has the C type and name of each parameter. int is i32; size_t and ssize_t are 64 bits.
 */
const SYMBOLS = {
  __errno_location: { parameters: [], result: "pointer" },
  // const char *path, int flags, mode_t mode
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  // const char *path, int mode
  access: { parameters: ["buffer", "i32"], result: "i32" },
  // int dirfd, const char *path, int mode, int flags
  faccessat: { parameters: ["i32", "buffer", "i32", "i32"], result: "i32" },
  // int fd
  close: { parameters: ["i32"], result: "i32" },
  // int fd
  close_wait: { name: "close", parameters: ["i32"], result: "i32", nonblocking: true },
  // int fd, void *buf, size_t count
  read: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  // int fd, void *buf, size_t count, off_t offset
  pread: { parameters: ["i32", "buffer", "usize", "i64"], result: "isize" },
  // int fd, const void *buf, size_t count
  write: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  // int fd, void *dirp, size_t count
  getdents64: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  // unsigned int first, unsigned int last, int flags
  close_range: { parameters: ["u32", "u32", "i32"], result: "i32" },
  // int fd, int cmd, int arg
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int fd, int operation
  flock: { parameters: ["i32", "i32"], result: "i32" },
  // int fd, int operation
  flock_wait: { name: "flock", parameters: ["i32", "i32"], result: "i32", nonblocking: true },
  // int fd, unsigned long request, void *arg
  ioctl: { parameters: ["i32", "u64", "buffer"], result: "i32" },
  // int fd, unsigned long request, unsigned long arg
  ioctl_integer: { name: "ioctl", parameters: ["i32", "u64", "u64"], result: "i32" },
  // int flags
  unshare: { parameters: ["i32"], result: "i32" },
  // int fd, int nstype
  setns: { parameters: ["i32", "i32"], result: "i32" },
  // const char *source, const char *target, const char *type, unsigned long flags, const void *data
  mount: { parameters: ["buffer", "buffer", "buffer", "u64", "buffer"], result: "i32" },
  // const char *target, int flags
  umount2: { parameters: ["buffer", "i32"], result: "i32" },
  // const char *name, unsigned int flags
  memfd_create: { parameters: ["buffer", "u32"], result: "i32" },
  // int domain, int type, int protocol
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int fd, const struct sockaddr *addr, socklen_t len
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int fd, int level, int name, const void *value, socklen_t len
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  // int fd, int level, int name, void *value, socklen_t *len
  getsockopt: { parameters: ["i32", "i32", "i32", "buffer", "buffer"], result: "i32" },
  // int fd, const void *buf, size_t len, int flags, const struct sockaddr *addr, socklen_t addrlen
  sendto: { parameters: ["i32", "buffer", "usize", "i32", "buffer", "u32"], result: "isize" },
  // int fd, const void *buf, size_t len, int flags
  send_wait: {
    name: "send",
    parameters: ["i32", "buffer", "usize", "i32"],
    result: "isize",
    nonblocking: true,
  },
  // int fd, void *buf, size_t len, int flags, struct sockaddr *addr, socklen_t *addrlen
  recvfrom: { parameters: ["i32", "buffer", "usize", "i32", "buffer", "buffer"], result: "isize" },
  // int fd, struct msghdr *msg, int flags
  recvmsg: { parameters: ["i32", "buffer", "i32"], result: "isize" },
  // int flags
  epoll_create1: { parameters: ["i32"], result: "i32" },
  // int epfd, int op, int fd, struct epoll_event *event
  epoll_ctl: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  // int epfd, struct epoll_event *events, int maxevents, int timeout_ms
  epoll_wait: {
    parameters: ["i32", "buffer", "i32", "i32"],
    result: "i32",
    nonblocking: true,
  },
  // struct pollfd *fds, nfds_t nfds, int timeout_ms
  poll: { parameters: ["buffer", "usize", "i32"], result: "i32" },
  // unsigned int initval, int flags
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  // int flags
  inotify_init1: { parameters: ["i32"], result: "i32" },
  // int fd, const char *path, uint32_t mask
  inotify_add_watch: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
  // const posix_spawnattr_t *attr, char *const argv[], char *const envp[]
  posix_spawnp: {
    parameters: ["buffer", "buffer", "buffer", "buffer", "buffer", "buffer"],
    result: "i32",
  },
  // posix_spawn_file_actions_t *actions, int fd, const char *path, int flags, mode_t mode
  posix_spawn_file_actions_addopen: {
    parameters: ["buffer", "i32", "buffer", "i32", "u32"],
    result: "i32",
  },
  // pid_t pid, int resource, const struct rlimit *new_limit, struct rlimit *old_limit
  prlimit: { parameters: ["i32", "i32", "buffer", "buffer"], result: "i32" },
  // useconds_t usec
  usleep_wait: { name: "usleep", parameters: ["u32"], result: "i32", nonblocking: true },
  // long number, long a, long b, long c, long d, long e
  syscall: { parameters: ["i64", "i64", "i64", "i64", "i64", "i64"], result: "i64" },
  // long number, long a, void *b
  syscall_buffer: { name: "syscall", parameters: ["i64", "i64", "buffer"], result: "i64" },
  // int fd
  tcgetpgrp: { parameters: ["i32"], result: "i32" },
  getpgrp: { parameters: [], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

let symbols: Symbols<typeof SYMBOLS> | undefined;
let errnoView: Deno.UnsafePointerView | undefined;

/** libc's symbols. */
export function libc(): Symbols<typeof SYMBOLS> {
  return symbols ??= openLibrary("libc.so.6", SYMBOLS, {
    mend: "tapkit needs Linux with glibc, and Deno's --allow-ffi",
  });
}

type Functions = Readonly<Record<string, Deno.ForeignFunction>>;

/** Functions of a library, by name. */
export type Symbols<T extends Functions> = Deno.DynamicLibrary<T>["symbols"];

/** This many calls cost as much extra without machine code as its compilation takes. */
const CALLS_WITHOUT_CODE = 100;

/**
 * Opens a library. Each function is looked up when it is first used.
 *
 * Deno compiles machine code for every function that it opens by name, which takes a third of a
 * millisecond. Most functions are called a few times only, and are called by pointer instead.
 *
 * @param advice the mend of the error if the library, or a function of it, is missing
 * @throws {TapkitError} when a function that is used cannot be opened
 */
export function openLibrary<T extends Functions>(
  library: string,
  functions: T,
  advice: { readonly mend: string },
): Symbols<T> {
  const open = (definitions: Deno.ForeignLibraryInterface) => {
    try {
      return Deno.dlopen(library, definitions).symbols;
    } catch (cause) {
      throw new TapkitError(`the library ${library} cannot be opened`, { ...advice, cause });
    }
  };
  const opened = {};
  for (const [name, definition] of Object.entries(functions)) {
    const define = <V>(value: V): V => {
      Object.defineProperty(opened, name, { configurable: true, value });
      return value;
    };
    const compile = () => define(open({ [name]: definition })[name] as CFunction);
    const get = (): CFunction => {
      if (definition.nonblocking === true) return compile();
      const { name: symbol = name } = definition;
      const pointer = open({ [name]: { name: symbol, type: "pointer" } })[name];
      const slow = new Deno.UnsafeFnPointer(pointer as Deno.PointerObject<never>, definition);
      let calls = 0;
      return define((...args) => {
        calls++;
        return calls > CALLS_WITHOUT_CODE ? compile()(...args) : slow.call(...args as never[]);
      });
    };
    Object.defineProperty(opened, name, { configurable: true, get });
  }
  return opened as Symbols<T>;
}

type CFunction = (...args: readonly unknown[]) => unknown;

/** The calling thread's errno. Read it immediately after a failed call. */
export function errno(): number {
  if (errnoView === undefined) {
    const location = libc().__errno_location();
    if (location === null) throw new TypeError("__errno_location returned NULL");
    errnoView = new Deno.UnsafePointerView(location);
  }
  return errnoView.getInt32();
}

/** errno values that the code tests (asm-generic/errno-base.h, errno.h). */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EBUSY: 16,
  EEXIST: 17,
  EXDEV: 18,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOTTY: 25,
  EFBIG: 27,
  ENOSPC: 28,
  EROFS: 30,
  ERANGE: 34,
  EXFULL: 54,
  ERESTART: 85,
  EMSGSIZE: 90,
  EPROTONOSUPPORT: 93,
  EOPNOTSUPP: 95,
  EAFNOSUPPORT: 97,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ENETDOWN: 100,
  ENETUNREACH: 101,
  ENOBUFS: 105,
  EHOSTUNREACH: 113,
  EALREADY: 114,
  ESTALE: 116,
} as const;

const NAMES = new Map<number, string>(Object.entries(Errno).map(([name, value]) => [value, name]));

/** The symbolic name of an error number: `"EEXIST"`, or `"errno 123"` for one not listed. */
export function errnoName(number: number): string {
  return NAMES.get(number) ?? `errno ${number}`;
}

/** Whether the kernel refused a system call, or a netlink request, for one of these reasons. */
export function failedWith(
  error: unknown,
  ...codes: readonly (keyof typeof Errno)[]
): error is SyscallError {
  return error instanceof SyscallError && codes.some((code) => code === error.code);
}

/** The result of `act`; undefined if the kernel refused for one of these reasons. */
export function tolerate<T>(codes: readonly (keyof typeof Errno)[], act: () => T): T | undefined {
  try {
    return act();
  } catch (error) {
    if (failedWith(error, ...codes)) return undefined;
    throw error;
  }
}

const MENDS: Readonly<Record<string, string>> = {
  EPERM: "run as root, or with the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN",
  EACCES: "run as root, or with the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN",
  EMFILE: "raise the limit of open files (ulimit -n)",
  ENFILE: "raise the system's limit of open files (sysctl fs.file-max)",
  ENOSPC: "free some space, or raise the limit the kernel names in its log",
  ENOMEM: "free some memory",
};

/** The mend of an error code that does not depend on the call. */
export function errnoMend(code: string): string | undefined {
  return MENDS[code];
}

/**
 * Runs a libc call that reports failure as -1. Repeats it if a signal interrupted it.
 *
 * @param op the call's C name, for the error
 * @param object the object of the call, for the error
 * @returns what the call returned
 * @throws {SyscallError} with errno
 */
export function syscall(op: string, object: string, call: () => number | bigint): number {
  return attempt(op, object, NONE, call)!;
}

const NONE: readonly number[] = [];
/** Calls on files, which do not fail with EAGAIN, and do nothing when they fail. */
const NEVER_BLOCKING: readonly string[] = ["open", "access", "faccessat", "pread"];
const MOST_DOUBTS = 3;

/** Like {@linkcode syscall}; undefined if it fails with one of the errors of `expected`. */
export function attempt(
  op: string,
  object: string,
  expected: readonly number[],
  call: () => number | bigint,
): number | undefined {
  for (let doubts = 0;;) {
    const result = Number(call());
    if (result !== -1) return result;
    const number = errno();
    if (number === Errno.EINTR) continue;
    // The runtime's locks leave EAGAIN in errno now and then before it is read here.
    if (number === Errno.EAGAIN && NEVER_BLOCKING.includes(op) && doubts++ < MOST_DOUBTS) continue;
    if (expected.includes(number)) return undefined;
    const code = errnoName(number);
    throw new SyscallError({ op, object, errno: number, code }, { mend: errnoMend(code) });
  }
}

/** A NUL-terminated C string. */
export function cstr(text: string): Uint8Array<ArrayBuffer> {
  if (text.includes("\0")) throw new TypeError(`a C string cannot hold NUL: ${text}`);
  return new TextEncoder().encode(`${text}\0`);
}

/** open(2) flags and the like (x86-64 and arm64 agree on these; fcntl.h). */
export const O_RDONLY = 0;
export const O_WRONLY = 1;
export const O_RDWR = 2;
export const O_CREAT = 0o100;
export const O_EXCL = 0o200;
export const O_CLOEXEC = 0o2000000;
export const O_NONBLOCK = 0o4000;
/** fcntl(2): two commands and the flag that they read and set. */
export const F_GETFD = 1;
export const F_SETFD = 2;
export const FD_CLOEXEC = 1;

const [W_OK, X_OK] = [2, 1]; // unistd.h

/**
 * Asserts that files can be made in a directory. Makes none.
 *
 * @throws {SyscallError} EROFS on a read-only file system, EACCES
 */
export function requireWritable(directory: string): void {
  const text = cstr(directory);
  syscall("access", directory, () => libc().access(text, W_OK | X_OK));
}

/** Opens a file close-on-exec. */
export function openFd(path: string, flags: number, mode = 0o600): number {
  const text = cstr(path);
  return syscall("open", path, () => libc().open(text, flags | O_CLOEXEC, mode));
}

/** Closes a descriptor. A failure is ignored: the work with it is done. */
export function closeFd(fd: number): void {
  libc().close(fd);
}

/** Reads once; returns how many bytes, 0 at the end. */
export function readFd(fd: number, buffer: Uint8Array<ArrayBuffer>): number {
  const size = BigInt(buffer.length);
  return syscall("read", `descriptor ${fd}`, () => libc().read(fd, buffer, size));
}

/** Writes once; returns how many bytes were written. For a TAP, that is one frame. */
export function writeFd(fd: number, bytes: Uint8Array<ArrayBuffer>): number {
  const size = BigInt(bytes.length);
  return syscall("write", `descriptor ${fd}`, () => libc().write(fd, bytes, size));
}
