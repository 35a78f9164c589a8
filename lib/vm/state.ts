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

import { describe, InputError, TapkitError } from "../errors.ts";
import {
  absolutePath,
  discardFile,
  isThere,
  readIfThere,
  removeIfEmpty,
  removeIfThere,
  replaceFile,
} from "../files.ts";
import type { NetworkAttachment } from "../cni/plan.ts";
import type { NetnsIdentity } from "../netlink/identity.ts";
import type { GuestRules } from "../firewall/model.ts";
import type { PortMapping } from "../inet/ports.ts";
import type { FirewallKind } from "../firewall/store.ts";
import { type Lock, lockFile, lockFileAsync, lockHolder, type WaitOptions } from "../sys/flock.ts";
import { DEFAULT_STATE_DIR, retire } from "./elsewhere.ts";
import { isRecord } from "./shape.ts";
import type { AttachRequest, HostOptions, VmRecord } from "./types.ts";

/** {@linkcode HostOptions} with every default filled in. */
export interface HostPaths {
  readonly stateDir: string;
  readonly confDir: string;
  readonly binDirs: readonly string[];
  /** How long an executed plugin may take. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  readonly note: (text: string) => void;
  readonly detail: (text: string) => void;
}

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

/** The host's directories: from the options, the environment, or the defaults. */
export function hostPaths(options: HostOptions): HostPaths {
  const cniPath = Deno.env.get("CNI_PATH")?.split(":").filter((directory) => directory !== "");
  const binDirs = options.binDirs ?? (cniPath?.length ? cniPath : ["/opt/cni/bin", "/usr/lib/cni"]);
  return {
    stateDir: absolutePath(
      options.stateDir ?? (Deno.env.get("TAPKIT_STATE_DIR") || DEFAULT_STATE_DIR),
    ),
    confDir: absolutePath(options.confDir ?? (Deno.env.get("NETCONFPATH") || "/etc/cni/net.d")),
    binDirs: binDirs.map(absolutePath),
    ...pluginTimeout(options),
    ...options.signal === undefined ? {} : { signal: options.signal },
    note: options.note ?? (() => {}),
    detail: options.detail ?? (() => {}),
  };
}

function pluginTimeout({ pluginTimeout }: HostOptions): { timeoutMs?: number } {
  const seconds = pluginTimeout ?? Number(Deno.env.get("TAPKIT_PLUGIN_TIMEOUT"));
  return seconds > 0 ? { timeoutMs: seconds * 1000 } : {};
}

/**
 * Checks a VM's name.
 *
 * @throws {InputError} unless it has 1–63 of `a-z A-Z 0-9 . _ -` and starts with a letter or digit
 */
export function validateName(name: string): void {
  if (/^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$/.test(name)) return;
  throw new InputError(`VM name "${name}" is malformed`, {
    mend: "use 1 to 63 of a-z A-Z 0-9 . _ - and start with a letter or a digit",
  });
}

/** The CNI container id of a VM: the SHA-256 of its name, in hexadecimal. */
export async function containerId(name: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(name));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The name of a VM's own namespace: `ip netns exec tapkit-web …`. */
export function netnsName(name: string): string {
  return `tapkit-${name}`;
}

const DHCP_LOCK = "serve-dhcp.lock";
const vmsDir = (host: HostPaths) => `${host.stateDir}/vms`;
const locksDir = (host: HostPaths) => `${host.stateDir}/locks`;
const idsDir = (host: HostPaths) => `${host.stateDir}/ids`;
/** Where the locks of those are that run a VMM. */
export const runningDir = (host: HostPaths): string => `${host.stateDir}/running`;
/** Where the records of addresses are, that map-port --to maps to. */
export const addressesDir = (host: HostPaths): string => `${host.stateDir}/addresses`;
const recordPath = (host: HostPaths, name: string) => `${vmsDir(host)}/${name}.json`;

/** Does something in the directory whose changes tell that attachments came or went. */
export function inRecordsDir<T>(host: HostPaths, act: (directory: string) => T): T {
  return inDirectory(vmsDir(host), () => act(vmsDir(host)));
}

/** Waits for the sole right to change one VM. Taken before the host's lock, never after. */
export async function lockVm(host: HostPaths, name: string): Promise<Lock> {
  const waits = (path: string) => noteHolder(host, `VM "${name}"`, path);
  return await lockIn(locksDir(host), name, { remove: true, signal: host.signal, waits });
}

/** Waits for the sole right to change what VMs share. */
export async function lockHost(host: HostPaths): Promise<Lock> {
  const waits = (path: string) => noteHolder(host, "what the VMs of this host share", path);
  return await lockIn(host.stateDir, "lock", { signal: host.signal, waits });
}

/** Says what is waited for, and for whom. */
function noteHolder({ note }: HostPaths, what: string, path: string): void {
  const holder = lockHolder(path);
  note(
    `waiting for ${what}, ${holder === undefined ? "which is being changed" : `held by ${holder}`}`,
  );
}

/** The DHCP server's lock, or `undefined` when one is running. */
export function lockDhcpServer(host: HostPaths): Lock | undefined {
  return inDirectory(
    host.stateDir,
    () => lockFile(`${host.stateDir}/${DHCP_LOCK}`, { remove: true, wait: false }),
  );
}

/** What the DHCP server keeps beside its lock. */
export function dhcpFile(host: HostPaths, name: "log" | "leases"): string {
  return `${host.stateDir}/serve-dhcp.${name}`;
}

/** Whether a DHCP server runs. */
export function isDhcpServed(host: HostPaths): boolean {
  const path = `${host.stateDir}/${DHCP_LOCK}`;
  if (!isThere(path)) return false;
  try {
    using free = lockFile(path, { wait: false });
    return free === undefined;
  } catch (error) {
    // It went at this moment, or is no file.
    if (error instanceof TapkitError) return false;
    throw error;
  }
}

/** When a VM's record was written, in milliseconds since the epoch. */
export function recordTime(host: HostPaths, name: string): number {
  return Deno.statSync(recordPath(host, name)).mtime?.getTime() ?? 0;
}

/** Takes a lock in a directory that another process may be removing at this moment. */
async function lockIn(
  directory: string,
  name: string,
  options: WaitOptions,
): Promise<Lock> {
  for (let attempt = 1;; attempt++) {
    try {
      makeDirectory(directory);
      return await lockFileAsync(`${directory}/${name}`, options);
    } catch (error) {
      if (!isVanished(error) || attempt === ATTEMPTS) throw unusable(error);
    }
  }
}

/** How often a directory that goes at this moment is made anew. */
const ATTEMPTS = 100;

/** Does something in a directory that another process may be removing at this moment. */
export function inDirectory<T>(directory: string, act: () => T): T {
  for (let attempt = 1;; attempt++) {
    try {
      makeDirectory(directory);
      return act();
    } catch (error) {
      if (!isVanished(error) || attempt === ATTEMPTS) throw unusable(error);
    }
  }
}

/** What a state directory cannot be used for, where that is why something failed. */
function unusable(error: unknown): unknown {
  const code = String((error as { code?: string }).code);
  if (!["ENOTDIR", "EROFS", "EACCES", "EPERM", "ENOENT", "EEXIST", "ELOOP"].includes(code)) {
    return error;
  }
  const reason = describe(error);
  return new TapkitError(
    `the state directory cannot be used: ${reason}${reason.includes(code) ? "" : ` (${code})`}`,
    { mend: "name another one with --state-dir or TAPKIT_STATE_DIR", cause: error },
  );
}

function makeDirectory(directory: string): void {
  Deno.mkdirSync(directory, { recursive: true, mode: 0o700 });
}

/** Whether an error says that a directory went before it was used. */
function isVanished(error: unknown): boolean {
  // Deno's mkdir says EEXIST of a directory that went while it was looked at.
  return ["ENOENT", "EEXIST"].includes((error as { code?: string }).code ?? "");
}

/**
 * Takes away what is left of the state when no record is: called with no lock held.
 * A directory in use stays; whoever comes at this moment makes it anew, and who has the host's lock
 * now tidies it after that.
 */
export function tidyState(host: HostPaths): void {
  if (isUsed(host)) return;
  {
    using lock = inDirectory(
      host.stateDir,
      () => lockFile(`${host.stateDir}/lock`, { wait: false }),
    );
    if (lock === undefined) return;
    if (!isUsed(host)) {
      retire(host);
      // Left by a process that was killed, unless a server holds it.
      if (isThere(`${host.stateDir}/${DHCP_LOCK}`)) lockDhcpServer(host)?.[Symbol.dispose]();
      for (const name of ["log", "leases"] as const) removeIfThere(dhcpFile(host, name));
      // A version before this one wrote it.
      removeIfThere(`${host.stateDir}/generation`);
      removeIfThere(`${host.stateDir}/cni/checked.json`);
      removeIfEmpty(`${host.stateDir}/cni`);
      removeIfThere(`${host.stateDir}/lock`);
      // Files are made in these with the lock held.
      removeIfEmpty(idsDir(host));
      removeIfEmpty(vmsDir(host));
      removeIfEmpty(addressesDir(host));
    }
  }
  sweepLocks(host);
  removeIfEmpty(locksDir(host));
  removeIfEmpty(runningDir(host));
  removeIfEmpty(host.stateDir);
}

/** Takes away the VMs' locks that nobody holds: processes that were killed left them. */
export function sweepLocks(host: HostPaths): void {
  if (!isThere(locksDir(host))) return;
  for (const { name } of Deno.readDirSync(locksDir(host))) {
    inDirectory(
      locksDir(host),
      () => lockFile(`${locksDir(host)}/${name}`, { remove: true, wait: false }),
    )?.[Symbol.dispose]();
  }
}

function isUsed(host: HostPaths): boolean {
  return recordNames(host).length + addressNames(host).length > 0;
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

/** The names of all VMs that have a record, in order. */
export function recordNames(host: HostPaths): string[] {
  return jsonNames(vmsDir(host));
}

/** Whether a VM has a record, readable or not. */
export function hasRecord(host: HostPaths, name: string): boolean {
  return isThere(recordPath(host, name));
}

/** The addresses, not attached by tapkit, that ports are mapped to, in order. */
export function addressNames(host: HostPaths): string[] {
  return jsonNames(addressesDir(host));
}

function jsonNames(directory: string): string[] {
  try {
    return [...Deno.readDirSync(directory)]
      .filter(({ name }) => name.endsWith(".json"))
      .map(({ name }) => name.slice(0, -".json".length))
      .sort();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw unusable(error);
  }
}

const ADDRESS_OWNER = "to@";

/** The owner tag of an address that tapkit did not attach; no VM's name has an @. */
export function addressOwner(address: string): string {
  return `${ADDRESS_OWNER}${address}`;
}

/** The address that an owner tag is of. */
export function addressOf(owner: string): string | undefined {
  return owner.startsWith(ADDRESS_OWNER) ? owner.slice(ADDRESS_OWNER.length) : undefined;
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
