/**
 * What is kept on disk: one record a VM, written before its first effect, and the locks.
 *
 * ```
 * /var/lib/tapkit/
 *   vms/NAME.json     the record: what is printed, and how it was made
 *   addresses/ADDRESS.json   what map-port --to maps to it
 *   ids/XXXXXXX       a link to the NAME whose container id begins so
 *   elsewhere/        links to state directories that are not the default one
 *   running/NAME      held while `-- VMM` runs it
 *   locks/NAME        held while that VM is changed; gone when nobody holds it
 *   lock              held while what VMs share is changed: bridge, pool, ports, firewall
 *   serve-dhcp.lock   held by the DHCP server
 *   serve-dhcp.leases which guest asked for its address when
 *   serve-dhcp.log    what it has to say where no journal takes it
 * ```
 *
 * The directory goes with its last VM.
 *
 * @module
 */

import type { NetworkAttachment } from "../cni/plan.ts";
import { TapkitError } from "../errors.ts";
import { discardFile, isThere, readIfThere, removeIfThere, replaceFile } from "../files.ts";
import type { GuestRules } from "../firewall/model.ts";
import type { FirewallKind } from "../firewall/store.ts";
import type { PortMapping } from "../inet/ports.ts";
import type { NetnsIdentity } from "../netlink/identity.ts";
import {
  type HostPaths,
  idsDir,
  inDirectory,
  recordNames,
  recordPath,
  vmsDir,
} from "./host-paths.ts";
import { isRecord } from "./shape.ts";
import type { AttachRequest, VmRecord } from "./types.ts";

/** A mapping of map-port's. */
export interface MappedPort extends PortMapping {
  /** Host port 0 asked for it; asking once more is answered by it. */
  readonly chosen?: true;
}

/** Whose ports are: a port can be both's, and then stays until neither wants it. */
export interface PortOwners {
  readonly attach: readonly PortMapping[];
  readonly mapPort: readonly MappedPort[];
}

/** How an attachment was made, kept beside what is printed of it. */
export interface Made {
  /**
   * `attaching` from before the first effect until all are done, `removing` from before the first of
   * its removal on.
   */
  readonly phase: "attaching" | "attached" | "removing";
  /** What its rules were made by; nftables when absent. */
  readonly firewall?: FirewallKind;
  /** Whether `--netns` named the namespace: then it is not deleted. */
  readonly netnsGiven: boolean;
  /** Which one it is; absent until it is made. */
  readonly netnsIs?: NetnsIdentity;
  /** While rules change: those in the kernel may be others than {@linkcode guests} says. */
  readonly rulesInDoubt?: true;
  /** Whose the record's ports are; absent while all are attach-vm's. */
  readonly portOwners?: PortOwners;
  /** The `-- VMM` call that attached it, and takes it away when its VMM ends. */
  readonly run?: string;
  /** What was asked for, for the next attach to keep. */
  readonly request: AttachRequest;
  /** Each interface's network and the plugins that ran, for DEL and CHECK. */
  readonly networks: readonly NetworkAttachment[];
  /** What the firewall does for each interface. */
  readonly guests: readonly GuestRules[];
}

/** A record as it stands on disk. */
export interface StoredRecord extends VmRecord {
  readonly made: Made;
}

/** The backend that an attachment's rules were made by. */
export function firewallOf({ firewall = "nftables" }: Pick<Made, "firewall">): FirewallKind {
  return firewall;
}

/** Does something in the directory whose changes tell that attachments came or went. */
export function inRecordsDir<T>(host: HostPaths, act: (directory: string) => T): T {
  return inDirectory(vmsDir(host), () => act(vmsDir(host)));
}

/** When a VM's record was written, in milliseconds since the epoch. */
export function recordTime(host: HostPaths, name: string): number {
  return Deno.statSync(recordPath(host, name)).mtime?.getTime() ?? 0;
}

/** How much of a container id names a link: what Weave Net takes of it. */
const ID_PREFIX = 7;

/**
 * Reserves the first characters of a container id, which links are named by, for a VM.
 *
 * @throws {TapkitError} when another attached VM's id begins the same
 */
