/**
 * Makes binaries of tapkit's commands. See `deno run -A compile.ts --help`.
 *
 * @module
 */

import { type Command, unknownWord } from "./lib/cli/args.ts";
import { EXIT } from "./lib/cli/cli.ts";
import { runScript } from "./lib/cli/main.ts";
import { SCRIPT_NAMES, TAPKIT } from "./lib/cli/tapkit-table.ts";
import {
  type Architecture,
  ARCHITECTURES,
  type Binary,
  compileBinaries,
} from "./lib/install/binary.ts";

const NAMES: readonly string[] = [TAPKIT.name, ...SCRIPT_NAMES];

const COMPILE = {
  name: "compile.ts",
  summary: "make binaries of tapkit's commands, which need no Deno",
  usage: ["[NAME…] [--arch ARCH]… [--output DIR]"],
  words: {
    metavar: "NAME",
    help: "the commands; all, if none is named. tapkit is all of them in one binary, which also " +
      "answers to the name of a link to it",
    complete: NAMES,
  },
  options: [
    {
      name: "arch",
      metavar: "ARCH",
      repeat: true,
      choices: Object.keys(ARCHITECTURES),
      help: "the processor to make them for",
      default: "this machine's",
    },
    {
      name: "output",
      metavar: "DIR",
      help: "where to write them: DIR/ARCH/NAME",
      default: "dist",
    },
  ],
  examples: [
    { does: "make the binary of all commands", command: "deno task compile tapkit" },
    {
      does: "make it for two processors",
      command: "deno task compile tapkit --arch x86_64 --arch aarch64",
    },
  ],
} as const satisfies Command;

/** Runs compile.ts with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(COMPILE, args, async ({ flags, words }, cli) => {
    const strange = words.find((word) => !NAMES.includes(word));
    if (strange !== undefined) {
      throw unknownWord(`there is no command ${strange}`, strange, NAMES, COMPILE);
    }
    const { output = "dist" } = flags;
    const archs = flags.arch.length === 0 ? [Deno.build.arch] : flags.arch as Architecture[];
    const binaries = archs.flatMap((arch) =>
      (words.length === 0 ? NAMES : words).map((name): Binary => ({
        path: `${output}/${arch}/${name}`,
        arch,
        ...name === TAPKIT.name ? {} : { script: name },
      }))
    );
    await compileBinaries(binaries, ({ path }, bytes) => cli.json({ path, bytes }));
    return EXIT.done;
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
