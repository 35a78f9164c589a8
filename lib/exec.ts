/**
 * Child processes: the one place that starts them.
 *
 * @module
 */

import { TapkitError } from "./errors.ts";

/**
 * Starts a program that outlives this one: in a session of its own, with no descriptor of ours.
 *
 * Equivalent to: `setsid PROGRAM ARG… </dev/null >/dev/null 2>&1 &`
 */
export function spawnDetached(program: string, args: readonly string[]): void {
  const child = new Deno.Command(program, {
    args: [...args],
    stdin: "null",
    stdout: "null",
    stderr: "null",
    detached: true,
  }).spawn();
  child.unref();
}

/**
 * Starts a program on this one's standard input, output and error, in the network namespace
 * the calling thread is in.
 *
 * @throws {Deno.errors.NotFound} when there is no such program
 * @throws {Deno.errors.PermissionDenied} when it cannot be executed
 */
export function spawnInherited(program: string, args: readonly string[]): Deno.ChildProcess {
  return new Deno.Command(program, {
    args: [...args],
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
}

/**
 * Runs a program to its end and returns its standard output.
 *
 * @throws {TapkitError} when it is missing or fails, with the last line of its standard error
 */
export function runSync(program: string, args: readonly string[]): string {
  let output: Deno.CommandOutput;
  try {
    output = new Deno.Command(program, { args: [...args], stdin: "null" }).outputSync();
  } catch (error) {
    throw new TapkitError(`${program} cannot be run`, {
      mend: `install the package that has ${program}`,
      cause: error,
    });
  }
  const decoder = new TextDecoder();
  if (output.success) return decoder.decode(output.stdout);
  // The last that some programs say is where to read more.
  const said = decoder.decode(output.stderr).trim().split("\n");
  const reason = said.findLast((line) => !line.startsWith("Try ")) ?? "";
  throw new TapkitError(`${program} ${args[0] ?? ""} failed with ${output.code}: ${reason}`);
}