export function claimId(host: HostPaths, id: string, name: string): void {
  const path = `${idsDir(host)}/${id.slice(0, ID_PREFIX)}`;
  Deno.mkdirSync(idsDir(host), { recursive: true, mode: 0o700 });
  try {
    return Deno.symlinkSync(name, path);
  } catch (error) {
    if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
  }
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
  return holder !== undefined && hasRecord(host, holder) ? holder : undefined;
}

/** Gives back what {@linkcode claimId} reserved. */
export function releaseId(host: HostPaths, id: string, name: string): void {
  const path = `${idsDir(host)}/${id.slice(0, ID_PREFIX)}`;
  // What is no link of ours stays.
  if (isThere(path) && Deno.lstatSync(path).isSymlink && claimant(path) === name) {
    removeIfThere(path);
  }
}

/** Whether a VM has a record, readable or not. */
export function hasRecord(host: HostPaths, name: string): boolean {
  return isThere(recordPath(host, name));
}

/**
 * Reads a file that tapkit wrote; undefined where there is none.
 *
 * @param isOurs whether it is what a file of that name holds
 * @param mend what to do with one that is not
 * @throws {TapkitError} when the file is torn or foreign
 */
export function readJson<T>(
  path: string,
  isOurs: (value: unknown) => value is T,
  mend: string,
): T | undefined {
  const text = readIfThere(path);
  if (text === undefined) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new TapkitError(`the record ${path} is no JSON`, { mend, cause });
  }
  if (isOurs(value)) return value;
  throw new TapkitError(`the record ${path} is not one of this version of tapkit`, { mend });
}

/**
 * Reads a VM's record.
 *
 * @returns `undefined` when there is none
 * @throws {TapkitError} when the file is torn or foreign
 */
export function readRecord(host: HostPaths, name: string): StoredRecord | undefined {
  return readJson(
    recordPath(host, name),
    (value): value is StoredRecord => isRecord(value) && (value as StoredRecord).vm === name,
    `move the file away, then run attach-vm ${name} --remove`,
  );
}

/** All readable records, or those of the names; one that is not readable is passed to `host.note`. */
export function readRecords(
  host: HostPaths,
  names: readonly string[] = recordNames(host),
): StoredRecord[] {
  return readEach(host, names, (name) => readRecord(host, name));
}

/** Those of all readable records whose text holds one of some words; others are not parsed. */
export function readRecordsNaming(host: HostPaths, words: readonly string[]): StoredRecord[] {
  return readRecords(
    host,
    recordNames(host).filter((name) => {
      const text = readIfThere(recordPath(host, name)) ?? "";
      return words.some((word) => text.includes(word));
    }),
  );
}

/** What is there of these names and can be read; what cannot is passed to `host.note`. */
export function readEach<T>(
  host: HostPaths,
  names: readonly string[],
  read: (name: string) => T | undefined,
): T[] {
  return names.flatMap((name) => {
    try {
      return read(name) ?? [];
    } catch (error) {
      if (!(error instanceof TapkitError)) throw error;
      host.note(`warning: ${error.message}: ${error.mend}`);
      return [];
    }
  });
}

/**
 * Puts a record in place of the one before: whole or not at all, also after a power failure unless it
 * need not be durable.
 */
export function writeRecord(
  host: HostPaths,
  record: StoredRecord,
  options: { readonly durable?: boolean } = {},
): void {
  const text = `${JSON.stringify(record)}\n`;
  inRecordsDir(host, () => replaceFile(recordPath(host, record.vm), text, options));
}

/** Remembers of a VM that it is being removed, so that what is left of it is not brought back. */
export function markRemoving(host: HostPaths, record: StoredRecord): void {
  if (record.made.phase === "removing") return;
  writeRecord(host, { ...record, made: { ...record.made, phase: "removing" } }, { durable: false });
}

/** What is to be said of a VM that is neither attached nor gone. */
export function unfinished({ made }: Pick<StoredRecord, "made">): string {
  return `was left half ${made.phase === "removing" ? "removed" : "attached"}`;
}

/** Takes a record away, and what a crash left of the next one. */
export function deleteRecord(host: HostPaths, name: string): void {
  discardFile(recordPath(host, name));
}

/** What is printed of a record. */
export function publicRecord({ made: _made, ...record }: StoredRecord): VmRecord {
  return record;
}
