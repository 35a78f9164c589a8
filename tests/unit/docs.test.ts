/** README.md and docs/: links lead somewhere, and the commands that they show exist. */

import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";

const ROOT = fromFileUrl(new URL("../..", import.meta.url));
const DOCS = [...Deno.readDirSync(`${ROOT}docs`)].map(({ name }) => `docs/${name}`).sort();
const PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", ...DOCS];
const COMMANDS = [
  "attach-vm",
  "doctor",
  "map-port",
  "install-default-cni",
  "serve",
  "serve-dhcp",
  "setup-weave",
  "tapkit",
];

function read(page: string): string {
  return Deno.readTextFileSync(`${ROOT}${page}`);
}

/** The anchors that GitHub makes of a page's headings. */
function anchors(text: string): string[] {
  return [...text.matchAll(/^#+ (.+)$/gm)].map(([, heading]) =>
    heading!.toLowerCase().replaceAll(/[^\w\- ]/g, "").replaceAll(" ", "-")
  );
}

/** The lines of code blocks, without comments, each continued line joined to the one before. */
function codeLines(text: string): string[] {
  return [...text.matchAll(/^ *```[\w-]*\n([^]*?)^ *```$/gm)]
    .flatMap(([, block]) => block!.replaceAll(/\\\n\s*/g, "").split("\n"))
    .map((line) => line.trim().replace(/^\$ /, "").replace(/\s#\s.*$/, ""));
}

/** Code in the text, outside of blocks. */
function codeSpans(text: string): string[] {
  const prose = text.replaceAll(/^ *```[^]*?^ *```$/gm, "");
  return [...prose.matchAll(/`([^`]+)`/g)].map(([, span]) => span!.replaceAll(/\s+/g, " "));
}

/** The command that a word of a command line names. */
function nameOf(word: string): string {
  return word.replace(/^(?:\$\()?(?:scripts\/(.+)\.ts|(.+))$/, "$1$2");
}

async function flagsOf(script: string): Promise<Set<string>> {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", `${ROOT}${script}`, "--help"],
    env: { NO_COLOR: "1" },
  }).output();
  const help = new TextDecoder().decode(stdout);
  return new Set([...help.matchAll(/^ {2}(--[a-z-]+)/gm)].map(([, flag]) => flag!));
}

Deno.test("README.md: is short, and links every page of docs", () => {
  const text = read("README.md");
  assert(text.split("\n").length <= 251, "README.md has at most 250 lines");
  assertEquals(DOCS.filter((page) => !text.includes(`](${page})`)), []);
});

Deno.test("pages: every link leads to a file, and to a heading of it", () => {
  const broken = PAGES.flatMap((page) => {
    const text = read(page);
    const base = new URL(page, "file:///");
    return [...text.matchAll(/\]\((?!https?:)([^)\s]+)\)/g)].map(([, link]) => link!)
      .filter((link) => {
        const { pathname, hash } = new URL(link, base);
        try {
          const target = Deno.readTextFileSync(`${ROOT}${pathname.slice(1)}`);
          return hash !== "" && !anchors(target).includes(hash.slice(1));
        } catch {
          return true;
        }
      })
      .map((link) => `${page}: ${link}`);
  });
  assertEquals(broken, []);
});

Deno.test("pages: every flag of a command that is shown exists", async () => {
  const entries = [
    ...COMMANDS.map((name) => [name, `scripts/${name}.ts`] as const),
    ["install.ts", "install.ts"] as const,
    ["compile.ts", "compile.ts"] as const,
  ];
  const known = new Map(
    await Promise.all(entries.map(async ([name, path]) => [name, await flagsOf(path)] as const)),
  );
  let seen = 0;
  const unknown: string[] = [];
  for (const page of PAGES) {
    const text = read(page);
    for (const line of [...codeLines(text), ...codeSpans(text)]) {
      const all = line.split(" ");
      const start = all.findIndex((word) => known.has(nameOf(word)));
      if (start === -1) continue;
      const words = all.slice(start);
      const flags = known.get(nameOf(words[0]!))!;
      // What follows `--` is the VMM's.
      const end = words.indexOf("--");
      const own = (end === -1 ? words : words.slice(0, end))
        .flatMap((word) => word.match(/^--[a-z-]+/) ?? []);
      seen += own.length;
      unknown.push(
        ...own.filter((flag) => !flags.has(flag)).map((flag) => `${page}: ${line}: ${flag}`),
      );
    }
    // A flag that stands alone is one of some command, or of another program's.
    const every = [...known.values()].flatMap((flags) => [...flags]);
    const alone = codeSpans(text).flatMap((span) => span.match(/^--[a-z][a-z-]+/) ?? [])
      .filter((flag) => !every.includes(flag));
    unknown.push(...alone.map((flag) => `${page}: ${flag}`));
  }
  assert(seen > 50, `${seen} flags are looked at`);
  assertEquals(unknown, []);
});

Deno.test("docs/library.md: names every function and class that mod.ts exports, and no others", async () => {
  const exported = Object.keys(await import("../../mod.ts")).sort();
  const tables = read("docs/library.md").split("\n").filter((line) => line.startsWith("| "));
  const cells = tables.map((line) => line.split("|").slice(1));
  // Calls are in the second column of the first table, classes in the first column of the second.
  const named = cells.flatMap(([first = "", second = "", third]) =>
    codeSpans(third === "" ? second : first)
  ).filter((name) => /^\w+$/.test(name));
  assertEquals([...new Set(named)].sort(), exported);
});
