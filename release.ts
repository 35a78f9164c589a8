/**
 * Makes the files of a release. See `deno run -A release.ts --help`.
 *
 * @module
 */

import { fromFileUrl, join, resolve } from "@std/path";
import deno from "./deno.json" with { type: "json" };
import type { Command } from "./lib/cli/args.ts";
import { EXIT } from "./lib/cli/cli.ts";
import { runScript } from "./lib/cli/main.ts";
import { TapkitError } from "./lib/errors.ts";
import { runSync } from "./lib/exec.ts";
import { type Architecture, ARCHITECTURES, compileBinaries } from "./lib/install/binary.ts";
import { sha256 } from "./lib/install/manifest.ts";

const ROOT = fromFileUrl(new URL(".", import.meta.url));

const RELEASE = {
  name: "release.ts",
  summary: "make the files of a release: the archive of the sources, binaries, checksums, notes",
  usage: ["[--arch ARCH]… [--draft] [--output DIR]"],
  options: [
    {
      name: "arch",
      metavar: "ARCH",
      repeat: true,
      choices: Object.keys(ARCHITECTURES),
      help: "also make the binary of all commands for this processor",
    },
    {
      name: "draft",
      help: "although something is not committed, or CHANGELOG.md calls the version unreleased",
    },
    { name: "output", metavar: "DIR", help: "where to write the files", default: "dist" },
  ],
  examples: [{ does: "try it", command: "deno task release --draft" }],
} as const satisfies Command;

/** What CHANGELOG.md says of a version. Throws if it says nothing, or that it is not released. */
function notesOf(version: string, isDraft: boolean): string {
  const text = Deno.readTextFileSync(join(ROOT, "CHANGELOG.md"));
  const section = text.split(/^(?=## )/m).find((part) => part.startsWith(`## ${version} `));
  if (section === undefined) {
    throw new TapkitError(`CHANGELOG.md says nothing of ${version}`, {
      mend: "add a section, or correct the version in deno.json",
    });
  }
  const [heading = "", ...lines] = section.split("\n");
  if (/\(unreleased\)/.test(heading) && !isDraft) {
    throw new TapkitError(`CHANGELOG.md calls ${version} unreleased`, {
      mend: "write the date there instead, or use --draft",
    });
  }
  return `${lines.join("\n").trim()}\n`;
}

/** Runs release.ts with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(RELEASE, args, async ({ flags }, cli) => {
    const { version } = deno;
    const git = (...words: string[]) => runSync("git", ["-C", ROOT, ...words]);
    const notes = notesOf(version, flags.draft);
    if (!flags.draft && git("status", "--porcelain") !== "") {
      throw new TapkitError("something is not committed", { mend: "commit it, or use --draft" });
    }
    const output = resolve(flags.output ?? "dist");
    await Deno.mkdir(output, { recursive: true });
    const name = `tapkit-${version}`;
    const archive = join(output, `${name}.tar.gz`);
    git("archive", "--format=tar.gz", `--prefix=${name}/`, `--output=${archive}`, "HEAD");
    const archs = flags.arch as readonly Architecture[];
    const binaries = archs.map((arch) => ({ path: join(output, `${name}-${arch}`), arch }));
    if (binaries.length > 0) await compileBinaries(binaries);
    const files = [archive, ...binaries.map(({ path }) => path)];
    const sums = await Promise.all(
      files.map(async (path) =>
        `${await sha256(await Deno.readFile(path))}  ${path.slice(output.length + 1)}\n`
      ),
    );
    await Deno.writeTextFile(join(output, "SHA256SUMS"), sums.join(""));
    await Deno.writeTextFile(join(output, "NOTES.md"), notes);
    cli.json({ version, files: [...files, join(output, "SHA256SUMS"), join(output, "NOTES.md")] });
    return EXIT.done;
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
