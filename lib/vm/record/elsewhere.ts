/**
 * State directories beside this one. A VM's name, and so its namespace, its container id, its rules
 * and its addresses, is one for the whole host: what another directory has a record of is that one's.
 *
 * ```
 * /var/lib/tapkit/elsewhere/DEV-INO   a link to a directory that is not the default one
 * ```
 *
 * It is there while that directory has a record. One whose directory is not there stays: what that is
 * on may not be mounted.
 *
 * @module
 */

import { describe, TapkitError } from "../../errors.ts";
import { isThere, namesIn, removeIfEmpty, removeIfThere } from "../../files.ts";

/** Where the state is unless it is said otherwise. */
export const DEFAULT_STATE_DIR = "/var/lib/tapkit";

/** A state directory, in use. */
interface StateDir {
  readonly stateDir: string;
  readonly note: (text: string) => void;
  /** Where the directories that are not the default one are known. */
  readonly registry?: string;
}

const REGISTRY = `${DEFAULT_STATE_DIR}/elsewhere`;

/** Where the directories that are not the default one are known. */
export class Registry implements Disposable {
  readonly path: string = REGISTRY;

  [Symbol.dispose](): void {}
}

/** Lets the other directories know of this one, before anything is attached by it. */
export function announce(host: StateDir): void {
  const { registry = REGISTRY } = host;
  const own = real(host.stateDir);
  if (own === undefined || own === real(DEFAULT_STATE_DIR)) return;
  const path = entryOf(registry, own);
  try {
    if (readLink(path) === own) return;
    Deno.mkdirSync(registry, { recursive: true, mode: 0o700 });
    // The directory was moved here, or another one was before that had its number.
    removeIfThere(path);
    Deno.symlinkSync(own, path);
  } catch (error) {
    host.note(
      `warning: ${registry} cannot be written (${describe(error)}): tapkit with another ` +
        `--state-dir does not know which VMs are those of ${own}`,
    );
  }
}

/** Takes back what {@linkcode announce} made, once nothing is recorded here. */
export function retire(host: StateDir): void {
  const own = real(host.stateDir);
  const { registry = REGISTRY } = host;
  if (own === undefined || !isThere(registry)) return;
  const path = entryOf(registry, own);
  if (readLink(path) === own) removeIfThere(path);
  removeIfEmpty(registry);
  if (own !== real(DEFAULT_STATE_DIR)) removeIfEmpty(DEFAULT_STATE_DIR);
}

/** The host, as seen from each of the other state directories. */
export function elsewhere<Host extends StateDir>(host: Host): Host[] {
  const own = real(host.stateDir);
  const { registry = REGISTRY } = host;
  const links = namesIn(registry).flatMap((name) => readLink(`${registry}/${name}`) ?? []);
  const others = [DEFAULT_STATE_DIR, ...links].flatMap((path) => real(path) ?? []);
  return [...new Set(others)].filter((path) => path !== own)
    .map((stateDir) => ({ ...host, stateDir }));
}

/** The state directory that has a record of a VM which this one has none of. */
export function holderElsewhere(host: StateDir, name: string): string | undefined {
  return elsewhere(host).find(({ stateDir }) => isThere(`${stateDir}/vms/${name}.json`))?.stateDir;
}

/**
 * Refuses a name that is taken in another state directory.
 *
 * @throws {TapkitError} naming the directory
 */
export function refuseElsewhere(host: StateDir, name: string): void {
  const holder = holderElsewhere(host, name);
  if (holder === undefined) return;
  throw new TapkitError(`a VM "${name}" is attached already, by the state directory ${holder}`, {
    mend: `use --state-dir ${holder}, or give it another name`,
  });
}

function entryOf(registry: string, directory: string): string {
  const { dev, ino } = Deno.statSync(directory);
  return `${registry}/${dev}-${ino}`;
}

function readLink(path: string): string | undefined {
  try {
    return Deno.readLinkSync(path);
  } catch {
    return undefined;
  }
}

function real(path: string): string | undefined {
  try {
    return Deno.realPathSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
