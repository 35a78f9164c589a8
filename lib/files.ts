/**
 * Files that may be there or not, and files that change as a whole.
 *
 * @module
 */

import { describe, TapkitError } from "./errors.ts";

/** A path that says the same in whatever directory it is read. */
export function absolutePath(path: string): string {
  if (path.startsWith("/")) return path;
  const directory = Deno.cwd().replace(/\/$/, "");
  return `${directory}/${path.replace(/^(\.\/+)+/, "")}`.replace(/\/\.$/, "");
}

/** Whether a path names anything at all, a dangling link too. */
export function isThere(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (isAbsence(error)) return false;
    throw error;
  }
}

/** Whether a path names a file, by way of links too. */
export function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** What a file holds; undefined where there is none. */
export function readIfThere(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** What is in a directory, by name; nothing where there is none. */
export function namesIn(directory: string): string[] {
  try {
    return [...Deno.readDirSync(directory)].map(({ name }) => name);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error;
  }
}

/** Deletes a file that may be there; returns whether it was. */
export function removeIfThere(path: string): boolean {
  try {
    Deno.removeSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Deletes a directory unless something is in it, or it is gone already. A link to one stays. */
export function removeIfEmpty(directory: string): void {
  try {
    if (!Deno.lstatSync(directory).isSymlink) Deno.removeSync(directory);
  } catch {
    // Another process may fill it, or delete it, at any moment.
  }
}

/** Writes all of the bytes: one write may take a part of them. */
export function writeAll(file: Deno.FsFile, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
}

/**
 * Appends to a file that is not to grow without end: beyond `limit` bytes the older half goes.
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
 * Puts a text, for root alone, in place of what a file held: whole or not at all, also after a power
 * failure unless it need not be durable.
 *
 * @throws {Deno.errors.NotFound} when there is no such directory
 * @throws {TapkitError} for whatever else keeps it from being written
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
      mend: "see that its file system has room, and is not read-only",
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
    // What kept it from being written may keep it from being deleted; the next one replaces it.
  }
}

/** Deletes a file that may be there, and what a crash left of the one to replace it. */
export function discardFile(path: string): void {
  removeIfThere(temporaryOf(path));
  removeIfThere(path);
}

function isAbsence(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory;
}
