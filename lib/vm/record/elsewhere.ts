/**
 * Other state directories of this host. They share one set of VM names, since namespaces, container
 * ids, rules and addresses are named by the VM. A VM belongs to the directory that has its record.
 *
 * ```
 * /var/lib/tapkit/elsewhere/DEV-INO   a link to a directory other than the default one
 * ```
 *
 * The link exists while that directory has a record. If the directory is missing, the link stays:
 * its file system may not be mounted.
 *
 * @module
 */

import { describe, TapkitError } from "../../errors.ts";
import { namesIn, removeIfEmpty, removeIfThere } from "../../files.ts";
import { isThere } from "../../sys/text.ts";

/** The state directory if no other is named. */
export const DEFAULT_STATE_DIR = "/var/lib/tapkit";

interface StateDir {
  readonly stateDir: string;
  readonly note: (text: string) => void;
  /** The directory with the links, in the default state directory. Only a test names another. */
  readonly registry?: string;
}

const REGISTRY = `${DEFAULT_STATE_DIR}/elsewhere`;

/** The directory with the links. */
export class Registry implements Disposable {
  readonly path: string = REGISTRY;

  [Symbol.dispose](): void {}
}

/** The state directory that every call of this host knows, whichever its own is. */
export function commonDir({ registry = REGISTRY }: StateDir): string {
  return registry.slice(0, registry.lastIndexOf("/"));
}

/** Whether a state directory is the common one, by whatever path. */
export function isCommon(host: StateDir): boolean {
  const common = commonDir(host);
  return host.stateDir === common || real(host.stateDir) === real(common);
}

/** Registers this directory, before it is used to attach anything. */
export function announce(host: StateDir): void {
  const { registry = REGISTRY, stateDir } = host;
  const own = real(stateDir);
  if (own === undefined || isCommon(host)) return;
  const path = entryOf(registry, own);
  try {
    if (readLink(path) === own) return;
    Deno.mkdirSync(registry, { recursive: true, mode: 0o700 });
    // The directory was moved, or its inode number belonged to an earlier one.
    removeIfThere(path);
    Deno.symlinkSync(own, path);
  } catch (error) {
    host.note(
      `warning: ${registry} cannot be written (${describe(error)}): tapkit with another ` +
        `--state-dir does not know the VMs of ${own}`,
    );
  }
}

/** Removes what {@linkcode announce} made, once this directory has no record. */
export function retire(host: StateDir): void {
  const own = real(host.stateDir);
  const { registry = REGISTRY } = host;
  if (own === undefined || !isThere(registry)) return;
  const path = entryOf(registry, own);
  if (readLink(path) === own) removeIfThere(path);
  removeIfEmpty(registry);
}

/** The host with each of the other state directories. */
export function elsewhere<Host extends StateDir>(host: Host): Host[] {
  const { registry = REGISTRY } = host;
  const common = commonDir(host);
  const isRegistered = isThere(registry);
  if (!isRegistered && host.stateDir === common) return [];
  const own = real(host.stateDir);
  const links = (isRegistered ? namesIn(registry) : []).flatMap((name) =>
    readLink(`${registry}/${name}`) ?? []
  );
  const others = [common, ...links].flatMap((path) => real(path) ?? []);
  return [...new Set(others)].filter((path) => path !== own)
    .map((stateDir) => ({ ...host, stateDir }));
}

/** The other state directory that has a record of a VM. */
export function holderElsewhere(host: StateDir, name: string): string | undefined {
  return elsewhere(host).find(({ stateDir }) => isThere(`${stateDir}/vms/${name}.json`))?.stateDir;
}

/**
 * Refuses a name that another state directory uses.
 *
 * @throws {TapkitError} naming the directory
 */
export function refuseElsewhere(host: StateDir, name: string): void {
  const holder = holderElsewhere(host, name);
  if (holder === undefined) return;
  throw new TapkitError(`the state directory ${holder} has a VM "${name}" already`, {
    mend: `use --state-dir ${holder}, or choose another name`,
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
