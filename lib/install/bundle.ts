/**
 * The scripts as files that start faster than the sources: `tapkit.js`, and what few commands load:
 * `zx.js` those that run docker, `ajv.js` the one that takes requests.
 *
 * @module
 */

import { fromFileUrl } from "@std/path";
import deno from "../../deno.json" with { type: "json" };
import { runSync } from "../exec.ts";

const ROOT = new URL("../../", import.meta.url);

/** The packages that are files of their own. */
const APART = { "zx/core": "zx.js", "ajv": "ajv.js" } as const;

/** What each file is made of, in the order to write them. */
export const BUNDLE: Readonly<Record<string, string>> = {
  "zx.js": deno.imports["zx/core"],
  "ajv.js": deno.imports["ajv"],
  "tapkit.js": fromFileUrl(new URL("scripts/tapkit.ts", ROOT)),
};

/** What would be found beside the sources, and what is there instead. */
const REPLACED = [
  // In one file with the scripts, zx would make each of them load Deno's node:process.
  ...Object.entries(APART).map(([name, file]) =>
    [`(${JSON.stringify(name)})`, `("./${file}")`].map((text) => `import${text}`) as [
      string,
      string,
    ]
  ),
  // Under Deno, zx looks for a file beside itself.
  ['globalThis.Deno ? globalThis.require("./core.cjs") : ', ""],
] as const;

/**
 * Makes one of the files of {@linkcode BUNDLE} at `path`.
 *
 * @throws {TapkitError} when Deno cannot: it downloads what it needs for that
 */
export async function makeBundle(name: string, path: string): Promise<void> {
  const config = fromFileUrl(new URL("deno.json", ROOT));
  // Do not minify: esbuild would treat a `using` as an ordinary variable, and remove it.
  const apart = Object.keys(APART).flatMap((name) => ["--external", name]);
  const flags = ["--quiet", "--config", config, ...apart, "--output", path];
  runSync(Deno.execPath(), ["bundle", ...flags, BUNDLE[name] ?? name]);
  let text = await Deno.readTextFile(path);
  for (const [from, to] of REPLACED) text = text.replace(from, to);
  await Deno.writeTextFile(path, text);
}
