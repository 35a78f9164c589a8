/**
 * Files that may not exist, and files that are replaced as a whole.
 *
 * @module
 */

import { describe, TapkitError } from "./errors.ts";

/** Whether a path exists. A dangling link exists. */
export function isThere(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (isAbsence(error)) return false;
    throw error;
  }
}

/** Whether a path is a file, or a link to one. */
export function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** The text of a file; undefined if it does not exist. */
export function readIfThere(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** The names in a directory; none if it does not exist. */
export function namesIn(directory: string): string[] {
  try {
    return [...Deno.readDirSync(directory)].map(({ name }) => name);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error;
  }
}

/** Deletes a file. Returns whether it existed. */
export function removeIfThere(path: string): boolean {
  try {
    Deno.removeSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Deletes a directory if it exists and is empty. What is none stays. */
export function removeIfEmpty(directory: string): void {
  try {
    if (Deno.lstatSync(directory).isDirectory) Deno.removeSync(directory);
  } catch {
    // Another process may fill or delete it at any moment.
  }
}

/** Writes all of the bytes: one write may be partial. */
export function writeAll(file: Deno.FsFile, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
}

/**
 * Appends to a file of bounded size: beyond `limit` bytes, the older half is dropped.
 *
 * @throws {Deno.errors.NotFound} when there is no such directory
 */
export function appendBounded(path: string, text: string, limit: number): void {
  const old = readIfThere(path) ?? "";
  if (old.length + text.length <= limit) {
    return Deno.writeTextFileSync(path, text, { append: true, mode: 0o600 });
  }
  const half = old.slice(-Math.floor(limit / 2));
  Deno.writeTextFileSync(path, half.slice(half.indexOf("\n") + 1) + text, { mode: 0o600 });
}

const temporaryOf = (path: string) => `${path}.tmp`;

/**
 * Replaces the text of a file atomically; only root can read it. If `durable`, that holds over a
 * power failure too.
 *
 * @throws {Deno.errors.NotFound} when there is no such directory
 * @throws {TapkitError} when it cannot be written for another reason
 */
export function replaceFile(
  path: string,
  text: string,
  { durable = true }: { readonly durable?: boolean } = {},
): void {
  try {
    writeAside(path, text, durable);
  } catch (cause) {
    discardQuietly(temporaryOf(path));
    if (cause instanceof Deno.errors.NotFound) throw cause;
    throw new TapkitError(`${path} cannot be written: ${describe(cause)}`, {
      mend: "check that its file system has free space, and is not read-only",
      cause,
    });
  }
}

function writeAside(path: string, text: string, durable: boolean): void {
  const temporary = temporaryOf(path);
  {
    using file = Deno.openSync(temporary, {
      write: true,
      create: true,
      truncate: true,
      mode: 0o600,
    });
    writeAll(file, new TextEncoder().encode(text));
    if (durable) file.syncDataSync();
  }
  Deno.renameSync(temporary, path);
}

function discardQuietly(path: string): void {
  try {
    removeIfThere(path);
  } catch {
    // It may be impossible to delete for the same reason. The next write replaces it.
  }
}

/** Deletes a file, and a temporary file that a crash left beside it. */
export function discardFile(path: string): void {
  removeIfThere(temporaryOf(path));
  removeIfThere(path);
}

/**
 * Writes a new file: whole, synced, and under its name only if the name is free at that moment.
 *
 * @returns false when the name is taken
 */
export function writeFileOnce(path: string, text: string): boolean {
  const cut = path.lastIndexOf("/");
  const directory = path.slice(0, cut) || "/";
  const name = path.slice(cut + 1);
  try {
    Deno.mkdirSync(directory, { recursive: true, mode: 0o755 });
    sweepTemporaries(directory, name);
    const temporary = `${directory}/.${name}.${Deno.pid}`;
    try {
      using file = Deno.openSync(temporary, { write: true, create: true, truncate: true });
      Deno.chmodSync(temporary, 0o644);
      writeAll(file, new TextEncoder().encode(text));
      file.syncSync();
      // Unlike rename(2), link(2) takes no other file's place.
      Deno.linkSync(temporary, path);
    } finally {
      removeIfThere(temporary);
    }
    using opened = Deno.openSync(directory);
    opened.syncSync();
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists && isThere(path)) return false;
    throw new TapkitError(`cannot write ${path}: ${describe(error)}`, {
      mend: "run as root, and check the directory and its free space",
      cause: error,
    });
  }
}

/** The names in a directory; none if it cannot be read. */
function readableNames(directory: string): string[] {
  try {
    return [...Deno.readDirSync(directory)].map(({ name }) => name);
  } catch {
    return [];
  }
}

/** Removes temporary files of a name that this process, or one that was killed, left. */
export function sweepTemporaries(directory: string, name: string): void {
  for (const found of readableNames(directory)) {
    if (!found.startsWith(`.${name}.`)) continue;
    const pid = found.slice(name.length + 2);
    const ended = pid === String(Deno.pid) || !isThere(`/proc/${pid}/stat`);
    if (/^\d+$/.test(pid) && ended) removeIfThere(`${directory}/${found}`);
  }
}

function isAbsence(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory;
}
