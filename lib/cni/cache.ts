/**
 * The results of executed networks in libcni's format, for people and tools that know it:
 * `STATE/cni/results/NETWORK-CONTAINER-INTERFACE`.
 *
 * The directory is tapkit's own, since the garbage collection of another runtime removes what it
 * finds in its cache. The VM's record has the result too: a file here is read only if the record is
 * lost, and a broken or missing one does no harm.
 *
 * @module
 */

import { discardFile, namesIn, removeIfEmpty, replaceFile } from "../files.ts";
import { parseConfig } from "./conflist.ts";
import { formatResult, parseResult } from "./convert.ts";
import type { NetworkAttachment } from "./plan.ts";
import type { NetworkConfigList, Result } from "./types.ts";

const KIND = "cniCacheV1";

/** An attachment as the cache has it. */
export interface CachedAttachment {
  readonly list: NetworkConfigList;
  readonly containerId: string;
  readonly ifName: string;
  readonly cniArgs: Readonly<Record<string, string>>;
  readonly capabilityArgs: Readonly<Record<string, unknown>>;
  readonly result?: Result;
}

function resultsDir(stateDir: string): string {
  return `${stateDir}/cni/results`;
}

function cachePath(stateDir: string, { network, containerId, ifName }: NetworkAttachment): string {
  return `${resultsDir(stateDir)}/${network}-${containerId}-${ifName}`;
}

/** Writes the result of an attachment. */
export function writeCache(
  stateDir: string,
  attachment: NetworkAttachment & { readonly result: Result },
  netns: string,
): void {
  const { network, containerId, ifName, cniArgs, plugins, result, disableCheck } = attachment;
  const cniVersion = plugins[0]?.config.cniVersion ?? result.cniVersion;
  const list = {
    cniVersion,
    name: network,
    ...disableCheck === true ? { disableCheck } : {},
    plugins: plugins.map(({ config }) => {
      const { name: _name, cniVersion: _version, runtimeConfig: _runtime, ...written } = config;
      return written;
    }),
  };
  const capabilityArgs = Object.assign({}, ...plugins.map(({ config }) => config.runtimeConfig));
  const args = Object.entries(cniArgs);
  const entry = {
    kind: KIND,
    containerId,
    config: new TextEncoder().encode(JSON.stringify(list)).toBase64(),
    ifName,
    networkName: network,
    netns,
    ...args.length === 0 ? {} : { cniArgs: args },
    ...Object.keys(capabilityArgs).length === 0 ? {} : { capabilityArgs },
    result: formatResult(result, cniVersion),
  };
  const path = cachePath(stateDir, attachment);
  Deno.mkdirSync(resultsDir(stateDir), { recursive: true, mode: 0o700 });
  replaceFile(path, JSON.stringify(entry));
}

/** Removes the result of an attachment, and the directory with the last one. */
export function removeCache(stateDir: string, attachment: NetworkAttachment): void {
  discardFile(cachePath(stateDir, attachment));
  removeIfEmpty(resultsDir(stateDir));
  removeIfEmpty(`${stateDir}/cni`);
}

/** What the cache has of a container; broken files are ignored. */
export function readCache(stateDir: string, containerId: string): CachedAttachment[] {
  return namesIn(resultsDir(stateDir)).sort()
    .filter((name) => name.includes(`-${containerId}-`))
    .flatMap((name) => readEntry(`${resultsDir(stateDir)}/${name}`) ?? [])
    .filter((entry) => entry.containerId === containerId);
}

function readEntry(path: string): CachedAttachment | undefined {
  try {
    const entry = JSON.parse(Deno.readTextFileSync(path));
    if (entry.kind !== KIND) return undefined;
    const text = new TextDecoder().decode(Uint8Array.fromBase64(entry.config));
    const list = parseConfig(text, path);
    return {
      list,
      containerId: String(entry.containerId),
      ifName: String(entry.ifName),
      cniArgs: Object.fromEntries(entry.cniArgs ?? []),
      capabilityArgs: entry.capabilityArgs ?? {},
      ...entry.result === undefined ? {} : { result: parseResult(entry.result, list.cniVersion) },
    };
  } catch {
    return undefined;
  }
}
