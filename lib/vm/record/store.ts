/**
 * The records on disk: the attachments of VMs, and of addresses that ports lead to. A record is
 * written before the first effect.
 *
 * ```
 * /var/lib/tapkit/
 *   vms/NAME.json     {"version":2,"is":"attached","at":{"spec":…,"facts":…}}
 *                     {"version":2,"is":"changing","from":…,"to":…}
 *   addresses/ADDRESS.json   the same for an address that map-port --to maps to
 *   bridges/LINK.json        the same for a bridge that other firewalls let pass as a whole
 *   ids/XXXXXXX       a link to the NAME whose container id begins like this
 *   elsewhere/        links to state directories other than the default one
 *   running/NAME      locked while `-- VMM` runs the VM
 *   locks/NAME        locked while the VM is changed; deleted when it is released
 *   lock              locked while something that VMs share is changed
 *   serve-dhcp.lock   locked by the DHCP server
 *   serve-dhcp.leases which guest asked for its address, and when
 *   serve-dhcp.log    the DHCP server's messages, where there is no journal
 * ```
 *
 * The directory is deleted with the last record.
 *
 * @module
 */

import { describe, TapkitError } from "../../errors.ts";
import { discardFile, isThere, replaceFile } from "../../files.ts";
import { readText } from "../../sys/text.ts";
import type { AddressAttachment, BridgeAttachment } from "./address.ts";
import type { Attachment, Both } from "./attachment.ts";
import {
  addressesDir,
  addressNames,
  bridgeNames,
  bridgesDir,
  type HostPaths,
  inDirectory,
  recordNames,
  recordPath,
  vmsDir,
} from "./paths.ts";
import {
  isAddress1,
  isAddressAttachment,
  isAttachment,
  isBridgeAttachment,
  isRecord1,
  RECORD_VERSION,
} from "./shape.ts";
import { type Address1, fromAddress1, fromRecord1, type Record1 } from "./version-1.ts";

/** How one kind of attachment is stored. */
interface Store<B> {
  readonly directory: (host: HostPaths) => string;
  readonly names: (host: HostPaths) => string[];
  /** Whether a value is a record of the present format. */
  readonly isCurrent: (value: unknown) => boolean;
  /** The attachment in a record of version 1; undefined for any other value. */
  readonly convert: (value: unknown) => Attachment<B> | undefined;
  readonly nameOf: (side: B) => string;
  /** What to do about a file that cannot be read. */
  readonly mend: (name: string) => string;
}

const VMS: Store<Both> = {
  directory: vmsDir,
  names: recordNames,
  isCurrent: isAttachment,
  convert: (value) => isRecord1(value) ? fromRecord1(value as Record1) : undefined,
  nameOf: ({ spec }) => spec.id.name,
  mend: (name) => `move the file away, then run attach-vm ${name} --remove`,
};

const ADDRESSES: Store<AddressAttachment> = {
  directory: addressesDir,
  names: addressNames,
  isCurrent: isAddressAttachment,
  convert: (value) => isAddress1(value) ? fromAddress1(value as Address1) : undefined,
  nameOf: ({ to }) => to,
  mend: (to) => `move the file away, then map the ports of ${to} again`,
};

const BRIDGES: Store<BridgeAttachment> = {
  directory: bridgesDir,
  names: bridgeNames,
  isCurrent: isBridgeAttachment,
  convert: () => undefined,
  nameOf: ({ link }) => link,
  mend: () => "move the file away, then run setup-weave again",
};

/** One side of an attachment: the old one if there is one, else the new one. */
export function sideOf<B>(attachment: Attachment<B>): B | undefined {
  return sidesOf(attachment)[0];
}

/** The sides of an attachment. The kernel may have parts of each. */
export function sidesOf<B>(attachment: Attachment<B>): B[] {
  if (attachment.is === "attached") return [attachment.at];
  return [attachment.from, attachment.to].filter((side) => side !== undefined);
}

/** The attached VM or address; undefined if it was left half attached or half removed. */
export function attachedSide<B>(attachment: Attachment<B> | undefined): B | undefined {
  if (attachment === undefined || attachment.is === "attached") return attachment?.at;
  return attachment.to === undefined ? undefined : attachment.from;
}

/** How an interrupted change left a VM: `"was left half removed"`. */
export function unfinished({ from, to }: Attachment<unknown> & { is: "changing" }): string {
  const done = to === undefined ? "removed" : from === undefined ? "attached" : "changed";
  return `was left half ${done}`;
}

/**
 * Reads the attachment of a VM.
 *
 * @returns undefined when there is none
 * @throws {TapkitError} when the file is torn or foreign
 */
export function readVm(host: HostPaths, name: string): Attachment | undefined {
  return read(VMS, host, name);
}

