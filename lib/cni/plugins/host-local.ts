/**
 * The `host-local` IPAM plugin: addresses of a pool that one host's files keep.
 *
 * The files are those of the reference plugin, so both share a pool: in the network's directory one
 * file per address, named by it, whose content is `CONTAINERID\r\nIFNAME`; `last_reserved_ip.N`, where
 * the search for the next address of range set N goes on; and `lock`, whose flock guards them. The
 * last two stay when the last address is released: a waiting plugin may hold the lock's file.
 *
 * @module
 */

import { describe, TapkitError } from "../../errors.ts";
import { isThere, readIfThere, removeIfThere } from "../../files.ts";
import { bigIntToIp, ipToBigInt, isIp } from "../../inet/ip.ts";
import { lockFile } from "../../sys/flock.ts";
import type { UndoStack } from "../../undo.ts";
import type { Holder, IpamResult } from "../plugin.ts";
import {
  AddressHeldError,
  CniCode,
  CniError,
  type Dns,
  type IpConfig,
  misconfigured,
} from "../types.ts";
import {
  capacity,
  formatRange,
  type HostLocalConfig,
  type Range,
  rangeOf,
} from "./host-local-config.ts";

const PLUGIN = "host-local";

/**
 * Reserves one address of each range set.
 *
 * @param fresh the caller knows that `holder` holds none, so that the pool need not be searched
 * @throws {AddressHeldError} when a requested address is taken, or `holder` has one already
 * @throws {CniError} when the pool is full
 */
export function allocate(
  config: HostLocalConfig,
  holder: Holder,
  undo: UndoStack,
  fresh: boolean,
): IpamResult {
  const dns = config.resolvConf === undefined ? {} : readResolvConf(config.resolvConf);
  io(config.directory, () => Deno.mkdirSync(config.directory, { recursive: true, mode: 0o755 }));
  using _lock = lockPool(config);
  if (!fresh) refuseDuplicate(config, holder);
  const wanted = [...config.requested];
  const ips = config.rangeSets.map((set, index) => {
    const at = wanted.findIndex((ip) => rangeOf(set, ip) !== undefined);
    const requested = at < 0 ? undefined : wanted.splice(at, 1)[0]!;
    return requested === undefined
      ? allocateNext(config, set, index, holder, undo)
      : allocateRequested(config, set, index, requested, holder, undo);
  });
  if (wanted.length > 0) {
    const more = wanted.join(", ");
    throw misconfigured(
      PLUGIN,
      `network "${config.network}" gives one address of each range set, not also ${more}`,
      "ask for one address of each",
    );
  }
  return { ips, routes: config.routes, dns };
}

/**
 * Releases what the holder has in the pool; nothing being there is no error.
 *
 * @param known the holder's addresses, where they are known: then only their files are looked at
 */
export function release(config: HostLocalConfig, holder: Holder, known?: readonly string[]): void {
  if (!io(config.directory, () => isThere(config.directory))) return;
  using _lock = lockPool(config);
  remove(temporaryPath(config, holder));
  if (known !== undefined && known.length >= config.rangeSets.length) {
    const paths = known.map((ip) => `${config.directory}/${ip}`);
    if (paths.every((path) => isHeldBy(path, holder))) {
      paths.forEach(remove);
      return;
    }
  }
  held(config, holder).forEach((name) => remove(`${config.directory}/${name}`));
}

/** Whether the address is the holder's, for CHECK. */
export function holdsAddress(config: HostLocalConfig, holder: Holder, ip: string): boolean {
  return isHeldBy(`${config.directory}/${ip}`, holder);
}

