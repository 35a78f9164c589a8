/**
 * Weave Net's CNI configuration and plugins, and the default network's, whose place it takes.
 *
 * @module
 */

import { listConfigFiles } from "../cni/conflist.ts";
import { DEFAULT_NETWORK, DEFAULT_NETWORK_FILE, isDefaultNetwork } from "../cni/default-network.ts";
import { TapkitError } from "../errors.ts";
import { isThere, namesIn, readIfThere, removeIfThere, writeFileOnce } from "../files.ts";

const FILE = "10-weave.conflist";
/** What versions before 2.0 wrote. Weave Net removes it. */
const FORMER_FILE = "10-weave.conf";
/** The plugins that its configuration needs. The one that makes the interface is named in records. */
export const WEAVE_PLUGIN = "weave-net";
const PLUGINS = [WEAVE_PLUGIN, "weave-ipam"];
const PLUGIN_FILE = /^weave-plugin-/;

/** Where CNI configurations and plugins are. */
export interface CniDirs {
  readonly confDir: string;
  readonly binDirs: readonly string[];
}

/** The path of Weave Net's configuration. */
export function conflistPath({ confDir }: CniDirs): string {
  return `${confDir}/${FILE}`;
}

/** What is missing of its configuration and plugins, for people. */
export function missingFiles(dirs: CniDirs): string[] {
  const path = conflistPath(dirs);
  return [
    ...isThere(path) ? [] : [path],
    ...PLUGINS.filter((plugin) => !dirs.binDirs.some((dir) => isThere(`${dir}/${plugin}`)))
      .map((plugin) => `the plugin ${plugin}`),
  ];
}

/** The configuration that VMs would be attached to instead of Weave Net's; undefined if there is none. */
export function sortsFirst({ confDir }: CniDirs): string | undefined {
  const own = [`${confDir}/${FILE}`, `${confDir}/${FORMER_FILE}`];
  return listConfigFiles(confDir).find((path) => path < own[0]! && !own.includes(path));
}

/**
 * Makes sure that nothing but the default network stands before Weave Net's configuration, and that
 * nobody is on it.
 *
 * @param usersOf the VMs that are on a network
 * @returns the text of the default network's file; undefined if it is not there
 * @throws {TapkitError} naming the VMs, or the other configuration
 */
export function replaceable(
  dirs: CniDirs,
  usersOf: (network: string) => readonly string[],
): string | undefined {
  const path = `${dirs.confDir}/${DEFAULT_NETWORK_FILE}`;
  const text = readIfThere(path);
  const own = text !== undefined && isDefaultNetwork(text);
  const first = listConfigFiles(dirs.confDir).filter((each) => each !== path || !own)
    .find((each) => each < conflistPath(dirs) && each !== `${dirs.confDir}/${FORMER_FILE}`);
  if (first !== undefined) {
    throw new TapkitError(
      `${first} sorts before ${FILE}, so VMs would not be attached to Weave Net`,
      { mend: first === path ? "it was edited: move it away" : "move it away, or rename it" },
    );
  }
  if (!own) return undefined;
  const users = usersOf(DEFAULT_NETWORK);
  if (users.length === 0) return text;
  const names = users.map((name) => `VM ${JSON.stringify(name)}`).join(", ");
  throw new TapkitError(`${names} ${users.length > 1 ? "are" : "is"} on the default network`, {
    mend: `run attach-vm ${users.join(" ")} --remove first, and attach again afterwards`,
  });
}

/** Removes the default network's file. */
export function removeDefault({ confDir }: CniDirs): void {
  removeIfThere(`${confDir}/${DEFAULT_NETWORK_FILE}`);
}

/** Puts the default network's file back, unless there is one again. */
export function restoreDefault({ confDir }: CniDirs, text: string): void {
  writeFileOnce(`${confDir}/${DEFAULT_NETWORK_FILE}`, text);
}

/** Removes Weave Net's configuration and plugins. */
export function removeFiles(dirs: CniDirs): void {
  removeIfThere(conflistPath(dirs));
  for (const dir of dirs.binDirs) {
    const names = namesIn(dir).filter((name) => PLUGINS.includes(name) || PLUGIN_FILE.test(name));
    for (const name of names) removeIfThere(`${dir}/${name}`);
  }
}
