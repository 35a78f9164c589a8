/**
 * Network configuration files: finding, reading and validating them, as libcni, containerd and CRI-O
 * do.
 *
 * Files ending in `.conf`, `.conflist` or `.json` count, in lexical order; directories do not. A
 * list has the plugins it names, and then those of the `.conf` files in the directory of the
 * network's name beside it (libcni 1.3), unless `loadOnlyInlinedPlugins` is true. Without
 * `cniVersion` it is of version 0.1.0. Unknown keys reach the plugins as they are; of a key that is
 * written twice the last counts, and numbers are doubles, in libcni too.
 *
 * Where the others differ among themselves, or tapkit from all of them:
 *
 * - A broken file that sorts before the wanted network is an error that names it, as with
 *   containerd. CRI-O passes it over, and VMs would be attached to another network than the
 *   administrator configured. Looking a network up by name passes over broken files, unless the
 *   network is not found elsewhere.
 * - Of two files with one name the first is taken, as CRI-O does; libcni itself looks at
 *   `.conflist` files first.
 * - What a file holds, a list or a single plugin, is seen from its keys; the ending decides where it
 *   has both. The others refuse a list in a `.conf`, and a plugin in a `.conflist`.
 * - `disableCheck` and `disableGC` hold in a single plugin's file too.
 * - A network of nothing but loopback is not taken for the first one.
 * - Names, versions and types are refused here when no call could succeed with them; the others
 *   do that at ADD, or leave it to the plugins.
 *
 * @module
 */

import { describe, InputError, TapkitError } from "../errors.ts";
import { namesIn } from "../files.ts";
import { locateJsonError } from "./json-error.ts";
import {
  CNI_VERSIONS,
  IDENTIFIER,
  IDENTIFIER_MEND,
  type NetworkConfigList,
  type PluginConfig,
  validateNetworkName,
} from "./types.ts";

const EXTENSIONS = [".conf", ".conflist", ".json"];
/** `IFNAMSIZ` of linux/if.h without the terminating zero. */
const IFNAME_MAX = 15;
/** The version of a configuration that names none. */
const OLDEST_VERSION = "0.1.0";
/** Checks the name of a link that is to be made. */
export function validateInterfaceName(name: string): void {
  const problem = malformedLinkName(name) ?? linkNameProblem(name);
  if (problem === undefined) return;
  throw new InputError(`interface name "${name}" ${problem}`, {
    mend: "choose another name",
  });
}

/** Why the kernel (`dev_valid_name`) or the specification refuses a link's name, if they do. */
export function malformedLinkName(name: string): string | undefined {
  return name === ""
    ? "is empty"
    : name === "." || name === ".."
    ? "is reserved"
    : new TextEncoder().encode(name).length > IFNAME_MAX
    ? `is longer than ${IFNAME_MAX} bytes`
    : /[/:\s\0]/.test(name)
    ? "contains '/', ':' or white space"
    : undefined;
}

/**
 * What is wrong with the name of a link that is made here, in words that follow its name: others read
 * some names as more than one link, or as none.
 */
