/**
 * The first characters of container ids, which links are named by: each belongs to one VM.
 *
 * @module
 */

import { TapkitError } from "../../errors.ts";
import { isThere, removeIfThere } from "../../files.ts";
import type { Identity } from "./identity.ts";
import { type HostPaths, idsDir, inDirectory, recordNames, recordPath } from "./paths.ts";

/** How much of a container id names a link: what Weave Net takes of it. */
const ID_PREFIX = 7;

/**
 * Reserves the first characters of a container id, which links are named by, for a VM.
 *
 * @throws {TapkitError} when another attached VM's id begins the same
 */
export function claimId(host: HostPaths, { name, containerId: id }: Identity): void {
  const path = `${idsDir(host)}/${id.slice(0, ID_PREFIX)}`;
  if (inDirectory(idsDir(host), () => linkNew(name, path))) return;
  const holder = claimant(path);
  if (holder === name) return;
  if (recordNames(host).includes(holder)) {
    throw new TapkitError(
      `its container id ${id} begins as that of VM "${holder}", and links are named by that`,
      { mend: "give it another name" },
    );
  }
  removeIfThere(path);
  Deno.symlinkSync(name, path);
}

/** Makes a link; returns whether nothing was there. */
function linkNew(name: string, path: string): boolean {
  try {
    Deno.symlinkSync(name, path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists) return false;
    throw error;
  }
}

/** The VM that a reserved beginning is linked to. */
function claimant(path: string): string {
  try {
    return Deno.readLinkSync(path);
  } catch (cause) {
    throw new TapkitError(`${path} is not a link of tapkit's`, { mend: "move it away", cause });
  }
}

/** The VM that a whole container id is of, as far as its beginning tells. */
export function nameOfId(host: HostPaths, id: string): string | undefined {
  if (!/^[0-9a-f]{64}$/.test(id)) return undefined;
  const path = `${idsDir(host)}/${id.slice(0, ID_PREFIX)}`;
  const holder = isThere(path) ? claimant(path) : undefined;
  return holder !== undefined && isThere(recordPath(host, holder)) ? holder : undefined;
}

/** Gives back what {@linkcode claimId} reserved. */
export function releaseId(host: HostPaths, { name, containerId: id }: Identity): void {
  const path = `${idsDir(host)}/${id.slice(0, ID_PREFIX)}`;
  // What is no link of ours stays.
  if (isThere(path) && Deno.lstatSync(path).isSymlink && claimant(path) === name) {
    removeIfThere(path);
  }
}
