/**
 * Which words and flags of attach-vm go together.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import type { AttachRequest } from "../vm/types.ts";
import { apart } from "./args.ts";
import { type AttachFlags, SHAPING } from "./attach-table.ts";

/** What attach-vm does with the VMs that are named. */
export type AttachVerb = "attach" | "check" | "remove" | "list" | "restore" | "gc" | "run";

/** The verb that the flags ask for. Throws {@linkcode InputError} if they ask for two. */
export function verbOf(flags: AttachFlags, rest: readonly string[] | undefined): AttachVerb {
  const verbs = [
    ...(["list", "restore", "gc", "check", "remove"] as const).filter((verb) => flags[verb]),
    ...rest === undefined ? [] : ["run" as const],
  ];
  if (verbs.length > 1) {
    throw apart(verbs.map((verb) => verb === "run" ? "-- VMM" : `--${verb}`));
  }
  if (rest?.length === 0) {
    throw new InputError("nothing follows --", { mend: "write -- VMM ARG…" });
  }
  return verbs[0] ?? "attach";
}

/** Refuses names and flags that the verb does not accept. Throws {@linkcode InputError}. */
export function refuseUnlessPlain(
  verb: AttachVerb,
  flags: AttachFlags,
  words: readonly string[],
): void {
  const named = flags.from !== undefined || words.length > 0;
  const ofAll = verb === "restore" || verb === "gc";
  if (ofAll && words.length > 0) {
    throw new InputError(`--${verb} takes no names`, {
      mend: "leave them out: it is for every attached VM",
    });
  }
  if (flags.all && (ofAll || verb === "attach" || verb === "run")) {
    throw new InputError("--all is for --remove, --check and --list", { mend: "leave it out" });
  }
  if (flags.all && named) throw apart(["names", "--all"]);
  if (!named && verb === "remove" && !flags.all) {
    throw new InputError("no VM is named", {
      mend: "name those to remove, or write --remove --all for every one",
    });
  }
  if (!named && (verb === "attach" || verb === "run")) {
    throw new InputError("no VM is named", {
      mend: "write attach-vm NAME; attach-vm --list shows what is attached",
    });
  }
  if (flags.from !== undefined && words.length > 0) {
    throw new InputError("names and --from do not go together", {
      mend: "put the names into the file",
    });
  }
  if (verb !== "attach" && verb !== "run") {
    const given = [...SHAPING.map(({ name }) => name), "from" as const].find((name) => {
      const value: unknown = flags[name];
      return Array.isArray(value) ? value.length > 0 : value !== undefined && value !== false;
    });
    if (given !== undefined) {
      throw new InputError(`--${given} does not go with --${verb}`, { mend: "leave it out" });
    }
  }
  if (flags.output !== undefined && !["attach", "list", "restore"].includes(verb)) {
    const other = verb === "run" ? "-- VMM, whose stdout is the VMM's" : `--${verb}`;
    throw new InputError(`--output does not go with ${other}`, {
      mend: verb === "run" ? "use --record-file" : "leave it out",
    });
  }
  if (flags["dry-run"] && verb !== "attach" && verb !== "remove") {
    throw new InputError("--dry-run is for attaching and --remove", { mend: "leave it out" });
  }
  if (flags["dry-run"] && flags.output !== undefined) {
    throw new InputError("--output does not go with --dry-run", { mend: "leave it out" });
  }
  if (flags.exclusive && verb !== "gc") {
    throw new InputError("--exclusive is for --gc", { mend: "leave it out" });
  }
  if (flags.force && verb !== "remove") {
    throw new InputError("--force is for --remove", { mend: "leave it out" });
  }
  const ofVmm = flags.keep ? "keep" : flags.user === undefined ? undefined : "user";
  if (ofVmm !== undefined && verb !== "run") {
    throw new InputError(`--${ofVmm} is for -- VMM`, { mend: "leave it out" });
  }
  if (flags["record-file"] !== undefined && verb !== "run") {
    throw new InputError("--record-file is for -- VMM", {
      mend: "leave it out: the record is printed on stdout",
    });
  }
}

/** Refuses flags whose values several VMs cannot share. Throws {@linkcode InputError}. */
export async function refuseForSeveral(
  flags: AttachFlags,
  rest: readonly string[] | undefined,
  requests: readonly AttachRequest[],
) {
  const single = (["ip", "mac", "netns", "container"] as const).find((name) =>
    flags[name] !== undefined
  );
  const refused = single === undefined ? rest && "-- VMM" : `--${single}`;
  if (refused !== undefined) {
    throw new InputError(`${refused} is for one VM`, {
      mend: flags.from === undefined
        ? "attach them one by one, or use --from"
        : "write it in a line of the file",
    });
  }
  // In `--ports 80:80 81:81`, the second is read as a name. Report that before other errors.
  const { validateName } = await import("../vm/record/identity.ts");
  for (const { name } of requests) validateName(name);
  const { parsePorts } = await import("../inet/ports.ts");
  const ports = flags.ports.length === 1 && flags.ports[0] === "none" ? [] : [...flags.ports];
  const fixed = ports.find((text) => parsePorts([text]).some(({ hostPort }) => hostPort !== 0));
  if (fixed !== undefined) {
    throw new InputError(`host port of ${fixed} cannot be shared by several VMs`, {
      mend: `use 0:PORT, which chooses a host port for each, or --from`,
    });
  }
}
