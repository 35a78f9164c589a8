/**
 * What is kept on disk of VMs and of addresses that ports lead to: their attachments, each written
 * before its first effect.
 *
 * ```
 * /var/lib/tapkit/
 *   vms/NAME.json     {"version":2,"is":"attached","at":{"spec":…,"facts":…}}
 *                     {"version":2,"is":"changing","from":…,"to":…}
 *   addresses/ADDRESS.json   the same of an address that map-port --to maps to
 *   ids/XXXXXXX       a link to the NAME whose container id begins so
 *   elsewhere/        links to state directories that are not the default one
 *   running/NAME      held while `-- VMM` runs it
 *   locks/NAME        held while that VM is changed; gone when nobody holds it
 *   locks/@THING      held while something that VMs share is changed: see locks.ts
 *   serve-dhcp.lock   held by the DHCP server
 *   serve-dhcp.leases which guest asked for its address when
 *   serve-dhcp.log    what it has to say where no journal takes it
 * ```
 *
 * The directory goes with its last VM.
 *
 * @module
 */

import { describe, TapkitError } from "../../errors.ts";
import { discardFile, isThere, readIfThere, replaceFile } from "../../files.ts";
import type { AddressAttachment } from "./address.ts";
import type { Attachment, Both } from "./attachment.ts";
import { type HostPaths, inDirectory } from "./paths.ts";
import { addressesDir, addressNames, recordNames, recordPath, vmsDir } from "./paths.ts";
import { isAddress1, isAddressAttachment, isAttachment, isRecord1 } from "./shape.ts";
import { type Address1, fromAddress1, fromRecord1, type Record1 } from "./version-1.ts";

/** How one kind of attachment is kept. */
interface Shelf<B> {
  readonly directory: (host: HostPaths) => string;
  readonly names: (host: HostPaths) => string[];
  /** The attachment that a parsed file holds; undefined for anything else. */
  readonly parse: (value: unknown, name: string) => Attachment<B> | undefined;
  /** What to do with a file that cannot be read. */
  readonly mend: (name: string) => string;
}

const VMS: Shelf<Both> = {
  directory: vmsDir,
  names: recordNames,
  parse: (value, name) => {
    if (isAttachment(value)) {
      const { version: _, ...attachment } = value as { version: number } & Attachment;
      return nameOf(attachment) === name ? attachment : undefined;
    }
    return isRecord1(value) && (value as Record1).vm === name
      ? fromRecord1(value as Record1)
      : undefined;
  },
  mend: (name) => `move the file away, then run attach-vm ${name} --remove`,
};

const ADDRESSES: Shelf<AddressAttachment> = {
  directory: addressesDir,
  names: addressNames,
  parse: (value, to) => {
    if (isAddressAttachment(value)) {
      const { version: _, ...attachment } = value as
        & { version: number }
        & Attachment<AddressAttachment>;
      return sideOf(attachment)?.to === to ? attachment : undefined;
    }
    return isAddress1(value) && (value as Address1).to === to
      ? fromAddress1(value as Address1)
      : undefined;
  },
  mend: (to) => `move the file away, then map what you want to ${to} anew`,
};

/** One side of an attachment, where there is any: what it was, else what it is to be. */
export function sideOf<B>(attachment: Attachment<B>): B | undefined {
  return attachment.is === "attached" ? attachment.at : attachment.from ?? attachment.to;
}

/** The sides of an attachment: what may be in the kernel. */
export function sidesOf<B>(attachment: Attachment<B>): B[] {
  if (attachment.is === "attached") return [attachment.at];
  return [attachment.from, attachment.to].filter((side) => side !== undefined);
}

/**
 * What an attachment is while it is neither being made nor being removed: undefined for one that was
 * left half attached, or half removed.
 */
export function attachedSide<B>(attachment: Attachment<B> | undefined): B | undefined {
  if (attachment === undefined || attachment.is === "attached") return attachment?.at;
  return attachment.to === undefined ? undefined : attachment.from;
}

/** What is to be said of a VM whose change was cut off. */
export function unfinished(attachment: Attachment<unknown> & { is: "changing" }): string {
  const { from, to } = attachment;
  return `was left half ${
    to === undefined ? "removed" : from === undefined ? "attached" : "changed"
  }`;
}

function nameOf(attachment: Attachment): string | undefined {
  return sideOf(attachment)?.spec.id.name;
}

