/**
 * `attach-vm --from`: one VM per line of JSON, with the names of flags as keys.
 *
 * @module
 */

import { describe, InputError, locating } from "../errors.ts";
import { type Flags, flagValues, nearest, type Option } from "./args.ts";
import type { Cli } from "./cli.ts";

/** Keys for which an empty list means `none`. */
const CLEARED: readonly string[] = ["ports", "deny-egress", "allow-egress", "reachable-from"];

/** One line: the VM's name and its flags. */
export interface VmLine<O extends readonly Option[]> {
  /** For messages: `"vms.jsonl line 3"`. */
  readonly where: string;
  readonly name: string;
  readonly flags: Flags<O>;
}

/**
 * Reads a file of JSON lines, or standard input for `-`. A value is a string or a number, a list
 * of them for a repeatable flag, or `true` for a flag without a value. Throws
 * {@linkcode InputError}, which names the line.
 */
export async function readVmLines<const O extends readonly Option[]>(
  path: string,
  options: O,
  cli: Pick<Cli, "caller" | "path">,
): Promise<VmLine<O>[]> {
  const file = path === "-" ? "standard input" : path;
  const lines = (await readInput(path, file, cli)).split("\n").flatMap((line, i) =>
    line.trim() === "" ? [] : [readLine(line, `${file} line ${i + 1}`, options)]
  );
  if (lines.length === 0) {
    throw new InputError(`${file} names no VM`, { mend: 'write lines such as {"name":"web"}' });
  }
  return lines;
}

async function readInput(
  path: string,
  file: string,
  cli: Pick<Cli, "caller" | "path">,
): Promise<string> {
  try {
    return path === "-" ? await cli.caller.stdin() : await Deno.readTextFile(cli.path(path));
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : describe(error);
    throw new InputError(`${file} cannot be read: ${code}`, {
      mend: "give --from a file of JSON lines",
      cause: error,
    });
  }
}

function readLine<const O extends readonly Option[]>(
  line: string,
  where: string,
  options: O,
): VmLine<O> {
  const { name, ...values } = parseObject(line, where);
  if (typeof name !== "string") {
    throw new InputError(`${where} has no name`, { mend: 'write {"name":"web"}' });
  }
  const keys = ["name", ...options.map(({ name }) => name)];
  const unknown = Object.keys(values).find((key) => !keys.includes(key));
  if (unknown !== undefined) {
    const near = nearest(unknown, keys);
    throw new InputError(`${where}: unknown key ${JSON.stringify(unknown)}`, {
      mend: near === undefined ? `use ${keys.join(", ")}` : `did you mean ${near}?`,
    });
  }
  const given = (name: string) => {
    if (!Object.hasOwn(values, name)) return [];
    const option = options.find((option) => option.name === name);
    return option?.metavar === undefined ? switched(name, values[name]) : texts(name, values[name]);
  };
  return { where, name, flags: locating(where, () => flagValues(options, given)) };
}

function parseObject(line: string, where: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    value = undefined;
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new InputError(`${where} is not a JSON object`, {
      mend: 'write {"name":"web"} on one line',
    });
  }
  return { ...value };
}

/** The value of a flag that takes none: `true`. */
function switched(key: string, value: unknown): readonly string[] {
  if (value === true) return ["true"];
  throw new InputError(`${JSON.stringify(key)} is ${JSON.stringify(value)}`, {
    mend: "write true, or leave it out",
  });
}

/** The values of a key. An empty list means `none`. */
function texts(key: string, value: unknown): readonly string[] {
  const list: readonly unknown[] = Array.isArray(value) ? value : [value];
  if (CLEARED.includes(key) && list.length === 0) return ["none"];
  return list.map((item) => {
    if (typeof item === "string" && item !== "" || typeof item === "number") return String(item);
    throw new InputError(`${JSON.stringify(key)} has ${JSON.stringify(item)}`, {
      mend: "write strings",
    });
  });
}
