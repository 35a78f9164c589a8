import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { ATTACH_VM } from "../../lib/cli/attach-table.ts";
import { BRIDGE_LEGACY } from "../../lib/cli/bridge-legacy-table.ts";
import { type Command, helpText, nearest, parseCommand } from "../../lib/cli/args.ts";
import { InputError } from "../../lib/errors.ts";

const COOK = {
  name: "cook",
  summary: "make a dish",
  usage: ["DISH… [options]"],
  words: { metavar: "DISH", help: "what to make" },
  rest: { metavar: "WORD…", help: "said before eating" },
  options: [
    {
      name: "salt",
      metavar: "GRAMS",
      help: "how much salt",
      alias: ["-s", "--seasoning"],
      default: "2",
    },
    { name: "spice", metavar: "NAME", repeat: true, help: "a spice" },
    { name: "heat", metavar: "LEVEL", choices: ["low", "high"], help: "how hot" },
    { name: "check", help: "taste only" },
  ],
  examples: [{ does: "soup", command: "cook soup" }],
  exitCodes: [["3", "burnt"]],
} as const satisfies Command;

const BARE = { name: "bare", summary: "nothing", usage: [""], options: COOK.options, examples: [] };

function parse(...args: string[]) {
  const parsed = parseCommand(COOK, args);
  assert(typeof parsed === "object");
  return parsed;
}

const ABSENT = { salt: undefined, spice: [], heat: undefined, check: false };

Deno.test("parseCommand: takes words, flags and the rest apart", () => {
  const cases: readonly (readonly [string[], unknown])[] = [
    [[], { flags: ABSENT, words: [], rest: undefined }],
    [["soup", "tart"], { flags: ABSENT, words: ["soup", "tart"], rest: undefined }],
    [["--salt", "3", "soup"], {
      flags: { ...ABSENT, salt: "3" },
      words: ["soup"],
      rest: undefined,
    }],
    [["soup", "--salt=a=b"], {
      flags: { ...ABSENT, salt: "a=b" },
      words: ["soup"],
      rest: undefined,
    }],
    [["--spice", "a", "--spice=b"], {
      flags: { ...ABSENT, spice: ["a", "b"] },
      words: [],
      rest: undefined,
    }],
    [["--salt", "-"], { flags: { ...ABSENT, salt: "-" }, words: [], rest: undefined }],
    [["--check", "soup"], { flags: { ...ABSENT, check: true }, words: ["soup"], rest: undefined }],
    [["soup", "--", "--salt", "-x"], { flags: ABSENT, words: ["soup"], rest: ["--salt", "-x"] }],
    [["soup", "--"], { flags: ABSENT, words: ["soup"], rest: [] }],
    [["soup", "--", "--help"], { flags: ABSENT, words: ["soup"], rest: ["--help"] }],
  ];
  for (const [args, expected] of cases) assertEquals(parse(...args), expected as never);
});

Deno.test("parseCommand: leaves what looks like a number or a boolean alone", () => {
  const { flags, words } = parse("12e4", "0x10", "007", "--salt", "1e3", "--spice", "0042");
  assertEquals(words, ["12e4", "0x10", "007"]);
  assertEquals([flags.salt, flags.spice], ["1e3", ["0042"]]);
  assertEquals(parse("--check", "true").words, ["true"]);
  assertEquals(parse("--salt", "-1").flags.salt, "-1");
  assertEquals(parse("false").words, ["false"]);
});

Deno.test("parseCommand: types the flags by the table", () => {
  const { flags } = parse("--heat", "low");
  const heat: "low" | "high" | undefined = flags.heat;
  const check: boolean = flags.check;
  const spice: readonly string[] = flags.spice;
  assertEquals([heat, check, spice], ["low", false, []]);
});

