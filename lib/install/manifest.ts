/**
 * The files of an installation: written all or none, compared, and removed again.
 *
 * @module
 */

import { dirname } from "@std/path";
import { describe, TapkitError } from "../errors.ts";
import { isThere, readIfThere, removeIfEmpty, removeIfThere } from "../files.ts";
import { UndoStack } from "../undo.ts";

/** A file to write: a text, what is copied or made, or a link. */
export type InstalledFile =
  & { readonly path: string }
  & (
    | { readonly text: string; readonly mode: number }
    | { readonly copy: string; readonly mode: number }
    | { readonly make: string; readonly mode: number }
    | { readonly link: string }
  );

/** How tapkit was installed: what {@linkcode Manifest} says for later. */
export interface Installation {
  readonly version: string;
  /** What the commands run. */
  readonly how: "run" | "bundle" | "binary";
  /** The Deno that they run by, unless they are a binary. */
  readonly deno?: string;
  readonly systemd: boolean;
}

/** The files of an installation: `--uninstall` deletes these and nothing else. */
export interface Manifest {
  /** Absent in what earlier versions wrote. */
  readonly installation?: Installation;
  /** The SHA-256 of each file, or the target of a link after `-> `, by path. */
  readonly files: Readonly<Record<string, string>>;
  /** The directories that were created, outermost first. */
  readonly directories: readonly string[];
  /** Directories of which everything is removed: Deno's cache for the bundle. */
  readonly caches?: readonly string[];
  /** What was being written when this was. */
  readonly pending?: readonly string[];
}

/** How {@linkcode install} works. */
export interface InstallOptions {
  readonly manifest: string;
  readonly installation: Installation;
  readonly caches: readonly string[];
  /** Makes a file at `path`, for those with `make`. */
  readonly make: (name: string, path: string) => Promise<void>;
  readonly note: (text: string) => void;
}

/** Files are written under these names first. */
const asNew = (path: string) => `${path}.new`;

/**
 * Writes the files, and removes those of an earlier installation that are not among them. A failure
 * leaves all as it was.
 *
 * @returns the paths whose content is another than before
 * @throws {TapkitError} when a file is there that was not written by tapkit
 */
export async function install(
  wanted: readonly InstalledFile[],
  { manifest, installation, caches, make, note }: InstallOptions,
): Promise<string[]> {
  const before = readManifest(manifest);
  for (const { path } of wanted) {
    if (!isThere(path) || before.files[path] !== undefined) continue;
    throw new TapkitError(`${path} exists and was not written by tapkit`, {
      mend: "move it, or choose another --prefix",
    });
  }
  const paths = [manifest, ...wanted.map(({ path }) => path), ...caches];
  const directories = [...new Set([...before.directories, ...paths.flatMap(missingAbove)])];
  const undo = new UndoStack();
  const keep = (kept: Partial<Manifest>) => {
    const whole = { installation, files: before.files, directories, caches, ...kept };
    writeManifest(manifest, whole);
  };
  try {
    undo.push("directories", () => directories.toReversed().forEach(removeIfEmpty));
    makeDirectory(dirname(manifest), directories);
    const old = readIfThere(manifest);
    undo.push(manifest, () => {
      if (old === undefined) removeIfThere(manifest);
      else Deno.writeTextFileSync(manifest, old);
    });
    // A process that is killed from here on leaves what --uninstall finds.
    keep({ ...before, directories, pending: wanted.map(({ path }) => path) });
    const files: Record<string, string> = {};
    for (const file of wanted) {
      undo.push(file.path, () => removeIfThere(asNew(file.path)));
      makeDirectory(dirname(file.path), directories);
      files[file.path] = await stage(file, make);
    }
    const written: string[] = [];
    for (const { path } of wanted) {
      if (await contentOf(path) !== files[path]) written.push(path);
    }
    keep({ files: { ...before.files, ...files }, caches: [...before.caches ?? [], ...caches] });
    undo.commit();
    for (const { path } of wanted) Deno.renameSync(asNew(path), path);
    const gone = Object.entries(before.files).filter(([path]) => files[path] === undefined);
    await removeFiles(gone, note);
    const unused = (before.caches ?? []).filter((cache) => !caches.includes(cache));
    for (const cache of unused) await removeTree(cache);
    directories.toReversed().forEach(removeIfEmpty);
    keep({ files, directories: directories.filter(isThere) });
    return written;
  } catch (error) {
    throw await undo.fail(error);
  }
}

/** Removes the files of an installation, and the directories that it made. Returns the files. */
export async function uninstall(
  manifest: string,
  note: (text: string) => void,
): Promise<string[]> {
  const { files, directories, caches = [], pending = [] } = readManifest(manifest);
  for (const path of pending) removeIfThere(asNew(path));
  const removed = await removeFiles(Object.entries(files), note);
  for (const cache of caches) await removeTree(cache);
  removeIfThere(manifest);
  directories.toReversed().forEach(removeIfEmpty);
  return removed;
}

