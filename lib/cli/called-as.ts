/**
 * The name that a binary is called by.
 *
 * @module
 */

import { SCRIPT_NAMES } from "./tapkit-table.ts";

/**
 * The arguments of this process. If it is a compiled `tapkit` that is called by a link, or a copy, of
 * another name, that name comes first. A binary that was made of one script has it there already.
 */
export function argumentsAsCalled(): readonly string[] {
  if (!Deno.build.standalone) return Deno.args;
  // Deno.execPath() follows links.
  const [path = "", ...words] = Deno.readTextFileSync("/proc/self/cmdline").split("\0").slice(
    0,
    -1,
  );
  const name = path.slice(path.lastIndexOf("/") + 1);
  const isScript = SCRIPT_NAMES.some((script) => script === name);
  return Deno.args.length > words.length || !isScript ? Deno.args : [name, ...Deno.args];
}
