/**
 * Users and groups of this host: who may open a TAP, and who a VMM runs as.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import { readIfThere } from "../files.ts";
import type { Credentials } from "../sys/credentials.ts";

/** The uid and gid of `USER[:GROUP]`. */
export interface Owner {
  readonly owner: number;
  readonly group?: number;
}

/** The user and groups that a VMM runs as. */
export interface RunAs extends Credentials {
  /** The user, by the name or number that was given. */
  readonly user: string;
  /** `HOME`, `USER` and `LOGNAME`; empty for a user without an entry in /etc/passwd. */
  readonly env: Readonly<Record<string, string>>;
}

/**
 * Finds the uid and gid of `USER[:GROUP]`, each a name or a number.
 *
 * @throws {InputError} when this host has no such user or group
 */
export function resolveOwner(text: string): Owner {
  const { user, group } = parts(text);
  const owner = resolveId("user", user, USERS);
  return group === undefined ? { owner } : { owner, group: resolveId("group", group, GROUPS) };
}

/**
 * Finds the user and groups that a program of `USER[:GROUP]` runs as: without GROUP all groups of
 * the user, else GROUP alone.
 *
 * @throws {InputError} when this host has no such user or group, or no group is known of a number
 */
export function resolveUser(text: string): RunAs {
  const { user, group } = parts(text);
  const uid = resolveId("user", user, USERS);
  // By name first: several users may share a number.
  const entries = readLines(USERS);
  const entry = entries.find(([name]) => name === user) ??
    entries.find(([, , id]) => Number(id) === uid);
  const [name = "", , , gid, , home = "/"] = entry ?? [];
  const env = entry === undefined ? {} : { HOME: home, USER: name, LOGNAME: name };
  if (group !== undefined) {
    return { user, uid, gid: resolveId("group", group, GROUPS), groups: [], env };
  }
  if (gid === undefined) {
    throw new InputError(`no group of user ${user} is in ${USERS}`, {
      mend: "give one: USER:GROUP",
    });
  }
  const groups = readLines(GROUPS)
    .filter(([, , , members = ""]) => members.split(",").includes(name))
    .map(([, , id]) => Number(id));
  return { user, uid, gid: Number(gid), groups: [...new Set([Number(gid), ...groups])], env };
}

/** The user of `USER[:GROUP]`. */
export function userOf(text: string): string {
  return parts(text).user;
}

const USERS = "/etc/passwd";
const GROUPS = "/etc/group";

function parts(text: string): { user: string; group?: string } {
  const colon = text.indexOf(":");
  return colon < 0 ? { user: text } : { user: text.slice(0, colon), group: text.slice(colon + 1) };
}

/** passwd(5) and group(5) both have the name first and the number third. */
function resolveId(kind: "user" | "group", name: string, file: string): number {
  const NO_ID = 0xffff_ffff;
  if (/^\d+$/.test(name) && Number(name) < NO_ID) return Number(name);
  const line = name !== "" && readLines(file).find(([first]) => first === name);
  if (line) return Number(line[2]);
  throw new InputError(`${kind} "${name}" is not in ${file}`, {
    mend: "name an existing one, or give its number",
  });
}

function readLines(file: string): string[][] {
  return (readIfThere(file) ?? "").split("\n").map((line) => line.split(":"));
}
