/**
 * The name that a binary is called by.
 *
 * @module
 */

/**
 * The arguments of this process. If it is a compiled \`tapkit\` that is called by a link, or a copy, of
 * another name, that name comes first. A binary that was made of one script has it there already.
 *
 * @param isScript whether there is a script of a name
 */
export function argumentsAsCalled(isScript: (name: string) => boolean): readonly string[] {
  if (!Deno.build.standalone) return Deno.args;
  // Deno.execPath() follows links.
  const [path = "", ...words] = Deno.readTextFileSync("/proc/self/cmdline").split("\0").slice(
    0,
    -1,
  );
  const name = path.slice(path.lastIndexOf("/") + 1);
  return Deno.args.length > words.length || !isScript(name) ? Deno.args : [name, ...Deno.args];
}
