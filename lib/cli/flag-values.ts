/**
 * Repeated flags whose values make one thing together.
 *
 * @module
 */

import { InputError } from "../errors.ts";

/** What a repeated flag of the form NAME=VALUE gives, by name; `undefined` where it is not there. */
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
        `--${flag} ${text} ${value === undefined ? "has no value" : "is there twice"}`,
        {
          mend: value === undefined ? "write NAME=VALUE" : "give it once",
        },
      );
    }
    try {
      given.set(name, read(value));
    } catch {
      throw new InputError(`--${flag} ${text} is no JSON`, {
        mend: `write it as aliases='["web"]'`,
      });
    }
  }
  return Object.fromEntries(given);
}

/** What a repeated flag lists; `none` stands alone. */
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
