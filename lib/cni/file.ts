/**
 * A configuration file that appears complete and never replaces another.
 *
 * @module
 */

import { describe, TapkitError } from "../errors.ts";
import { isThere, removeIfThere, writeAll } from "../files.ts";

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
