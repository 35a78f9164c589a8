/**
 * A command as a table: parsing, checking and `--help` all come from it.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";
import { levenshteinDistance } from "@std/text/levenshtein-distance";
import { InputError } from "../errors.ts";

/** One flag of a command. */
export interface Option {
  /** Without the dashes: `"state-dir"`. */
  readonly name: string;
  /** What `--help` calls its value. A flag without a metavar takes no value. */
  readonly metavar?: string;
  /** May be given several times. */
  readonly repeat?: boolean;
  /** The values that it takes; any value, if absent. */
  readonly choices?: readonly string[];
  readonly help: string;
  /** Its names in other programs, which an error suggests it for: `["-p", "--publish"]`. */
  readonly alias?: readonly string[];
  /** The default, for `--help`. */
  readonly default?: string;
}

/** A heading, and the names of the options below it. */
export interface OptionGroup {
  readonly title: string;
  readonly options: readonly string[];
}

/** A command line: its words, flags and texts. */
export interface Command {
  readonly name: string;
  readonly summary: string;
  /** Usage lines, without the command's name. */
  readonly usage: readonly string[];
  /** The words that are not flags, if the command takes any. */
  readonly words?: {
    readonly metavar: string;
    readonly help: string;
    /** What a shell completes: the names of attached VMs for all words, or the first; or these. */
    readonly complete?: "vms" | "vm" | readonly string[];
  };
  /** The words by heading, where they are commands. */
  readonly commands?: readonly Section[];
  /** What follows `--`, if the command takes it. */
  readonly rest?: { readonly metavar: string; readonly help: string };
  readonly options: readonly Option[];
  /** Headings for `--help`, the daily ones first. Options of no group come after them. */
  readonly groups?: readonly OptionGroup[];
  /** The names of options that it shares with another command, and does not take. */
  readonly without?: readonly string[];
  readonly examples: readonly { readonly does: string; readonly command: string }[];
  /** Exit codes beyond 0, 1 and 2. */
  readonly exitCodes?: readonly (readonly [code: string, meaning: string])[];
}

/** The values of flags by name: a boolean, a string, or the strings of a repeatable one. */
export type Flags<O extends readonly Option[]> = {
  readonly [Each in O[number] as Each["name"]]: Each extends { readonly metavar: string }
    ? Each extends { readonly repeat: true } ? readonly string[]
    : Each extends { readonly choices: readonly (infer V)[] } ? V | undefined
    : string | undefined
    : boolean;
};

/** A parsed command line. All values are strings. */
export interface Parsed<C extends Command = Command> {
  readonly flags: Flags<C["options"]>;
  readonly words: readonly string[];
  /** What followed `--`; `undefined` when there was none. */
  readonly rest: readonly string[] | undefined;
}

/** Flags of every command. */
const COMMON: readonly Option[] = [
  { name: "help", help: "print this and exit" },
  { name: "version", help: "print the version and exit", alias: ["-V"] },
];

/**
 * Parses a command line by its table. Throws {@linkcode InputError} for a flag or word that the
 * table does not have, and suggests the nearest one.
 */
export function parseCommand<const C extends Command>(
  command: C,
  args: readonly string[],
): Parsed<C> | "help" | "version" {
  const options = allOptions(command);
  const end = args.indexOf("--");
  const words = end === -1 ? args : args.slice(0, end);
  if (words.includes("--help") || words.includes("-h")) return "help";
  if (words.includes("--version")) return "version";
  if (end !== -1 && command.rest === undefined) {
    throw new InputError("-- is not accepted here", seeHelp(command));
  }

  const names = options.map(({ name }) => parserName(name));
  const parsed = parseArgs([...normalized(command, options, words)], {
    string: [...options.filter(takesValue).map(({ name }) => parserName(name)), "_"],
    boolean: options.filter((option) => !takesValue(option)).map(({ name }) => parserName(name)),
    collect: names,
  });
  return {
    flags: flagValues(command.options, (name) => {
      const given = parsed[parserName(name)];
      return Array.isArray(given) ? given.map(String) : [];
    }),
    words: freeWords(command, parsed._.map(String)),
    rest: end === -1 ? undefined : args.slice(end + 1),
  };
}

/** The options that a command takes. */
function taken({ options, without = [] }: Command): readonly Option[] {
  return options.filter(({ name }) => !without.includes(name));
}

/**
 * The arguments, with every flag checked and written as `--name=value`. Otherwise parseArgs
 * guesses: `--check true` would take a VM called "true" as its value, and `--from -` would have
 * none.
 */