function allocateRequested(
  config: HostLocalConfig,
  set: readonly Range[],
  index: number,
  ip: string,
  holder: Holder,
  undo: UndoStack,
): IpConfig {
  if (reserve(config, index, ip, holder, undo)) return ipConfigOf(rangeOf(set, ip)!, ip);
  const other = parseHolder(readFile(`${config.directory}/${ip}`) ?? "");
  throw new AddressHeldError(
    `address ${ip} of network "${config.network}" is held by container ${other.containerId}` +
      (other.ifName === "" ? "" : ` (${other.ifName})`),
    ip,
    other,
    "choose another, or remove its holder",
  );
}

function allocateNext(
  config: HostLocalConfig,
  set: readonly Range[],
  index: number,
  holder: Holder,
  undo: UndoStack,
): IpConfig {
  // Listed when the first address tried is taken, which is rare: the search goes round.
  let taken: Set<string> | undefined;
  for (const { range, ip } of candidates(set, lastReserved(config, index))) {
    if (taken?.has(ip)) continue;
    if (reserve(config, index, ip, holder, undo)) return ipConfigOf(range, ip);
    taken ??= new Set(listNames(config.directory));
  }
  const used = (taken === undefined ? [] : [...taken])
    .filter((name) => isIp(name) !== 0 && rangeOf(set, name) !== undefined).length;
  throw new CniError(
    `network "${config.network}" has no free address: of ${set.map(formatRange).join(", ")} ` +
      `${used} of ${capacity(set)} are taken`,
    { plugin: PLUGIN, code: CniCode.TRY_AGAIN_LATER },
    { mend: `remove some of their holders, listed in ${config.directory}, or widen the range` },
  );
}

/** Every address of a set but the gateways, from the one after `last` round to it. */
function* candidates(
  set: readonly Range[],
  last: string | undefined,
): Generator<{ range: Range; ip: string }> {
  const from = last === undefined ? undefined : rangeOf(set, last);
  const start = from === undefined ? 0 : set.indexOf(from);
  const after = from === undefined ? set[0]!.first : ipToBigInt(last!) + 1n;
  const spans = [
    { range: set[start]!, first: after, last: set[start]!.last },
    ...[...set.slice(start + 1), ...set.slice(0, start)],
    { range: set[start]!, first: set[start]!.first, last: after - 1n },
  ];
  for (const span of spans) {
    const range = "range" in span ? span.range : span;
    for (let value = span.first; value <= span.last; value++) {
      const ip = bigIntToIp(value, range.subnet.family);
      if (ip !== range.gateway) yield { range, ip };
    }
  }
}

/**
 * Makes an address's file, complete from its first moment: it is written under another name and then
 * linked, so that a process killed in between leaves no address taken by nobody.
 *
 * @returns false when the address is taken
 */
function reserve(
  config: HostLocalConfig,
  index: number,
  ip: string,
  holder: Holder,
  undo: UndoStack,
): boolean {
  const path = `${config.directory}/${ip}`;
  const temporary = temporaryPath(config, holder);
  let made = false;
  undo.push(`address ${ip} of network "${config.network}"`, () => {
    if (!made) return;
    using _lock = lockPool(config);
    // Taking it away may be what failed.
    remove(temporary);
    if (isHeldBy(path, holder)) remove(path);
  });
  try {
    io(path, () => Deno.writeTextFileSync(temporary, contentOf(holder), { mode: 0o644 }));
    made = io(path, () => linkIfFree(temporary, path));
  } finally {
    remove(temporary);
  }
  if (!made) return false;
  overwrite(`${config.directory}/last_reserved_ip.${index}`, ip);
  return true;
}

/** @returns false when the name is taken */
function linkIfFree(from: string, to: string): boolean {
  try {
    Deno.linkSync(from, to);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists) return false;
    throw error;
  }
}

/**
 * Writes over a file's content. Truncating it to nothing first would cost 4 ms on ext4, which flushes
 * such a file when it is closed (auto_da_alloc). Cut off in between, it is a hint that is off.
 */
function overwrite(path: string, text: string): void {
  io(path, () => {
    using file = Deno.openSync(path, { write: true, create: true, mode: 0o644 });
    file.truncateSync(file.writeSync(new TextEncoder().encode(text)));
  });
}

