/**
 * What was asked of Weave Net on this host. It is kept beside the router's own data, because it is of
 * the host, whichever state directory VMs have.
 *
 * ```
 * /var/lib/weave/tapkit.json        what was asked for
 *               /tapkit-password    read by the router when it starts
 *               /weave-netdata.db   the router's: addresses, peers
 * ```
 *
 * @module
 */

import { describe, InputError, TapkitError } from "../errors.ts";
import { isThere, readIfThere, removeIfEmpty, removeIfThere, replaceFile } from "../files.ts";

/** The directory of the router's data. The documentation's command mounts it. */
export const WEAVE_DIR = "/var/lib/weave";
const SETTINGS = `${WEAVE_DIR}/tapkit.json`;
/** The name of the file with the password, in {@linkcode WEAVE_DIR}. */
export const PASSWORD_FILE = "tapkit-password";
const PASSWORD = `${WEAVE_DIR}/${PASSWORD_FILE}`;

/** What was asked for. What was not is absent. */
export interface WeaveSettings {
  readonly image?: string;
  readonly peers?: readonly string[];
  readonly range?: string;
  /** In bytes. */
  readonly mtu?: number;
  /** Further variables of the container. */
  readonly more?: Readonly<Record<string, string>>;
  /** The text of the default network's file, which Weave Net took the place of. */
  readonly replaced?: string;
}

/** Reads the settings; undefined if there are none. */
export function readSettings(): WeaveSettings | undefined {
  const text = readIfThere(SETTINGS);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new TapkitError(`${SETTINGS} is damaged: ${describe(cause)}`, {
      mend: "remove it, and give setup-weave its options again",
      cause,
    });
  }
}

/** Writes the settings. */
export function writeSettings(settings: WeaveSettings): void {
  Deno.mkdirSync(WEAVE_DIR, { recursive: true });
  replaceFile(SETTINGS, `${JSON.stringify(settings)}\n`);
}

/** Removes the settings and the password. */
export function forgetSettings(): void {
  removeIfThere(SETTINGS);
  removeIfThere(PASSWORD);
  removeIfEmpty(WEAVE_DIR);
}

/** Removes the router's data too. */
export function removeData(): void {
  if (hasData()) Deno.removeSync(WEAVE_DIR, { recursive: true });
}

/** Whether something of Weave Net's, or of ours for it, is there. */
export function hasData(): boolean {
  return isThere(WEAVE_DIR);
}

/** The password that the router starts with; undefined if it has none. */
export function readPassword(): string | undefined {
  return readIfThere(PASSWORD);
}

/** Sets the password that the router starts with; none if it is undefined. */
export function writePassword(password: string | undefined): void {
  if (password === undefined) {
    removeIfThere(PASSWORD);
    return;
  }
  Deno.mkdirSync(WEAVE_DIR, { recursive: true });
  replaceFile(PASSWORD, password);
}

/**
 * Reads a password from a file: one line.
 *
 * @throws {InputError} when it cannot be read, is empty, or has several lines
 */
export function passwordIn(path: string): string {
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (cause) {
    throw new InputError(`the password file ${path} cannot be read: ${describe(cause)}`, {
      mend: "name a file that holds the password",
      cause,
    });
  }
  const password = text.replace(/\r?\n$/, "");
  if (password !== "" && !/[\r\n\0]/.test(password)) return password;
  throw new InputError(
    `the password file ${path} ${password === "" ? "is empty" : "has several lines"}`,
    { mend: "write the password into it, on one line" },
  );
}