function* normalized(
  command: Command,
  options: readonly Option[],
  words: readonly string[],
): Generator<string> {
  for (let i = 0; i < words.length; i++) {
    const word = words[i] ?? "";
    if (!word.startsWith("-") || word === "-") {
      yield word;
      continue;
    }
    const equals = word.indexOf("=");
    const flag = equals === -1 ? word : word.slice(0, equals);
    let value = equals === -1 ? undefined : word.slice(equals + 1);
    const option = options.find(({ name }) => flag === `--${name}`);
    if (option === undefined) throw unknownFlag(command, flag);
    if (!takesValue(option)) {
      if (value !== undefined) {
        throw new InputError(`${flag} takes no value`, { mend: `write just ${flag}` });
      }
      yield `--${parserName(option.name)}=true`;
      continue;
    }
    const next = words[i + 1];
    // A value such as -1 is not a flag. The code that reads the value says what is wrong with it.
    if (value === undefined && next !== undefined && !/^-(?!$|\d)/.test(next)) {
      value = next;
      i++;
    }
    if (value === undefined || value === "") {
      throw new InputError(`${flag} has no value`, { mend: `write ${flag} ${option.metavar}` });
    }
    yield `--${parserName(option.name)}=${value}`;
  }
}

/** parseArgs would read `--no-x=true` as `--x=true`. */
function parserName(name: string): string {
  return name.replace(/^no-/, "not-");
}

function takesValue(option: Option): boolean {
  return option.metavar !== undefined;
}

/** The values of the flags, from what is given for each. Throws {@linkcode InputError}. */
export function flagValues<const O extends readonly Option[]>(
  options: O,
  given: (name: string) => readonly string[],
): Flags<O> {
  const values = options.map((option) => [option.name, flagValue(option, given(option.name))]);
  return Object.fromEntries(values);
}

function flagValue(option: Option, given: readonly string[]): unknown {
  if (given.length > 1 && option.repeat !== true) {
    throw new InputError(`--${option.name} is given ${given.length} times`, {
      mend: "give it once",
    });
  }
  if (!takesValue(option)) return given.length > 0;
  for (const value of given) {
    if (option.choices !== undefined && !option.choices.includes(value)) {
      throw new InputError(`--${option.name} ${JSON.stringify(value)} is not known`, {
        mend: `use ${orList(option.choices)}`,
      });
    }
  }
  return option.repeat === true ? given : given[0];
}

function freeWords(command: Command, words: readonly string[]): readonly string[] {
  const [first] = words;
  if (first !== undefined && command.words === undefined) {
    throw unknownWord(
      `the word ${JSON.stringify(first)} is not accepted here`,
      first,
      taken(command).map(({ name }) => name).map((name) => `--${name}`),
      command,
    );
  }
  return words;
}

function unknownFlag(command: Command, flag: string): InputError {
  const options = allOptions(command);
  const same = options.find(({ alias }) => alias?.includes(flag));
  const message = `unknown flag ${flag}`;
  if (same !== undefined) return new InputError(message, { mend: `did you mean --${same.name}?` });
  // One letter is too little to guess from.
  const known = flag.length > 2 ? options.map(({ name }) => `--${name}`) : [];
  return unknownWord(message, flag, known, command);
}

/** An error for a word that is not in `known`. It suggests the nearest one. */
export function unknownWord(
  message: string,
  word: string,
  known: readonly string[],
  command: Pick<Command, "name">,
): InputError {
  const near = nearest(word, known);
  return new InputError(message, near ? { mend: `did you mean ${near}?` } : seeHelp(command));
}

function seeHelp(command: Pick<Command, "name">): { mend: string } {
  return { mend: `see ${command.name} --help` };
}

/** The nearest of `known`, without regard to dashes, if `word` can be a misspelling of it. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  const bare = word.replace(/^-+/, "");
  const [best] = known
    .map((candidate) => ({ candidate, slips: distance(bare, candidate.replace(/^-+/, "")) }))
    .filter(({ slips }) => slips <= Math.max(1, Math.floor(bare.length * 0.4)))
    .sort((a, b) => a.slips - b.slips);
  return best?.candidate;
}

/** The edit distance: letters inserted, deleted or changed, or two adjacent ones swapped. */
function distance(a: string, b: string): number {
  // @std/text counts a swap as two changes.
  const swapped = Array.from(
    a,
    (letter, i) => a.slice(0, i) + (a[i + 1] ?? "") + letter + a.slice(i + 2),
  );
  return Math.min(
    levenshteinDistance(a, b),
    ...swapped.map((word) => 1 + levenshteinDistance(word, b)),
  );
}

