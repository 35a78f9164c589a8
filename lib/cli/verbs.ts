/**
 * Verbs of other programs. A VM with such a name is most likely a misread command line.
 *
 * @module
 */

import { InputError } from "../errors.ts";

/** The attach-vm command that each verb stands for. NAME stands for the VMs' names. */
const MEANT: Readonly<Record<string, readonly string[]>> = {
  "attach-vm NAME --list": ["list", "ls", "ps", "show", "inspect", "get"],
  "attach-vm NAME --remove": ["rm", "remove", "del", "delete", "detach", "stop", "down"],
  "attach-vm NAME --check": ["check", "status"],
  "attach-vm NAME": ["attach", "add", "create", "start", "up"],
  "attach-vm NAME -- VMM ARG…": ["run", "exec"],
  "attach-vm --restore": ["restore"],
  "attach-vm --gc": ["gc", "prune"],
  "attach-vm --help": ["help"],
  "attach-vm --version": ["version"],
  "attach-vm --list, or --check, or --remove --all": ["all"],
};

/**
 * Refuses verbs of other programs as names of VMs.
 *
 * @param words the words of a command line that are not flags
 * @throws {InputError} which suggests the command that was meant
 */
export function refuseVerbs(words: readonly string[], script = "attach-vm"): void {
  const verb = words.find((word) => meant(word) !== undefined);
  if (verb === undefined) return;
  const message = `${JSON.stringify(verb)} is refused as the name of a VM`;
  if (script !== "attach-vm") throw new InputError(message, { mend: `see ${script} --help` });
  const others = words.filter((word) => meant(word) === undefined).join(" ");
  const looks = meant(verb)!.endsWith("--list");
  const command = meant(verb)!.replace("NAME", others || (looks ? "" : "NAME"));
  throw new InputError(message, { mend: `did you mean ${command.replaceAll("  ", " ")}?` });
}

function meant(word: string): string | undefined {
  return Object.keys(MEANT).find((command) => MEANT[command]!.includes(word));
}