/** Reads all attachments, or those of the names. Passes what cannot be read to `host.note`. */
export function readVms(host: HostPaths, names?: readonly string[]): Attachment[] {
  return readAll(VMS, host, names);
}

/** Reads the attachments whose text contains one of the words. The others are not parsed. */
export function readVmsNaming(host: HostPaths, words: readonly string[]): Attachment[] {
  const names = recordNames(host).filter((name) => {
    const text = readText(recordPath(host, name)) ?? "";
    return words.some((word) => text.includes(word));
  });
  return readVms(host, names);
}

/** Replaces the record of a VM atomically; by default also over a power failure. */
export function writeVm(host: HostPaths, name: string, to: Attachment, options?: Durable): void {
  write(VMS, host, name, to, options);
}

/** Deletes the record of a VM, and the next one that a crash left beside it. */
export function deleteVm(host: HostPaths, name: string): void {
  discardFile(recordPath(host, name));
}

/** Whether a VM has a record, readable or not. */
export function hasVm(host: HostPaths, name: string): boolean {
  return isThere(recordPath(host, name));
}

/** When the record of a VM was written, in milliseconds since the epoch. */
export function recordTime(host: HostPaths, name: string): number {
  return Deno.statSync(recordPath(host, name)).mtime?.getTime() ?? 0;
}

/** Calls `act` with the directory that changes when attachments come and go. */
export function inRecordsDir<T>(host: HostPaths, act: (directory: string) => T): T {
  return inDirectory(vmsDir(host), () => act(vmsDir(host)));
}

/** Reads what is mapped to an address; undefined if nothing is. */
export function readAddress(
  host: HostPaths,
  to: string,
): Attachment<AddressAttachment> | undefined {
  return read(ADDRESSES, host, to);
}

/** Reads what is mapped to addresses. Passes what cannot be read to `host.note`. */
export function readAddresses(host: HostPaths): Attachment<AddressAttachment>[] {
  return readAll(ADDRESSES, host);
}

/** Replaces the record of an address. */
export function writeAddress(
  host: HostPaths,
  to: string,
  attachment: Attachment<AddressAttachment>,
): void {
  write(ADDRESSES, host, to, attachment);
}

/** Deletes the record of an address. */
export function deleteAddress(host: HostPaths, to: string): void {
  discardFile(pathOf(ADDRESSES, host, to));
}

/** Reads what is recorded of a bridge; undefined if nothing is. */
export function readBridge(
  host: HostPaths,
  link: string,
): Attachment<BridgeAttachment> | undefined {
  return read(BRIDGES, host, link);
}

/** Replaces the record of a bridge. */
export function writeBridge(
  host: HostPaths,
  link: string,
  attachment: Attachment<BridgeAttachment>,
): void {
  write(BRIDGES, host, link, attachment);
}

/** Deletes the record of a bridge. */
export function deleteBridge(host: HostPaths, link: string): void {
  discardFile(pathOf(BRIDGES, host, link));
}

interface Durable {
  readonly durable?: boolean;
}

function pathOf<B>({ directory }: Store<B>, host: HostPaths, name: string): string {
  return `${directory(host)}/${name}.json`;
}

function write<B>(
  store: Store<B>,
  host: HostPaths,
  name: string,
  attachment: Attachment<B>,
  options?: Durable,
): void {
  const text = `${JSON.stringify({ version: RECORD_VERSION, ...attachment })}\n`;
  const path = pathOf(store, host, name);
  inDirectory(store.directory(host), () => replaceFile(path, text, options));
}

function read<B>(store: Store<B>, host: HostPaths, name: string): Attachment<B> | undefined {
  const path = pathOf(store, host, name);
  const text = readText(path);
  if (text === undefined) return undefined;
  const mend = store.mend(name);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new TapkitError(`the record ${path} is not JSON`, { mend, cause });
  }
  const attachment = parse(store, value);
  const side = attachment && sideOf(attachment);
  if (side !== undefined && store.nameOf(side) === name) return attachment;
  throw new TapkitError(`the record ${path} is not one of this version of tapkit`, { mend });
}

function parse<B>({ isCurrent, convert }: Store<B>, value: unknown): Attachment<B> | undefined {
  if (!isCurrent(value)) return convert(value);
  const { version: _, ...attachment } = value as { version: number } & Attachment<B>;
  return attachment;
}

function readAll<B>(
  store: Store<B>,
  host: HostPaths,
  names: readonly string[] = store.names(host),
): Attachment<B>[] {
  return names.flatMap((name) => {
    try {
      return read(store, host, name) ?? [];
    } catch (error) {
      if (!(error instanceof TapkitError)) throw error;
      host.note(`warning: ${describe(error)}`);
      return [];
    }
  });
}
