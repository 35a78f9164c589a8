/**
 * Prefixes of container ids. Links are named by them, so each belongs to one VM.
 *
 * @module
 */

import { TapkitError } from "../../errors.ts";
import { isThere, namesIn, removeIfThere } from "../../files.ts";
import type { Identity } from "./identity.ts";
import { type HostPaths, idsDir, inDirectory, recordNames, recordPath } from "./paths.ts";

/** Weave Net names links by so many characters of the container id. */
const ID_PREFIX = 7;

const pathOf = (host: HostPaths, id: string) => `${idsDir(host)}/${id.slice(0, ID_PREFIX)}`;

/**
 * Reserves the prefix of a VM's container id.
 *
 * @throws {TapkitError} when another attached VM has the same prefix
 */
export function claimId(host: HostPaths, { name, containerId: id }: Identity): void {
  const path = pathOf(host, id);
  if (inDirectory(idsDir(host), () => linkNew(name, path))) return;
  const holder = claimant(path);
  if (holder === name) return;
  if (recordNames(host).includes(holder)) {
    throw new TapkitError(
      `its container id ${id} begins like that of VM "${holder}", and links are named by it`,
      { mend: "choose another name" },
    );
  }
  removeIfThere(path);
  Deno.symlinkSync(name, path);
}

/** Creates a link. Returns whether the path was free. */
function linkNew(name: string, path: string): boolean {
  try {
    Deno.symlinkSync(name, path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists) return false;
    throw error;
  }
}

/** The VM that reserved a prefix. */
function claimant(path: string): string {
  try {
    return Deno.readLinkSync(path);
  } catch (cause) {
    throw new TapkitError(`${path} is not a link made by tapkit`, { mend: "move it away", cause });
  }
}

/** The VM whose container id has the same prefix as this whole id. */
export function nameOfId(host: HostPaths, id: string): string | undefined {
  if (!/^[0-9a-f]{64}$/.test(id)) return undefined;
  const path = pathOf(host, id);
  const holder = isThere(path) ? claimant(path) : undefined;
  return holder !== undefined && isThere(recordPath(host, holder)) ? holder : undefined;
}

/** The VMs whose container ids are none of these. */
export function namesBeside(host: HostPaths, ids: Iterable<string>): string[] {
  const known = new Set([...ids].map((id) => id.slice(0, ID_PREFIX)));
  return namesIn(idsDir(host)).filter((prefix) => !known.has(prefix))
    .map((prefix) => claimant(pathOf(host, prefix)));
}

/** Releases what {@linkcode claimId} reserved. */
export function releaseId(host: HostPaths, { name, containerId: id }: Identity): void {
  const path = pathOf(host, id);
  // A path that is not a link belongs to somebody else.
  if (isThere(path) && Deno.lstatSync(path).isSymlink && claimant(path) === name) {
    removeIfThere(path);
  }
}