/** What differs between an installation and what is there, in sentences. */
export async function differences(
  manifest: string,
  plan: (installation: Installation) => readonly InstalledFile[],
  version: string,
): Promise<string[]> {
  const { installation, files } = readManifest(manifest);
  if (installation === undefined) return [`nothing is installed by this version: no ${manifest}`];
  const problems: string[] = [];
  if (installation.version !== version) {
    problems.push(`version ${installation.version} is installed, and this is ${version}`);
  }
  const wanted = plan(installation);
  for (const [path, content] of Object.entries(files)) {
    const found = await contentOf(path);
    if (found === undefined) problems.push(`${path} is missing`);
    else if (found !== content) problems.push(`${path} was changed since it was written`);
  }
  for (const file of wanted) {
    const { path } = file;
    const content = files[path];
    if (content === undefined) problems.push(`${path} is not installed`);
    else if (
      "text" in file && await sha256(new TextEncoder().encode(file.text)) !== content ||
      "link" in file && `-> ${file.link}` !== content
    ) problems.push(`${path} is another one in this version`);
    else if ("mode" in file && isThere(path) && modeOf(path) !== file.mode) {
      problems.push(`${path} has mode ${modeOf(path).toString(8)}, not ${file.mode.toString(8)}`);
    }
  }
  const known = new Set(wanted.map(({ path }) => path));
  const rest = Object.keys(files).filter((path) => !known.has(path));
  return [...problems, ...rest.map((path) => `${path} is not of this version`)];
}

/** Reads the list of an installation; it is empty where there is none. */
export function readManifest(path: string): Manifest {
  const text = readIfThere(path);
  if (text === undefined) return { files: {}, directories: [] };
  try {
    const { files, directories, ...rest } = JSON.parse(text);
    return { ...rest, files: { ...files }, directories: [...directories] };
  } catch (cause) {
    throw new TapkitError(`${path} cannot be parsed`, {
      mend: "delete it, and the commands that it should list, by hand",
      cause,
    });
  }
}

function writeManifest(path: string, manifest: Manifest): void {
  Deno.writeTextFileSync(asNew(path), `${JSON.stringify(manifest, null, 2)}\n`);
  Deno.chmodSync(asNew(path), 0o644);
  Deno.renameSync(asNew(path), path);
}

/** Makes a file under its new name: what has the name now may be running. Returns its content. */
async function stage(file: InstalledFile, make: InstallOptions["make"]): Promise<string> {
  const path = asNew(file.path);
  removeIfThere(path);
  if ("link" in file) {
    Deno.symlinkSync(file.link, path);
    return `-> ${file.link}`;
  }
  if ("text" in file) Deno.writeTextFileSync(path, file.text);
  else if ("copy" in file) copyFile(file.copy, path);
  else await make(file.make, path);
  Deno.chmodSync(path, file.mode);
  return (await contentOf(path))!;
}

function copyFile(from: string, to: string): void {
  try {
    Deno.copyFileSync(from, to);
  } catch (cause) {
    throw new TapkitError(`${from} cannot be copied: ${describe(cause)}`, {
      mend: "check that it is a file, and that there is space",
      cause,
    });
  }
}

async function removeFiles(
  files: readonly (readonly [path: string, content: string])[],
  note: (text: string) => void,
): Promise<string[]> {
  const removed: string[] = [];
  for (const [path, content] of files) {
    const found = await contentOf(path);
    if (found === undefined) continue;
    if (found === content) {
      Deno.removeSync(path);
      removed.push(path);
    } else note(`${path} was changed since it was written, and stays`);
  }
  return removed;
}

/** What the manifest says of a file; undefined where there is none. */
async function contentOf(path: string): Promise<string | undefined> {
  if (!isThere(path)) return undefined;
  const info = Deno.lstatSync(path);
  if (info.isSymlink) return `-> ${Deno.readLinkSync(path)}`;
  return info.isFile ? await sha256(await Deno.readFile(path)) : "not a file";
}

function modeOf(path: string): number {
  return (Deno.statSync(path).mode ?? 0) & 0o7777;
}

/** The directories above a path that do not exist, outermost first. */
function missingAbove(path: string): string[] {
  const directory = dirname(path);
  return isThere(directory) ? [] : [...missingAbove(directory), directory];
}

function makeDirectory(directory: string, missing: readonly string[]): void {
  for (const each of missing) {
    if (!`${directory}/`.startsWith(`${each}/`) || isThere(each)) continue;
    Deno.mkdirSync(each);
    Deno.chmodSync(each, 0o755);
  }
}

async function removeTree(path: string): Promise<void> {
  if (isThere(path)) await Deno.remove(path, { recursive: true });
}

/** In hexadecimal. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}
