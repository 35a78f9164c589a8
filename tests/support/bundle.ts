/**
 * The scripts as `install.ts --bundle` installs them: a process of that starts with less work.
 *
 * @module
 */

import { BUNDLE, makeBundle } from "../../lib/install/bundle.ts";
import { describe } from "../../lib/errors.ts";
import { cacheDirectory } from "./guest-image.ts";
import { ROOT } from "./machine.ts";

/** Names the file in the environment of the tests; they run the sources where it is absent. */
export const BUNDLE_VARIABLE = "TAPKIT_TEST_BUNDLE";

const SOURCES = ["lib", "scripts"];
/** They say which versions of other packages go into it. */
const VERSIONS = ["deno.json", "deno.lock"];
/** What no run has used for so long is of sources that have changed since. */
const STALE_MS = 24 * 3600 * 1000;

/**
 * Makes the file, unless one of the same sources is there.
 *
 * @returns its path, or `undefined` where Deno cannot make it, which downloads what it needs for that
 */
export async function bundleScripts(): Promise<string | undefined> {
  const cache = cacheDirectory();
  const directory = `${cache}/bundle-${await keyOf(SOURCES)}`;
  const path = `${directory}/tapkit.js`;
  await removeStale(cache);
  if (await Deno.stat(path).then(() => true, () => false)) {
    await Deno.utime(directory, new Date(), new Date());
    return path;
  }
  await Deno.mkdir(directory, { recursive: true });
  try {
    for (const name of Object.keys(BUNDLE)) {
      const made = `${directory}/${name}.${Deno.pid}`;
      await makeBundle(name, made);
      await Deno.rename(made, `${directory}/${name}`);
    }
  } catch (error) {
    console.error(`the scripts run from their sources: ${describe(error)}`);
    await Deno.remove(directory, { recursive: true }).catch(() => {});
    return undefined;
  }
  return path;
}

/** The words after `deno` that run a script of tapkit, `attach-vm` say. */
export function scriptWords(script: string, flags: readonly string[] = []): string[] {
  const bundle = Deno.env.get(BUNDLE_VARIABLE);
  return bundle === undefined
    ? ["run", "-A", ...flags, `${ROOT}/scripts/${script}.ts`]
    : ["run", "-A", "--no-config", ...flags, bundle, ...script === "tapkit" ? [] : [script]];
}

async function removeStale(cache: string): Promise<void> {
  for await (const { name } of Deno.readDir(cache)) {
    if (!name.startsWith("bundle-")) continue;
    const { mtime } = await Deno.stat(`${cache}/${name}`);
    if (Date.now() - (mtime?.getTime() ?? 0) < STALE_MS) continue;
    await Deno.remove(`${cache}/${name}`, { recursive: true });
  }
}

/** The sources, and what makes one file of them. */
async function keyOf(directories: readonly string[]): Promise<string> {
  const paths = directories.flatMap((name) => filesBelow(`${ROOT}/${name}`)).sort()
    .concat(VERSIONS.map((name) => `${ROOT}/${name}`));
  const texts = await Promise.all(
    paths.map(async (path) => `${path.slice(ROOT.length)}\n${await Deno.readTextFile(path)}`),
  );
  const bytes = new TextEncoder().encode([Deno.version.deno, ...texts].join("\n"));
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).slice(0, 8).toHex();
}

function filesBelow(directory: string): string[] {
  return [...Deno.readDirSync(directory)].flatMap(({ name, isDirectory }) =>
    isDirectory ? filesBelow(`${directory}/${name}`) : [`${directory}/${name}`]
  );
}
