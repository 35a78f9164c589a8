/**
 * The scripts as two files: `tapkit.js`, and `zx.js`, which only commands that run docker load.
 * They start faster than the sources.
 *
 * @module
 */

import { fromFileUrl } from "@std/path";
import deno from "../../deno.json" with { type: "json" };
import { runSync } from "../exec.ts";

const ROOT = new URL("../../", import.meta.url);

const ZX = "zx/core";

/** What each file is made of, in the order to write them. */
export const BUNDLE: Readonly<Record<string, string>> = {
  "zx.js": deno.imports[ZX],
  "tapkit.js": fromFileUrl(new URL("scripts/tapkit.ts", ROOT)),
};

/** What would be found beside the sources, and what is there instead. */
const REPLACED = [
  // In one file with the scripts, it would make each of them load Deno's node:process.
  [`import(${JSON.stringify(ZX)})`, 'import("./zx.js")'],
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
  const flags = ["--quiet", "--config", config, "--external", ZX, "--output", path];
  runSync(Deno.execPath(), ["bundle", ...flags, BUNDLE[name] ?? name]);
  let text = await Deno.readTextFile(path);
  for (const [from, to] of REPLACED) text = text.replace(from, to);
  await Deno.writeTextFile(path, text);
}