/**
 * Reads the attachment of a VM.
 *
 * @returns `undefined` when there is none
 * @throws {TapkitError} when the file is torn or foreign
 */
export function readVm(host: HostPaths, name: string): Attachment | undefined {
  return readFrom(VMS, host, name);
}

/** All that can be read, or those of the names; what cannot be read is passed to `host.note`. */
export function readVms(host: HostPaths, names?: readonly string[]): Attachment[] {
  return readAll(VMS, host, names);
}

/** Those whose text holds one of some words; the others are not parsed. */
export function readVmsNaming(host: HostPaths, words: readonly string[]): Attachment[] {
  return readVms(
    host,
    recordNames(host).filter((name) => {
      const text = readIfThere(recordPath(host, name)) ?? "";
      return words.some((word) => text.includes(word));
    }),
  );
}

/**
 * Puts an attachment of a VM in place of the one before: whole or not at all, also after a power failure
 * unless it need not be durable.
 */
export function writeVm(host: HostPaths, name: string, to: Attachment, options?: Durable): void {
  writeTo(VMS, host, name, to, options);
}

/** Takes a VM's record away, and what a crash left of the next one. */
export function deleteVm(host: HostPaths, name: string): void {
  discardFile(pathOf(VMS, host, name));
}

/** Whether a VM has a record, readable or not. */
export function hasVm(host: HostPaths, name: string): boolean {
  return isThere(recordPath(host, name));
}

/** When a VM's record was written, in milliseconds since the epoch. */
export function recordTime(host: HostPaths, name: string): number {
  return Deno.statSync(recordPath(host, name)).mtime?.getTime() ?? 0;
}

/** Does something in the directory whose changes tell that attachments came or went. */
export function inRecordsDir<T>(host: HostPaths, act: (directory: string) => T): T {
  return inDirectory(vmsDir(host), () => act(vmsDir(host)));
}

/** What is mapped to an address; `undefined` when nothing is. */
export function readAddress(
  host: HostPaths,
  to: string,
): Attachment<AddressAttachment> | undefined {
  return readFrom(ADDRESSES, host, to);
}

/** What is mapped to addresses, as far as it can be read. */
export function readAddresses(host: HostPaths): Attachment<AddressAttachment>[] {
  return readAll(ADDRESSES, host);
}

/** Puts what is mapped to an address on disk. */
export function writeAddress(
  host: HostPaths,
  to: string,
  attachment: Attachment<AddressAttachment>,
): void {
  writeTo(ADDRESSES, host, to, attachment);
}

/** Forgets what was mapped to an address. */
export function deleteAddress(host: HostPaths, to: string): void {
  discardFile(pathOf(ADDRESSES, host, to));
}

/** Whether a record is to stand a power failure; it is, unless this says otherwise. */
interface Durable {
  readonly durable?: boolean;
}

function pathOf<B>(shelf: Shelf<B>, host: HostPaths, name: string): string {
  return `${shelf.directory(host)}/${name}.json`;
}

function writeTo<B>(
  shelf: Shelf<B>,
  host: HostPaths,
  name: string,
  attachment: Attachment<B>,
  options: Durable = {},
): void {
  const text = `${JSON.stringify({ version: 2, ...attachment })}\n`;
  const path = pathOf(shelf, host, name);
  inDirectory(shelf.directory(host), () => replaceFile(path, text, options));
}

function readFrom<B>(
  { parse, mend, ...shelf }: Shelf<B>,
  host: HostPaths,
  name: string,
): Attachment<B> | undefined {
  const path = pathOf({ parse, mend, ...shelf }, host, name);
  const text = readIfThere(path);
  if (text === undefined) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new TapkitError(`the record ${path} is no JSON`, { mend: mend(name), cause });
  }
  const attachment = parse(value, name);
  if (attachment !== undefined) return attachment;
  throw new TapkitError(`the record ${path} is not one of this version of tapkit`, {
    mend: mend(name),
  });
}

function readAll<B>(
  shelf: Shelf<B>,
  host: HostPaths,
  names: readonly string[] = shelf.names(host),
): Attachment<B>[] {
  return names.flatMap((name) => {
    try {
      return readFrom(shelf, host, name) ?? [];
    } catch (error) {
      if (!(error instanceof TapkitError)) throw error;
      host.note(`warning: ${describe(error)}`);
      return [];
    }
  });
}
