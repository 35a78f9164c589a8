/**
 * Types for the parts of the Deno standard library that tapkit uses.
 *
 * deno.json takes @std from npm as plain JavaScript, whose imports would be `any` without this
 * file. The signatures follow the documentation of the @std packages; what is not declared here
 * cannot be imported. When deno.json maps the names to `jsr:` instead, delete this file and
 * its entry in `compilerOptions.types`.
 */

declare module "@std/assert" {
  /** Any constructor, abstract ones included. */
  // deno-lint-ignore no-explicit-any
  export type AnyConstructor = new (...args: any[]) => unknown;
  // deno-lint-ignore no-explicit-any
  type AnyErrorClass<E extends Error> = abstract new (...args: any[]) => E;
  // deno-lint-ignore no-explicit-any
  type AnyClass = abstract new (...args: any[]) => unknown;
  type Instance<C extends AnyClass> = C extends abstract new (...args: never[]) => infer I ? I
    : never;

  /** What every failed assertion throws. */
  export class AssertionError extends Error {
    constructor(message: string, options?: ErrorOptions);
  }

  export function assert(expr: unknown, msg?: string): asserts expr;
  export function assertFalse(expr: unknown, msg?: string): asserts expr is
    | false
    | 0
    | ""
    | null
    | undefined;
  export function assertExists<T>(actual: T, msg?: string): asserts actual is NonNullable<T>;
  export function assertEquals<T>(actual: T, expected: T, msg?: string): void;
  export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void;
  export function assertStrictEquals<T>(
    actual: unknown,
    expected: T,
    msg?: string,
  ): asserts actual is T;
  export function assertNotStrictEquals<T>(actual: T, expected: T, msg?: string): void;
  export function assertAlmostEquals(
    actual: number,
    expected: number,
    tolerance?: number,
    msg?: string,
  ): void;
  export function assertArrayIncludes<T>(
    actual: ArrayLike<T>,
    expected: ArrayLike<T>,
    msg?: string,
  ): void;
  export function assertGreater<T>(actual: T, expected: T, msg?: string): void;
  export function assertGreaterOrEqual<T>(actual: T, expected: T, msg?: string): void;
  export function assertLess<T>(actual: T, expected: T, msg?: string): void;
  export function assertLessOrEqual<T>(actual: T, expected: T, msg?: string): void;
  export function assertInstanceOf<C extends AnyClass>(
    actual: unknown,
    expectedType: C,
    msg?: string,
  ): asserts actual is Instance<C>;
  export function assertNotInstanceOf<A, T>(
    actual: A,
    unexpectedType: abstract new (...args: never[]) => T,
    msg?: string,
  ): asserts actual is Exclude<A, T>;
  export function assertIsError<E extends Error = Error>(
    error: unknown,
    errorClass?: AnyErrorClass<E>,
    msgMatches?: string | RegExp,
    msg?: string,
  ): asserts error is E;
  export function assertMatch(actual: string, expected: RegExp, msg?: string): void;
  export function assertNotMatch(actual: string, expected: RegExp, msg?: string): void;
  export function assertStringIncludes(actual: string, expected: string, msg?: string): void;
  export function assertObjectMatch(
    actual: object,
    expected: Record<PropertyKey, unknown>,
    msg?: string,
  ): void;

  /** Calls `fn`, which must throw; returns what it threw. */
  export function assertThrows(fn: () => unknown, msg?: string): unknown;
  export function assertThrows<E extends Error = Error>(
    fn: () => unknown,
    errorClass: AnyErrorClass<E>,
    msgIncludes?: string,
    msg?: string,
  ): E;
  /** Calls `fn`, whose promise must reject; resolves to what it rejected with. */
  export function assertRejects(fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
  export function assertRejects<E extends Error = Error>(
    fn: () => PromiseLike<unknown>,
    errorClass: AnyErrorClass<E>,
    msgIncludes?: string,
    msg?: string,
  ): Promise<E>;

  export function equal(a: unknown, b: unknown): boolean;
  export function fail(msg?: string): never;
  export function unimplemented(msg?: string): never;
  export function unreachable(reason?: string): never;
}

declare module "@std/cli/parse-args" {
  /** How `parseArgs` reads an argument vector. */
  export interface ParseOptions<
    B extends string = string,
    S extends string = string,
    C extends string = string,
    D extends boolean = boolean,
  > {
    /** Put what follows `--` into the result's `"--"` instead of its `_`. */
    readonly "--"?: D;
    /** Other names of a flag. */
    readonly alias?: Readonly<Record<string, string | readonly string[]>>;
    /** Flags without a value; `true` makes every flag without `=` one. */
    readonly boolean?: boolean | B | readonly B[];
    /** Flags whose value stays a string; `"_"` keeps the free words strings. */
    readonly string?: S | readonly S[];
    /** Flags that may be repeated; their values come as an array. */
    readonly collect?: C | readonly C[];
    /** Values of flags that are not given. */
    readonly default?: Readonly<Record<string, unknown>>;
    /** Boolean flags that `--no-NAME` sets to false. */
    readonly negatable?: string | readonly string[];
    /** Stop at the first free word and put the rest into `_`. */
    readonly stopEarly?: boolean;
    /** Called for a flag or word not named above; `false` drops it. */
    readonly unknown?: (arg: string, key?: string, value?: unknown) => unknown;
  }

  type FlagValues<B extends string, S extends string, C extends string> = string extends B | S | C
    ? { [flag: string]: unknown }
    :
      & { [K in Exclude<B, C>]: boolean }
      & { [K in B & C]: boolean[] }
      & { [K in Exclude<S, C | "_">]?: string }
      & { [K in Exclude<S & C, "_">]: string[] }
      & { [K in Exclude<C, B | S>]: unknown[] };

  /** The flags by name, the free words in `_` and, on request, the rest in `"--"`. */
  export type Args<
    B extends string = string,
    S extends string = string,
    C extends string = string,
    D extends boolean = boolean,
  > =
    & FlagValues<B, S, C>
    & { _: "_" extends S ? string[] : (string | number)[] }
    & (true extends D ? { "--": string[] } : unknown);

  export function parseArgs<
    B extends string = never,
    S extends string = never,
    C extends string = never,
    D extends boolean = false,
  >(args: string[], options?: ParseOptions<B, S, C, D>): Args<B, S, C, D>;
}

declare module "@std/path" {
  /** The parts of a path. */
  export interface ParsedPath {
    root: string;
    dir: string;
    base: string;
    ext: string;
    name: string;
  }

  export const SEPARATOR: "/" | "\\";
  export const DELIMITER: ":" | ";";
  export function basename(path: string | URL, suffix?: string): string;
  export function dirname(path: string | URL): string;
  export function extname(path: string | URL): string;
  export function format(pathObject: Partial<ParsedPath>): string;
  export function fromFileUrl(url: string | URL): string;
  export function isAbsolute(path: string): boolean;
  export function join(path?: string | URL, ...paths: string[]): string;
  export function normalize(path: string | URL): string;
  export function parse(path: string): ParsedPath;
  export function relative(from: string, to: string): string;
  export function resolve(...paths: string[]): string;
  export function toFileUrl(path: string): URL;
}

declare module "@std/text/levenshtein-distance" {
  /** How many letters must be inserted, deleted or changed to make one text of the other. */
  export function levenshteinDistance(str1: string, str2: string): number;
}
