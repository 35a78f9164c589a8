/**
 * What takes long to make: it is made once, and kept in the cache directory of the user.
 *
 * @module
 */

import { cacheDirectory } from "./guest-image.ts";

/** How something that is kept is made. */
export interface Recipe {
  /** What it is called: `"cloud"`. There is one of each name. */
  readonly name: string;
  /** Its text: where this is another one, it is made anew. */
  readonly recipe: readonly string[];
  /**
   * Makes it.
   *
   * @param work an empty directory
   * @returns the directory in `work` that is kept
   */
  readonly make: (work: string) => Promise<string>;
}

/** The directory, made when it is not there; several processes may ask at once. */
export async function kept({ name, recipe, make }: Recipe): Promise<string> {
  const cache = cacheDirectory();
  await Deno.mkdir(cache, { recursive: true });
  using lock = await Deno.open(`${cache}/${name}.lock`, { write: true, create: true });
  await lock.lock(true);
  const bytes = new TextEncoder().encode(recipe.join("\n"));
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).slice(0, 8).toHex();
  const directory = `${cache}/${name}-${hash}`;
  if (await Deno.stat(directory).then(() => true, () => false)) return directory;
  for (const { name: there } of [...Deno.readDirSync(cache)]) {
    // Of another recipe, or one that was not finished.
    if (!there.startsWith(`${name}-`) && !there.startsWith(`new-${name}-`)) continue;
    await Deno.remove(`${cache}/${there}`, { recursive: true });
  }
  const work = await Deno.makeTempDir({ dir: cache, prefix: `new-${name}-` });
  try {
    await Deno.rename(await make(work), directory);
    return directory;
  } finally {
    await Deno.remove(work, { recursive: true }).catch(() => {});
  }
}

/** How much of what a script prints an error shows, in characters. */
const MOST_SHOWN = 4000;

/** Runs a script of bash that makes something; its first argument is `$1`. Returns what it prints. */
export async function makeBy(script: string, ...args: readonly string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command("bash", {
    args: ["-euc", script, "make", ...args],
    env: { LC_ALL: "C.UTF-8" },
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  if (success) return decoder.decode(stdout);
  throw new Error(`${decoder.decode(stdout).slice(-MOST_SHOWN)}${decoder.decode(stderr)}`);
}
