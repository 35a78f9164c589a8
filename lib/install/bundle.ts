/**
 * The scripts as files that start faster than the sources: `tapkit.js`, where every command begins;
 * `scripts.js`, which it loads where the resident does not do its work; and what few of those load:
 * `zx.js` those that run docker, `ajv.js` the one that takes requests, `install.js` that which installs.
 *
 * @module
 */

import { fromFileUrl, toFileUrl } from "@std/path";
import deno from "../../deno.json" with { type: "json" };
import { runSync } from "../exec.ts";
import { isFile } from "../files.ts";

/** The checkout that this is in, if it is in one. */
export const ROOT = new URL("../../", import.meta.url);

/** Whether the sources are here; a bundle or a binary has none. */
export function hasSources(): boolean {
  return isFile(fromFileUrl(new URL("scripts/tapkit.ts", ROOT)));
}

/** What is a file of its own, by the name that others import it by. */
const APART = {
  "./all.ts": "scripts.js",
  "../install.ts": "install.js",
  "zx/core": "zx.js",
  "ajv": "ajv.js",
} as const;

/** What each file is made of, in the order to write them. */
export const BUNDLE: Readonly<Record<string, string>> = {
  "zx.js": deno.imports["zx/core"],
  "ajv.js": deno.imports["ajv"],
  "install.js": fromFileUrl(new URL("install.ts", ROOT)),
  "scripts.js": fromFileUrl(new URL("scripts/all.ts", ROOT)),
  "tapkit.js": fromFileUrl(new URL("scripts/tapkit.ts", ROOT)),
};

/** What would be found beside the sources, and what is there instead. */
const REPLACED = [
  // Under Deno, zx looks for a file beside itself.
  ['globalThis.Deno ? globalThis.require("./core.cjs") : ', ""],
] as const;

/** How a bundle is made. */
export interface BundleOptions {
  /** The functions that V8 is to compile while it loads the file. */
  readonly hot?: ReadonlySet<string>;
  /**
   * Whether others of its files are named in its text. Deno reads whatever a text names before it runs the
   * first line, and `deno compile` takes nothing else along.
   */
  readonly named?: boolean;
}

/** How a file imports another one of {@linkcode BUNDLE}. */
function importOf(file: string, named: boolean): string {
  const path = JSON.stringify(`./${file}`);
  return `import(${named ? path : `new URL(${path}, import.meta.url).href`})`;
}

/**
 * Makes one of the files of {@linkcode BUNDLE} at `path`.
 *
 * @throws {TapkitError} when Deno cannot: it downloads what it needs for that
 */
export async function makeBundle(
  name: string,
  path: string,
  { hot = hotFunctions(), named = false }: BundleOptions = {},
): Promise<void> {
  const { condensed, withEager } = await import("./eager.ts");
  const config = fromFileUrl(new URL("deno.json", ROOT));
  // Do not minify: esbuild would treat a `using` as an ordinary variable, and remove it.
  const apart = Object.keys(APART).flatMap((name) => ["--external", name]);
  const flags = ["--quiet", "--config", config, ...apart, "--output", path];
  runSync(Deno.execPath(), ["bundle", ...flags, BUNDLE[name] ?? name]);
  let text = await Deno.readTextFile(path);
  for (const [from, to] of REPLACED) text = text.replace(from, to);
  // In one file with the scripts, zx would make each of them load Deno's node:process.
  for (const [name, file] of Object.entries(APART)) {
    text = text.replace(`import(${JSON.stringify(name)})`, importOf(file, named));
  }
  await Deno.writeTextFile(path, withEager(condensed(text), hot));
}

/** What nearly every attachment, change, look and removal calls. Written by `deno task hot`. */
function hotFunctions(): ReadonlySet<string> {
  return new Set(Deno.readTextFileSync(new URL("hot.txt", import.meta.url)).trim().split("\n"));
}

/**
 * Makes the directory `cache` Deno's cache for the bundle in the directory `bundle`. Deno keeps there
 * what V8 has compiled when a file is loaded. It does so itself, but only in commands that wait for
 * something.
 *
 * @param env the variables that it is used with
 */
export async function warmCache(
  bundle: string,
  cache: string,
  env: Readonly<Record<string, string>> = {},
): Promise<void> {
  const loader = fromFileUrl(new URL("load.js", import.meta.url));
  const files = Object.keys(BUNDLE).map((name) => toFileUrl(`${bundle}/${name}`).href);
  runSync(Deno.execPath(), ["run", "-A", "--no-config", loader, ...files], {
    ...env,
    DENO_DIR: cache,
  });
  // Deno leaves what it wrote in the logs of its databases, which each command would read again.
  const { DatabaseSync } = await import("node:sqlite");
  for (const { name } of [...Deno.readDirSync(cache)]) {
    if (!name.endsWith("-wal")) continue;
    const database = new DatabaseSync(`${cache}/${name.slice(0, -"-wal".length)}`);
    database.exec("PRAGMA wal_checkpoint(TRUNCATE)");
    database.close();
  }
}
