/**
 * Compiled binaries. Deno downloads what it makes them of. TAPKIT_TEST_COMPILER names the Deno that makes
 * them, where DENORT_BIN names the rest, which is of the same version.
 *
 * @module
 */

import { ROOT } from "./machine.ts";

/** The Deno that compiles. */
export const COMPILER = Deno.env.get("TAPKIT_TEST_COMPILER") ?? Deno.execPath();

/** Why this machine cannot compile; undefined where it can. */
export async function whyNoCompiler(): Promise<string | undefined> {
  const directory = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${directory}/empty.ts`, "");
    const output = ["--output", `${directory}/empty`, `${directory}/empty.ts`];
    const { success, stderr } = await new Deno.Command(COMPILER, {
      args: ["compile", "--quiet", "--no-config", ...output],
    }).output();
    if (success) return undefined;
    const said = new TextDecoder().decode(stderr);
    const cause = /^ +1: (.*)/m.exec(said) ?? /^error: (.*)/m.exec(said);
    return `Deno's runtime cannot be had: ${cause?.[1] ?? said}`;
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** Makes binaries in a directory, with `deno task compile`'s arguments; returns what it printed. */
export async function compile(
  ...args: string[]
): Promise<{ readonly success: boolean; readonly out: string; readonly err: string }> {
  const { success, stdout, stderr } = await new Deno.Command(COMPILER, {
    args: ["run", "-A", `${ROOT}/compile.ts`, ...args],
  }).output();
  const [out = "", err = ""] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
  return { success, out, err };
}