/** Not an address, so no plugin takes it for one; its content lets any plugin's DEL remove it. */
function temporaryPath(config: HostLocalConfig, holder: Holder): string {
  return `${config.directory}/.${holder.containerId}.${holder.ifName}`;
}

function refuseDuplicate(config: HostLocalConfig, holder: Holder): void {
  const sets = config.rangeSets;
  const ip = held(config, holder)
    .find((name) => isIp(name) !== 0 && sets.some((set) => rangeOf(set, name) !== undefined));
  if (ip === undefined) return;
  throw new AddressHeldError(
    `container ${holder.containerId} (${holder.ifName}) holds ${ip} of network ` +
      `"${config.network}" already`,
    ip,
    holder,
    "remove the attachment first",
  );
}

/** Names of the files the holder has in the pool, those of old versions without ifName included. */
function held(config: HostLocalConfig, holder: Holder): string[] {
  const mine: string[] = [];
  const old: string[] = [];
  for (const name of listNames(config.directory)) {
    const content = readFile(`${config.directory}/${name}`)?.trim();
    if (content === contentOf(holder)) mine.push(name);
    else if (content === holder.containerId) old.push(name);
  }
  return mine.length > 0 ? mine : old;
}

function isHeldBy(path: string, holder: Holder): boolean {
  return readFile(path)?.trim() === contentOf(holder);
}

function contentOf({ containerId, ifName }: Holder): string {
  return `${containerId}\r\n${ifName}`;
}

/** The content of the file of an address. */
export function parseHolder(content: string): Holder {
  const [containerId = "", ifName = ""] = content.trim().split("\r\n");
  return { containerId, ifName };
}

function ipConfigOf(range: Range, ip: string): IpConfig {
  return { address: `${ip}/${range.subnet.prefixLength}`, gateway: range.gateway };
}

function lastReserved(config: HostLocalConfig, index: number): string | undefined {
  const ip = readFile(`${config.directory}/last_reserved_ip.${index}`)?.trim();
  return ip === undefined || isIp(ip) === 0 ? undefined : ip;
}

function lockPool(config: HostLocalConfig): Disposable {
  return lockFile(`${config.directory}/lock`);
}

function listNames(directory: string): string[] {
  return [...Deno.readDirSync(directory)].filter((entry) => entry.isFile).map(({ name }) => name);
}

function readFile(path: string): string | undefined {
  return io(path, () => readIfThere(path));
}

function remove(path: string): void {
  io(path, () => removeIfThere(path));
}

function readResolvConf(path: string): Dns {
  const content = readFile(path);
  if (content === undefined) {
    throw new TapkitError(`${PLUGIN}: the resolvConf file ${path} does not exist`, {
      mend: "correct the network's configuration file",
    });
  }
  const lines = content.split("\n").map((line) => line.trim().split(/\s+/));
  const valuesOf = (keyword: string) =>
    lines.flatMap(([first, ...values]) => first === keyword && values.length > 0 ? [values] : []);
  const nameservers = valuesOf("nameserver").map(([address]) => address!);
  const domain = valuesOf("domain").at(-1)?.[0];
  const [search, options] = [valuesOf("search").flat(), valuesOf("options").flat()];
  return {
    ...(nameservers.length > 0 ? { nameservers } : {}),
    ...(domain !== undefined ? { domain } : {}),
    ...(search.length > 0 ? { search } : {}),
    ...(options.length > 0 ? { options } : {}),
  };
}

/** Does something to a file; what the file system refuses is the plugin's error. */
function io<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (cause) {
    const where = { plugin: PLUGIN, code: CniCode.IO_FAILURE };
    throw new CniError(`${path}: ${describe(cause)}`, where, {
      mend: "check the directory's permissions and its free space",
      cause,
    });
  }
}
