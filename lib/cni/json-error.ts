/**
 * Where a JSON text is broken. V8's messages give a position for some errors only.
 *
 * @module
 */

/** A place in a text, counted from 1, and what is wrong there. */
export interface JsonError {
  readonly line: number;
  /** In UTF-16 code units. */
  readonly column: number;
  readonly problem: string;
}

const NUMBER = /-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?/y;
// deno-lint-ignore no-control-regex -- JSON forbids raw control characters in strings.
const STRING = /"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
const WORD = /true|false|null/y;
const SPACE = /[ \t\r\n]*/y;

class Broken extends Error {
  constructor(readonly offset: number, message: string) {
    super(message);
  }
}

/** Finds the first error of a text that `JSON.parse` rejected. */
export function locateJsonError(text: string): JsonError {
  let offset = 0;

  const take = (pattern: RegExp): boolean => {
    pattern.lastIndex = offset;
    const match = pattern.exec(text);
    if (match !== null) offset += match[0].length;
    return match !== null;
  };
  const peek = (): string => {
    take(SPACE);
    return text[offset] ?? "";
  };
  const found = (): string =>
    offset >= text.length ? "the text ends" : `found ${JSON.stringify(text[offset])}`;
  const expect = (wanted: string): never => {
    throw new Broken(offset, `expected ${wanted}, ${found()}`);
  };
  const string = (wanted: string): void => {
    if (peek() !== '"') expect(wanted);
    if (!take(STRING)) throw new Broken(offset, "this string is unterminated or malformed");
  };
  const sequence = (close: string, item: () => void): void => {
    offset++;
    if (peek() === close) return void offset++;
    for (;;) {
      item();
      const next = peek();
      if (next !== "," && next !== close) expect(`"," or "${close}"`);
      offset++;
      if (next === close) return;
    }
  };
  const value = (): void => {
    const next = peek();
    if (next === "{") {
      sequence("}", () => {
        string("a key in double quotes");
        if (peek() !== ":") expect('":"');
        offset++;
        value();
      });
    } else if (next === "[") sequence("]", value);
    else if (next === '"') string("a string");
    else if (!take(NUMBER) && !take(WORD)) expect("a value");
  };

  try {
    value();
    if (peek() !== "") expect("the end of the text");
  } catch (error) {
    // A text nested deeper than the stack: the place is unknown, the file is broken all the same.
    if (!(error instanceof Broken)) {
      return { line: 1, column: 1, problem: "it is nested too deeply" };
    }
    const before = text.slice(0, error.offset);
    const line = before.split("\n").length;
    return { line, column: error.offset - before.lastIndexOf("\n"), problem: error.message };
  }
  return { line: 1, column: 1, problem: "it cannot be parsed" };
}
