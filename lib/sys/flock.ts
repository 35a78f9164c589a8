/**
 * File locks that a crash releases.
 *
 * @module
 */

import { closeFd, failedWith, libc, O_CREAT, O_RDONLY, openFd, syscall } from "./libc.ts";

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
    // Removed while it is held: whoever waits for it finds the file gone and makes a new one.
    if (this.#remove) removeFile(this.#path);
    closeFd(this.#fd);
  }
}

/** How to take a lock. */
export interface LockOptions {
  /** Whether to wait for another holder (the default), or return `undefined`. */
  readonly wait?: boolean;
  /** Whether the file goes when the lock is released. */
  readonly remove?: boolean;
}

/** How to take a lock that may have to be waited for. */
export interface WaitOptions extends Pick<LockOptions, "remove"> {
  /** Ends the waiting, whose reason is thrown. */
  readonly signal?: AbortSignal | undefined;
  /** Called, with the file's path, when it has been waited for a second. */
  readonly waits?: (path: string) => void;
}

const PATIENCE_MS = 1000;

/**
 * Takes the exclusive flock(2) of a file, which is made when it is missing.
 *
 * Equivalent to: `flock PATH …`
 *
 * @returns the lock, or `undefined` when it is held and `wait` is false
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
 * Like {@linkcode lockFile}, but lets the rest of this process go on while another holds the lock:
 * that other may be a part of this process too.
 *
 * @throws the reason of `options.signal`, when it is raised meanwhile
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
    // Fails for a signal at most, and then is tried again.
    const taking = libc().flock_wait(fd, LOCK_EX);
    interrupted ??= raised(signal, stack);
    if (await Promise.race([taking, interrupted]) === "raised") {
      // The thread that waits is not to be had back before it has the lock.
      taking.then(() => closeFd(fd));
      continue;
    }
    if (await taking === 0 && isStillAt(fd, path)) return new Lock(fd, path, remove);
    closeFd(fd);
  }
}

/** @param stack takes the listener away: the signal may be one of many calls. */
function raised(signal: AbortSignal | undefined, stack: DisposableStack): Promise<"raised"> {
  const { promise, resolve } = Promise.withResolvers<"raised">();
  const listener = () => resolve("raised");
  signal?.addEventListener("abort", listener);
  stack.defer(() => signal?.removeEventListener("abort", listener));
  return promise;
}

/** Who holds the flock(2) of a file, as `"attach-vm web (pid 7)"`; undefined where it is not to be seen. */
export function lockHolder(path: string): string | undefined {
  try {
    const inode = Deno.statSync(path).ino;
    const [, pid = ""] = new RegExp(`FLOCK +\\S+ +WRITE (\\d+) \\S+:${inode} `)
      .exec(Deno.readTextFileSync("/proc/locks")) ?? [];
    if (pid === "" || pid === "0") return undefined;
    return `${commandOf(Deno.readTextFileSync(`/proc/${pid}/cmdline`))} (pid ${pid})`;
  } catch {
    // It has let go meanwhile.
    return undefined;
  }
}

/** A process's words, without what runs a script and how. */
function commandOf(cmdline: string): string {
  const words = cmdline.split("\0").filter((word) => word !== "");
  const script = Math.max(0, words.findIndex((word) => word.endsWith(".ts")));
  const name = words[script]?.replace(/^.*\//, "").replace(/\.ts$/, "") ?? "a process";
  return [name, ...words.slice(script + 1)].join(" ").slice(0, MAX_COMMAND);
}

const MAX_COMMAND = 80;

/** Whether the path still names the locked file, not one made after its holder removed it. */
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
    // What was done under the lock is done; a file that stays is taken by the next to come.
  }
}