export function linkNameProblem(name: string): string | undefined {
  if (name === "all" || name === "default") return "stands for every link in /proc/sys/net";
  if (name.endsWith("*") || name.endsWith("+")) {
    return "stands for several links in firewalls' rules";
  }
  if (name.includes("%")) return "is a pattern to the kernel";
  // deno-lint-ignore no-control-regex -- control characters are refused too.
  if (/[\x00-\x1f\x7f"'\\*]/.test(name)) return "holds a character that rules cannot quote";
  return /^[-!]/.test(name) ? "begins as a flag" : undefined;
}

/** Paths of a directory's configuration files in lexical order; none when it does not exist. */
export function listConfigFiles(directory: string): string[] {
  return listFiles(directory, EXTENSIONS);
}

function listFiles(directory: string, extensions: readonly string[]): string[] {
  const isConfig = ({ name, isDirectory }: Deno.DirEntry) =>
    !isDirectory && extensions.some((extension) => name.endsWith(extension));
  try {
    // Go's sort.Strings compares bytes, and so do code units for the ASCII names met here.
    return [...Deno.readDirSync(directory)].filter(isConfig).map(({ name }) => name).sort()
      .map((name) => `${directory.replace(/\/+$/, "")}/${name}`);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound && linkTarget(directory) === undefined) return [];
    if (error instanceof Deno.errors.NotFound) throw dangling("CNI directory", directory, error);
    throw new TapkitError(`CNI directory ${directory} cannot be read: ${describe(error)}`, {
      mend: error instanceof Deno.errors.NotADirectory || error instanceof Deno.errors.NotCapable
        ? "name a directory"
        : "check its permissions",
      cause: error,
    });
  }
}

/**
 * Reads and validates one configuration file, and what belongs to it; a single plugin's is wrapped
 * into a list.
 *
 * @throws {TapkitError} naming the file, what is wrong with it, and the mend
 */
export function readConfigFile(path: string): NetworkConfigList {
  return validate(parseJson(readText(path), path), path, readPlugins);
}

/**
 * Validates the text of a configuration file, which has all its plugins in it.
 *
 * @param path names the file in errors
 * @throws {TapkitError} naming the file, what is wrong with it, and the mend
 */
export function parseConfig(text: string, path: string): NetworkConfigList {
  return validate(parseJson(text, path), path);
}

/**
 * The network of that name, or the first one of the directory.
 *
 * @returns undefined when the directory holds no configuration and no name was asked for
 * @throws {TapkitError} for a broken file, or a name no file has (the known ones are listed)
 */
export function findNetwork(directory: string, name?: string): NetworkConfigList | undefined {
  const files = listConfigFiles(directory);
  if (name === undefined) return firstBesideLoopback(files);
  validateNetworkName(name);
  const known: string[] = [];
  let broken: unknown;
  for (const path of files) {
    let raw: unknown;
    try {
      raw = parseJson(readText(path), path);
    } catch (error) {
      broken ??= error;
      continue;
    }
    if (!isObject(raw) || typeof raw.name !== "string") continue;
    if (raw.name === name) return validate(raw, path, readPlugins);
    known.push(raw.name);
  }
  if (broken !== undefined) throw broken;
  throw new InputError(`${directory} configures no network "${name}"`, {
    mend: known.length === 0
      ? "add its configuration file, or leave out the network's name"
      : `choose one of ${[...new Set(known)].join(", ")}`,
  });
}

/** Networks of loopback alone, which container runtimes configure, are skipped. */
function firstBesideLoopback(files: readonly string[]): NetworkConfigList | undefined {
  if (files.length === 0) return undefined;
  for (const path of files) {
    const list = readConfigFile(path);
    if (!list.plugins.every(({ type }) => type === "loopback")) return list;
  }
  throw new TapkitError(`${files.join(", ")} configures nothing but loopback`, {
    mend: "configure a network beside it, or move it away: then the default network is installed",
  });
}

function readText(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    throw unreadable(path, error);
  }
}

function unreadable(path: string, cause: unknown): TapkitError {
  if (cause instanceof Deno.errors.NotFound && linkTarget(path) !== undefined) {
    return dangling("CNI configuration", path, cause);
  }
  return new TapkitError(`CNI configuration ${path} cannot be read: ${describe(cause)}`, {
    mend: "check its type and permissions",
    cause,
  });
}

function dangling(what: string, path: string, cause: unknown): TapkitError {
  return new TapkitError(`${what} ${path} is a link to ${linkTarget(path)}, which is not there`, {
    mend: "remove the link, or bring back what it leads to",
    cause,
  });
}

function linkTarget(path: string): string | undefined {
  try {
    return Deno.readLinkSync(path);
  } catch {
    return undefined;
  }
}

function parseJson(text: string, path: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const { line, column, problem } = locateJsonError(text);
    throw new TapkitError(
      `CNI configuration ${path} is not valid JSON: line ${line}, column ${column}: ${problem}`,
      { mend: "correct it or remove the file", cause: error },
    );
  }
}

/** The plugins that are configured beside the file of a list, in the directory of its name. */
function readPlugins(path: string, name: string): PluginConfig[] {
  const parent = path.slice(0, path.lastIndexOf("/") + 1);
  // Few networks have one, and Deno throws for a directory that is absent.
  if (!namesIn(parent === "" ? "." : parent).includes(name)) return [];
  return listFiles(`${parent}${name}`, [".conf"])
    .map((file) => checkPlugin(parseJson(readText(file), file), failing(file)));
}

