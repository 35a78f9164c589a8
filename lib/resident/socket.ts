/**
 * The file of the resident's socket.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { absolutePath } from "../caller.ts";
import { removeIfEmpty, removeIfThere } from "../files.ts";
import { lockFile } from "../sys/flock.ts";

/** The longest path of a Unix socket, in bytes (linux/un.h, without the final NUL). */
const LONGEST = 107;

/** A path on which this process alone may listen, until it is disposed of. */
export class SocketFile implements Disposable {
  readonly path: string;
  readonly #stack: DisposableStack;

  private constructor(path: string, stack: DisposableStack) {
    this.path = path;
    this.#stack = stack;
  }

  /**
   * Takes a path. What a process that was killed left there goes.
   *
   * @throws {TapkitError} when another process answers there, or something else is there
   */
  static async take(name: string): Promise<SocketFile> {
    const path = absolutePath(name);
    if (new TextEncoder().encode(path).length > LONGEST) {
      throw new TapkitError(`the path of the socket ${path} is longer than ${LONGEST} bytes`, {
        mend: "name a shorter one with --socket",
      });
    }
    using stack = new DisposableStack();
    const directory = path.slice(0, path.lastIndexOf("/")) || "/";
    Deno.mkdirSync(directory, { recursive: true, mode: 0o755 });
    stack.defer(() => removeIfEmpty(directory));
    const lock = lockFile(`${path}.lock`, { remove: true, wait: false });
    if (lock === undefined || await isAnswered(path)) {
      throw new TapkitError(`another process answers at ${path}`, {
        mend: "end that process first, or name another socket with --socket",
      });
    }
    stack.use(lock);
    removeSocket(path);
    stack.defer(() => removeSocket(path));
    return new SocketFile(path, stack.move());
  }

  /** Listens by `listen`, in such a way that only root may connect from the first moment on. */
  bind<T>(listen: () => T): T {
    const umask = Deno.umask(0o177);
    try {
      return listen();
    } finally {
      Deno.umask(umask);
    }
  }

  [Symbol.dispose](): void {
    this.#stack[Symbol.dispose]();
  }
}

async function isAnswered(path: string): Promise<boolean> {
  try {
    (await Deno.connect({ transport: "unix", path })).close();
    return true;
  } catch {
    return false;
  }
}

function removeSocket(path: string): void {
  try {
    if (!Deno.lstatSync(path).isSocket) {
      throw new TapkitError(`${path} is not a socket`, {
        mend: "name another path with --socket, or move it away",
      });
    }
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    throw error;
  }
  removeIfThere(path);
}