Deno.test("parseCommand: refuses what the table does not know, naming the nearest", () => {
  const cases: readonly (readonly [string[], message: RegExp, mend: RegExp])[] = [
    [["--slat", "3"], /^unknown flag --slat$/, /did you mean --salt\?/],
    [["--chek"], /^unknown flag --chek$/, /--check/],
    [["--quantity", "3"], /^unknown flag --quantity$/, /^see cook --help$/],
    [["--salt"], /^--salt has no value$/, /--salt GRAMS/],
    [["--salt="], /^--salt has no value$/, /--salt GRAMS/],
    [["--salt", "-x"], /^--salt has no value$/, /--salt GRAMS/],
    [["--salt", "--check"], /^--salt has no value$/, /--salt GRAMS/],
    [["--salt", "1", "--salt", "2"], /^--salt is given 2 times$/, /once/],
    [["--check", "--check"], /^--check is given 2 times$/, /once/],
    [["--check=no"], /^--check takes no value$/, /--check/],
    [["--no-check"], /^unknown flag --no-check$/, /./],
    [["--no-salt=3"], /^unknown flag --no-salt$/, /./],
    [["--heat", "hihg"], /^--heat "hihg" is not known$/, /low or high/],
    [["-x"], /^unknown flag -x$/, /./],
    [["--salt.x=1"], /^unknown flag --salt\.x$/, /./],
    [["--__proto__=1"], /^unknown flag --__proto__$/, /./],
    [["-s", "3"], /^unknown flag -s$/, /^did you mean --salt\?$/],
    [["--seasoning=3"], /^unknown flag --seasoning$/, /^did you mean --salt\?$/],
    [["-t"], /^unknown flag -t$/, /^see cook --help$/],
    [["-V"], /^unknown flag -V$/, /^did you mean --version\?$/],
  ];
  for (const [args, message, mend] of cases) {
    const error = assertThrows(() => parseCommand(COOK, args), InputError);
    assert(message.test(error.message), `${args}: ${error.message}`);
    assert(mend.test(error.mend ?? ""), `${args}: ${error.mend}`);
  }
});

Deno.test("parseCommand: refuses words and -- where the command takes none", () => {
  const word = assertThrows(() => parseCommand(BARE, ["chek"]), InputError);
  assertEquals([word.message, word.mend], [
    'the word "chek" is not accepted here',
    "did you mean --check?",
  ]);
  assertThrows(() => parseCommand(BARE, ["--", "x"]), InputError, "-- is not accepted here");
});

Deno.test("parseCommand: --help and --version go before any other fault", () => {
  assertEquals(parseCommand(COOK, ["--slat", "--help"]), "help");
  assertEquals(parseCommand(COOK, ["-h"]), "help");
  assertEquals(parseCommand(COOK, ["soup", "--version"]), "version");
});

Deno.test("nearest: forgives slips in proportion to the word", () => {
  const known = ["--ports", "--mode", "--remove", "--ip"];
  const cases: readonly (readonly [string, string | undefined])[] = [
    ["--prots", "--ports"],
    ["--port", "--ports"],
    ["--moed", "--mode"],
    ["--pi", "--ip"],
    ["ports", "--ports"],
    ["--ipp", "--ip"],
    ["--restore", undefined],
    ["--gc", undefined],
    ["", undefined],
  ];
  for (const [word, expected] of cases) assertEquals(nearest(word, known), expected, word);
});

Deno.test("helpText: says everything the table says, in at most 100 columns", () => {
  const text = helpText(COOK);
  for (
    const part of [
      "usage: cook DISH…",
      "--salt GRAMS",
      "how much salt (default: 2)",
      "a spice (may be repeated)",
      "-- WORD…",
      "# soup",
      "  3  burnt",
      "--version",
    ]
  ) assertStringIncludes(text.replaceAll(/ {2,}/g, "  "), part);
  assertEquals(text.split("\n").filter((line) => line.length > 100), []);
});

Deno.test("helpText: groups come in their order, what is in none comes last, headings have a style", () => {
  const groups = [{ title: "daily", options: ["salt"] }];
  const text = helpText({ ...COOK, groups }, (heading) => `<${heading}>`);
  const headings = [...text.matchAll(/^<(.*)>/gm)].map(([, heading]) => heading);
  assertEquals(headings, ["usage:", "daily:", "other options:", "examples:", "exit codes:"]);
  const daily = text.split("<daily:>")[1]!.split("<other options:>")[0]!;
  assertEquals([...daily.matchAll(/^ {2}(--\S+)/gm)].map(([, flag]) => flag), ["--salt"]);
  assertStringIncludes(text.split("<other options:>")[1]!, "--version");
});

Deno.test("groups: name options that there are, each once; attach-vm's leave out none", () => {
  for (const command of [ATTACH_VM, BRIDGE_LEGACY]) {
    const grouped: readonly string[] = ATTACH_VM.groups.flatMap(({ options }) => options);
    assertEquals(grouped.length, new Set(grouped).size);
    const known: readonly string[] = command.options.map(({ name }) => name);
    assertEquals(known.filter((name) => !grouped.includes(name)), []);
  }
  const known: readonly string[] = ATTACH_VM.options.map(({ name }) => name);
  assertEquals(
    ATTACH_VM.groups.flatMap(({ options }) => options).filter((n) => !known.includes(n)),
    [],
  );
});