/** What is written, and what it means. */
export type Row = readonly [written: string, meaning: string];

/** Rows below a heading. */
export interface Section {
  readonly title: string;
  readonly rows: readonly Row[];
}

/** What `--help` and the man page say of a command. */
export interface Described {
  readonly words: readonly Row[];
  readonly options: readonly Section[];
  readonly exitCodes: readonly Row[];
}

/** The rows of a command, those that all commands have included. */
export function describeCommand(command: Command): Described {
  return {
    words: [
      command.words && [command.words.metavar, command.words.help] as const,
      command.rest && [`-- ${command.rest.metavar}`, command.rest.help] as const,
    ].filter((row) => row !== undefined),
    options: sectionsOf(command),
    exitCodes: [
      ["0", "done"],
      ["1", "failed; what was begun is undone"],
      ["2", "wrong usage or input; nothing was touched"],
      ...command.exitCodes ?? [],
    ],
  };
}

/** The options by group; those of none come last. */
function sectionsOf(command: Command): Section[] {
  const all = allOptions(command);
  const { groups = [] } = command;
  const grouped = groups.flatMap(({ options }) => options);
  const title = groups.length === 0 ? "options" : "other options";
  const rest = { title, options: all.map(({ name }) => name).filter((n) => !grouped.includes(n)) };
  return [...groups, rest].map(({ title, options }) => ({
    title,
    rows: options.flatMap((name) => all.filter((option) => option.name === name)).map(rowOf),
  })).filter(({ rows }) => rows.length > 0);
}

function rowOf(option: Option): Row {
  const notes = [
    option.repeat === true ? "may be repeated" : undefined,
    option.default === undefined ? undefined : `default: ${option.default}`,
  ].filter((note) => note !== undefined);
  const left = `--${option.name}${option.metavar === undefined ? "" : ` ${option.metavar}`}`;
  return [left, option.help + (notes.length === 0 ? "" : ` (${notes.join("; ")})`)];
}

/** The options that a command takes, those of every command included. */
export function allOptions(command: Command): readonly Option[] {
  return [...taken(command), ...COMMON];
}

/**
 * The text of `--help`.
 *
 * @param heading gives a heading its style
 */
export function helpText(
  command: Command,
  heading: (text: string) => string = (text) => text,
): string {
  const { words, options, exitCodes } = describeCommand(command);
  const { commands = [] } = command;
  return [
    `${command.name}: ${command.summary}`,
    "",
    ...command.usage.map((line, i) =>
      `${i === 0 ? heading("usage:") : "      "} ${command.name} ${line}`.trimEnd()
    ),
    ...words.length === 0 || commands.length > 0 ? [] : ["", ...columns(words)],
    ...[...commands, ...options].flatMap(({ title, rows }) => [
      "",
      heading(`${title}:`),
      ...columns(rows),
    ]),
    "",
    heading("examples:"),
    ...command.examples.flatMap(({ does, command }) => [`  # ${does}`, `  ${command}`]),
    "",
    heading("exit codes:"),
    ...columns(exitCodes),
  ].join("\n");
}

/** Two columns, the second wrapped at 96 characters. */
function columns(rows: readonly Row[]): string[] {
  const width = Math.max(...rows.map(([left]) => left.length)) + 4;
  return rows.flatMap(([left, right]) =>
    wrap(right, 96 - width).map((line, i) => `  ${i === 0 ? left : ""}`.padEnd(width) + line)
  );
}

/** Breaks a text into lines of at most so many characters, at spaces. */
export function wrap(text: string, width: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1) ?? "";
    if (line !== "" && line.length + 1 + word.length > width) lines.push(word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines;
}

/** Throws {@linkcode InputError} when more than one of the named flags is given. */
export function exclusive<N extends string>(
  flags: { readonly [Name in N]: boolean },
  names: readonly N[],
): void {
  const given = names.filter((name) => flags[name]).map((name) => `--${name}`);
  if (given.length > 1) throw apart(given);
}

/** An error for parts of a command line that exclude each other. */
export function apart(parts: readonly string[]): InputError {
  return new InputError(`${parts.join(" and ")} do not go together`, { mend: "use one of them" });
}

/** Parses `text`, the value of `flag`, as a number. */
export function wholeNumber(flag: string, text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new InputError(`${flag} ${JSON.stringify(text)} is not a whole number`, {
    mend: `write ${flag} 1500`,
  });
}

function orList(values: readonly string[]): string {
  return values.length < 2
    ? values.join("")
    : `${values.slice(0, -1).join(", ")} or ${values.at(-1)}`;
}