function validate(
  raw: unknown,
  path: string,
  readMore: (path: string, name: string) => PluginConfig[] = () => [],
): NetworkConfigList {
  const fail: Fail = failing(path);
  if (!isObject(raw)) return fail("is not a JSON object", "write a network configuration list");
  const { name } = raw;
  if (typeof name !== "string" || name === "") return fail(`has no "name"`, `add "name": "NAME"`);
  if (!IDENTIFIER.test(name)) {
    return fail(`has the malformed name "${name}"`, IDENTIFIER_MEND);
  }
  const cniVersion = chooseVersion(raw, fail);
  const single = "type" in raw && !("plugins" in raw && path.endsWith(".conflist"));
  const inlined = single ? [raw] : raw.plugins ?? [];
  if (!Array.isArray(inlined)) {
    return fail(`has no list "plugins"`, `add "plugins": [{"type": "bridge", …}, …]`);
  }
  const onlyInlined = readFlag(raw, "loadOnlyInlinedPlugins", fail);
  const plugins = inlined.map((plugin: unknown, index) =>
    checkPlugin(plugin, single ? fail : failing(`${path}, plugin ${index},`))
  );
  if (plugins.length === 0 && ("plugins" in raw || onlyInlined)) {
    return fail(`has an empty list "plugins"`, "add a plugin to it");
  }
  if (!single && !onlyInlined) plugins.push(...readMore(path, name));
  if (plugins.length === 0) {
    return fail(`has no list "plugins"`, `add "plugins": [{"type": "bridge", …}, …]`);
  }
  const allowOverlap = isObject(raw.tapkit) && raw.tapkit.allowOverlap === true;
  return {
    name,
    cniVersion,
    plugins,
    disableCheck: readFlag(raw, "disableCheck", fail),
    disableGC: readFlag(raw, "disableGC", fail),
    path,
    ...(allowOverlap ? { allowOverlap } : {}),
  };
}

type Fail = (problem: string, mend: string) => never;

function failing(path: string): Fail {
  return (problem, mend) => {
    throw new TapkitError(`CNI configuration ${path} ${problem}`, { mend });
  };
}

/** Checks the keys of a plugin's configuration that libcni itself reads. */
function checkPlugin(plugin: unknown, fail: Fail): PluginConfig {
  if (!isObject(plugin)) return fail("is not a JSON object", "correct it");
  const { type } = plugin;
  if (typeof type !== "string" || type === "") {
    return fail(`has no "type"`, `add "type": "PLUGIN"`);
  }
  // The type is looked up in the plugin directories, so it must not lead out of them.
  if (type.includes("/")) {
    return fail(`has the type "${type}", which is a path`, "name the plugin alone");
  }
  for (const key of ["capabilities", "ipam", "dns"]) {
    if (!isObject(plugin[key] ?? {})) fail(`has "${key}" that is not a JSON object`, "correct it");
  }
  for (const [name, value] of Object.entries(plugin.capabilities ?? {})) {
    if (typeof value === "boolean" || value === null) continue;
    fail(`has the capability "${name}" ${JSON.stringify(value)}`, "write true or false");
  }
  return plugin as PluginConfig;
}

/** Reads a flag, which libcni takes as a boolean or as the word. */
function readFlag(raw: Record<string, unknown>, key: string, fail: Fail): boolean {
  const value = raw[key];
  if (value === undefined) return false;
  const word = String(value).toLowerCase();
  if (word === "true" || word === "false") return word === "true";
  return fail(`has "${key}" ${JSON.stringify(value)}`, "write true or false");
}

/** The newest version that both sides know, of `cniVersions` (spec 1.1) and `cniVersion`. */
function chooseVersion(raw: Record<string, unknown>, fail: Fail): string {
  const { cniVersion = "", cniVersions = [] } = raw;
  if (!Array.isArray(cniVersions)) {
    return fail(`has "cniVersions" that is not a list`, "write a list of versions");
  }
  const offered: unknown[] = cniVersion === "" ? cniVersions : [...cniVersions, cniVersion];
  if (offered.length === 0) return OLDEST_VERSION;
  const common = CNI_VERSIONS.findLast((version) => offered.includes(version));
  if (common !== undefined) return common;
  const unknown = offered.map((version) => JSON.stringify(version)).join(", ");
  return fail(`has the unknown cniVersion ${unknown}`, `write one of ${CNI_VERSIONS.join(", ")}`);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
