/**
 * Repeated flags whose values belong together.
 *
 * @module
 */

import { InputError } from "../errors.ts";

/** The values of a repeated flag NAME=VALUE, by name; `undefined` if it is not given. */
export function pairs<T>(
  flag: string,
  texts: readonly string[],
  read: (text: string) => T,
): Readonly<Record<string, T>> | undefined {
  if (texts.length === 0) return undefined;
  const given = new Map<string, T>();
  for (const text of texts) {
    const [, name = "", value] = /^([^=]+)=(.+)$/s.exec(text) ?? [];
    if (value === undefined || given.has(name)) {
      throw new InputError(
        `--${flag} ${text} ${value === undefined ? "has no value" : "is given twice"}`,
        {
          mend: value === undefined ? "write NAME=VALUE" : "give it once",
        },
      );
    }
    try {
      given.set(name, read(value));
    } catch {
      throw new InputError(`--${flag} ${text} is not JSON`, {
        mend: `write it as aliases='["web"]'`,
      });
    }
  }
  return Object.fromEntries(given);
}

/** The values of a repeated flag, or `none`, which must be its only value. */
export function listOrNone(
  name: string,
  texts: readonly string[],
): readonly string[] | "none" | undefined {
  if (!texts.includes("none")) return texts.length === 0 ? undefined : texts;
  if (texts.length > 1) {
    const others = name === "ports" ? "ports" : "prefixes";
    throw new InputError(`--${name} none does not go with other ${others}`, {
      mend: "use one of them",
    });
  }
  return "none";
}
