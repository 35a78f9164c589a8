/**
 * File locks that a crash releases.
 *
 * @module
 */

import { closeFd, failedWith, libc, O_CREAT, O_RDONLY, openFd, syscall } from "./libc.ts";
import { isDying } from "./process-stat.ts";

const LOCK_EX = 2; // asm-generic/fcntl.h
const LOCK_NB = 4;

/** A held lock; disposing of it releases it. */
export class Lock implements Disposable {
  readonly #fd: number;
  readonly #path: string;
  readonly #remove: boolean;

  constructor(fd: number, path: string, remove: boolean) {
    this.#fd = fd;
    this.#path = path;
    this.#remove = remove;
  }

  [Symbol.dispose](): void {
    // Removed while it is held: a process that waits finds that the file is gone, and creates it.
    if (this.#remove) removeFile(this.#path);
    closeFd(this.#fd);
  }
}

/** How to take a lock. */
export interface LockOptions {
  /** Whether to wait while another holds it (the default), or to return `undefined`. */
  readonly wait?: boolean;
  /** Whether to delete the file when the lock is released. */
  readonly remove?: boolean;
}

/** How to wait for a lock. */
export interface WaitOptions extends Pick<LockOptions, "remove"> {
  /** Aborted, it ends the wait; its reason is thrown. */
  readonly signal?: AbortSignal | undefined;
  /** Called with the file's path after a wait of one second. */
  readonly waits?: (path: string) => void;
}

const PATIENCE_MS = 1000;

/**
 * Takes the exclusive flock(2) of a file, which is created if it is missing.
 *
 * Equivalent to: `flock PATH …`
 *
 * @returns the lock, or `undefined` if another holds it and `wait` is false
 */
export function lockFile(path: string, options: LockOptions & { wait: false }): Lock | undefined;
export function lockFile(path: string, options?: LockOptions): Lock;
export function lockFile(path: string, options: LockOptions = {}): Lock | undefined {
  const operation = options.wait === false ? LOCK_EX | LOCK_NB : LOCK_EX;
  while (true) {
    const fd = openFd(path, O_RDONLY | O_CREAT, 0o600);
    try {
      syscall("flock", path, () => libc().flock(fd, operation));
    } catch (error) {
      closeFd(fd);
      if (failedWith(error, "EAGAIN")) return undefined;
      throw error;
    }
    if (isStillAt(fd, path)) return new Lock(fd, path, options.remove ?? false);
    closeFd(fd);
  }
}

/**
 * Like {@linkcode lockFile}, but does not block the rest of this process while it waits. The holder
 * may be in this process too.
 *
 * @throws the reason of `options.signal`, if it is aborted meanwhile
 */
export async function lockFileAsync(path: string, options: WaitOptions = {}): Promise<Lock> {
  const { remove = false, signal, waits } = options;
  using stack = new DisposableStack();
  let interrupted: Promise<"raised"> | undefined;
  for (let attempt = 1;; attempt++) {
    signal?.throwIfAborted();
    const lock = lockFile(path, { remove, wait: false });
    if (lock !== undefined) return lock;
    if (attempt === 1) {
      const timer = setTimeout(() => waits?.(path), PATIENCE_MS);
      stack.defer(() => clearTimeout(timer));
    }
    const fd = openFd(path, O_RDONLY | O_CREAT, 0o600);
    // The only possible failure is a signal. Then it is tried again.
    const taking = libc().flock_wait(fd, LOCK_EX);
    interrupted ??= raised(signal, stack);
    if (await Promise.race([taking, interrupted]) === "raised") {
      // The waiting thread cannot be stopped before it has the lock.
      taking.then(() => closeFd(fd));
      continue;
    }
    if (await taking === 0 && isStillAt(fd, path)) return new Lock(fd, path, remove);
    closeFd(fd);
  }
}

/** @param stack removes the listener, because many calls may share the signal */
function raised(signal: AbortSignal | undefined, stack: DisposableStack): Promise<"raised"> {
  const { promise, resolve } = Promise.withResolvers<"raised">();
  const listener = () => resolve("raised");
  signal?.addEventListener("abort", listener);
  stack.defer(() => signal?.removeEventListener("abort", listener));
  return promise;
}

/** The holder of a file's flock(2): `"attach-vm web (pid 7)"`; undefined if it cannot be seen. */
export function lockHolder(path: string): string | undefined {
  try {
    const pid = holderOf(path);
    if (pid === undefined) return undefined;
    return `${commandOf(Deno.readTextFileSync(`/proc/${pid}/cmdline`))} (pid ${pid})`;
  } catch {
    // It has released the lock.
    return undefined;
  }
}

/**
 * Whether the holder of a file's flock(2) was killed: it has the lock until the kernel has taken it
 * down, which may take a while.
 */
export function isHolderDying(path: string): boolean {
  try {
    const pid = holderOf(path);
    return pid !== undefined && isDying(Number(pid));
  } catch {
    // It has released the lock.
    return true;
  }
}

/** @returns undefined if it cannot be seen */
function holderOf(path: string): string | undefined {
  const inode = Deno.statSync(path).ino;
  const [, pid = "0"] = new RegExp(`FLOCK +\\S+ +WRITE (\\d+) \\S+:${inode} `)
    .exec(Deno.readTextFileSync("/proc/locks")) ?? [];
  return pid === "0" ? undefined : pid;
}

/** A process's command line, without the interpreter of a script and its flags. */
function commandOf(cmdline: string): string {
  const words = cmdline.split("\0").filter((word) => word !== "");
  const script = Math.max(0, words.findIndex((word) => word.endsWith(".ts")));
  const name = words[script]?.replace(/^.*\//, "").replace(/\.ts$/, "") ?? "a process";
  return [name, ...words.slice(script + 1)].join(" ").slice(0, MAX_COMMAND);
}

const MAX_COMMAND = 80;

/** Whether the path is still the locked file, not one created after its holder removed it. */
function isStillAt(fd: number, path: string): boolean {
  try {
    return Deno.statSync(path).ino === Deno.statSync(`/proc/self/fd/${fd}`).ino;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

function removeFile(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // The work under the lock is done. If the file stays, the next process uses it.
  }
}
