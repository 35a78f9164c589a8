/**
 * The shape of the source: imports run one way, and the few things that only some files may do.
 */

import { assert, assertEquals } from "@std/assert";
import { dirname, fromFileUrl, join, normalize } from "@std/path";

const ROOT = fromFileUrl(new URL("../../", import.meta.url));

/** From the bottom up; a file imports from its own layer and those below it. */
const LAYERS: readonly (readonly string[])[] = [
  [
    "lib/caller.ts",
    "lib/errors.ts",
    "lib/files.ts",
    "lib/finding.ts",
    "lib/same.ts",
    "lib/sha256.ts",
    "lib/signals.ts",
    "lib/turns.ts",
    "lib/undo.ts",
    "lib/inet/",
  ],
  ["lib/sys/"],
  ["lib/checkpoint.ts", "lib/exec.ts"],
  ["lib/netlink/"],
  ["lib/firewall/"],
  ["lib/cni/", "lib/dhcp/", "lib/docker/"],
  ["lib/weave/"],
  ["lib/vm/"],
  ["lib/resident/"],
  ["lib/doctor/"],
  ["mod.ts"],
  ["lib/cli/"],
  ["lib/install/"],
  // tapkit install is install.ts.
  ["scripts/", "install.ts"],
  ["compile.ts"],
];

interface Import {
  readonly specifier: string;
  readonly typeOnly: boolean;
  readonly dynamic: boolean;
}

interface Source {
  readonly path: string;
  /** Without its comments. */
  readonly code: string;
  readonly lines: number;
  readonly imports: readonly Import[];
}

const SOURCES = [...find("lib"), ...find("scripts"), "mod.ts", "install.ts", "compile.ts"].map(
  read,
);

function find(directory: string): string[] {
  return [...Deno.readDirSync(join(ROOT, directory))]
    .map((entry) => ({ ...entry, path: join(directory, entry.name) }))
    .flatMap(({ path, isDirectory }) => isDirectory ? find(path) : path)
    .filter((path) => path.endsWith(".ts"))
    .sort();
}

function read(path: string): Source {
  const text = Deno.readTextFileSync(join(ROOT, path));
  const code = text.replaceAll(/\/\*[\s\S]*?\*\//g, "").replaceAll(/^\s*\/\/.*$/gm, "");
  const statements = code.matchAll(
    /^(?:import|export)\s+(type\s+)?(?:[^;"]*?\sfrom\s+)?"([^"]+)"/gm,
  );
  const calls = code.matchAll(/\bimport\(\s*"([^"]+)"/g);
  return {
    path,
    code,
    lines: text.trimEnd().split("\n").length,
    imports: [
      ...[...statements].map(([, type, specifier = ""]) => ({
        specifier,
        typeOnly: type !== undefined,
        dynamic: false,
      })),
      ...[...calls].map(([, specifier = ""]) => ({ specifier, typeOnly: false, dynamic: true })),
    ],
  };
}

/** The path of what a file imports, from the root; `undefined` for a package. */
function target(source: Source, specifier: string): string | undefined {
  return specifier.startsWith(".") ? normalize(join(dirname(source.path), specifier)) : undefined;
}

function group(path: string): { layer: number; name: string } {
  const layer = LAYERS.findIndex((names) => names.some((name) => path.startsWith(name)));
  const name = LAYERS[layer]?.find((name) => path.startsWith(name)) ?? "";
  return { layer, name };
}

function local(source: Source): { path: string; edge: Import }[] {
  return source.imports.flatMap((edge) => {
    const path = target(source, edge.specifier);
    return path === undefined || path.endsWith(".json") ? [] : [{ path, edge }];
  });
}

Deno.test("imports: every file belongs to a layer and was read", () => {
  assert(SOURCES.length > 30, `only ${SOURCES.length} files were found`);
  assert(SOURCES.filter(({ imports }) => imports.length > 0).length > 20);
  const cli = SOURCES.find(({ path }) => path === "lib/cli/cli.ts");
  assert(cli?.imports.some(({ specifier, dynamic }) => specifier === "../../mod.ts" && dynamic));
  assertEquals(SOURCES.map(({ path }) => path).filter((path) => group(path).layer < 0), []);
});

Deno.test("imports: run downwards, and not between neighbours of one layer", () => {
  const wrong = SOURCES.flatMap((source) =>
    local(source)
      .filter(({ path }) => {
        const [from, to] = [group(source.path), group(path)];
        const within = from.name === to.name || from.layer === 0 || from.name === "scripts/";
        return to.layer < 0 || to.layer > from.layer || to.layer === from.layer && !within;
      })
      .map(({ path }) => `${source.path} imports ${path}`)
  );
  assertEquals(wrong, []);
});

Deno.test("imports: have no cycles", () => {
  const edges = new Map(SOURCES.map((source) => [source.path, local(source).map((e) => e.path)]));
  const done = new Set<string>();
  const visit = (path: string, trail: readonly string[]): string | undefined => {
    if (trail.includes(path)) return [...trail.slice(trail.indexOf(path)), path].join(" → ");
    if (done.has(path)) return undefined;
    const cycle = (edges.get(path) ?? [])
      .map((next) => visit(next, [...trail, path]))
      .find((found) => found !== undefined);
    done.add(path);
    return cycle;
  };
  const cycles = [...edges.keys()].map((path) => visit(path, [])).filter((c) => c !== undefined);
  assertEquals(cycles, []);
});

Deno.test("imports: packages are the standard library's, and one each for docker, requests, installing", () => {
  const packages = SOURCES.flatMap(({ path, imports }) =>
    imports.filter(({ specifier }) => !specifier.startsWith("."))
      .map(({ specifier }) => `${path} imports ${specifier}`)
  );
  const allowed = /imports (node:[a-z]+|@std\/(cli\/parse-args|path|text\/levenshtein-distance))$/;
  const others = packages.filter((line) => !allowed.test(line));
  const lazy = ["lib/docker/docker.ts imports zx/core", "lib/resident/api.ts imports ajv"];
  const installing = ["lib/install/eager.ts imports acorn"];
  assertEquals(others, [lazy[0], ...installing, lazy[1]]);
  for (const [path, name] of lazy.map((line) => line.split(" imports "))) {
    const { imports } = SOURCES.find((source) => source.path === path)!;
    assert(imports.every(({ specifier, dynamic }) => dynamic || specifier !== name));
  }
});

Deno.test("mod.ts: exports every error class that the library throws", () => {
  // What a guest sent, what stays in its file, what is answered, what a command is told.
  const inside = ["DhcpFormatError", "Broken", "HttpError", "NotHereError"];
  const classes = SOURCES.flatMap(({ code }) =>
    [...code.matchAll(/^(?:export )?class (\w+) extends \w*Error\b/gm)].map(([, name = ""]) => name)
  );
  const { code } = SOURCES.find(({ path }) => path === "mod.ts")!;
  const exported: readonly string[] =
    [...code.matchAll(/^export \{([^}]*)\}/gm)].join().match(/\w+/g) ?? [];
  assert(classes.includes("TapkitError"));
  const lacking = classes.filter((name) => !inside.includes(name) && !exported.includes(name));
  assertEquals(lacking, []);
});

Deno.test("scripts: go through mod.ts and lib/cli, and stay under 80 lines", () => {
  const scripts = SOURCES.filter(({ path }) => path.startsWith("scripts/"));
  assert(scripts.length > 0);
  const allowed = /^(mod\.ts|lib\/cli\/.*|lib\/(errors|caller)\.ts|scripts\/.*|install\.ts)$/;
  for (const script of scripts) {
    assertEquals(local(script).map(({ path }) => path).filter((path) => !allowed.test(path)), []);
    assert(script.lines < 80, `${script.path} has ${script.lines} lines`);
  }
});

Deno.test("scripts: load no more than lib/cli before they have parsed", () => {
  const early = SOURCES.filter(({ path }) => /^(scripts|lib\/cli)\//.test(path)).flatMap((source) =>
    local(source)
      .filter(({ edge }) => !edge.typeOnly && !edge.dynamic)
      .filter(({ path }) => !/^lib\/(cli\/|errors\.ts|caller\.ts)/.test(path))
      .map(({ path }) => `${source.path} imports ${path}`)
  );
  assertEquals(early, []);
});

Deno.test("Deno.dlopen: is called in lib/sys only", () => {
  const users = SOURCES.filter(({ code }) => code.includes("Deno.dlopen")).map(({ path }) => path);
  assert(users.length > 0);
  assertEquals(users.filter((path) => !path.startsWith("lib/sys/")), []);
});

Deno.test("Deno.Command: is used in lib/exec.ts only; docker is run by zx", () => {
  const users = SOURCES.filter(({ code }) => code.includes("Deno.Command")).map(({ path }) => path);
  assertEquals(users, ["lib/exec.ts"]);
});

Deno.test("deno.lock: names no host", () => {
  assertEquals(/https?:/.exec(Deno.readTextFileSync(join(ROOT, "deno.lock"))), null);
});

Deno.test("@std: deno check rejects a misuse of each module", () => {
  const imports = `import { assert, assertEquals } from "@std/assert";
import { parseArgs } from "@std/cli/parse-args";
import { join } from "@std/path";
import { levenshteinDistance } from "@std/text/levenshtein-distance";
`;
  const right = `${imports}
const { salt, _: words } = parseArgs(["--salt=1"], { string: ["salt", "_"], boolean: ["dry"] });
assert(salt !== undefined);
const text: string = salt + join("a", ...words);
assertEquals(text, "1a");
const slips: number = levenshteinDistance("salt", "slat");
assertEquals(slips, 2);
`;
  const misuses = [
    ["assertEquals(1);", "TS2554"],
    ["parseArgs([], { strings: [] });", "TS2561"],
    ['parseArgs([], { boolean: ["dry"] }).wet;', "TS2339"],
    ['levenshteinDistance("salt", 1);', "TS2345"],
    ['export const wrong: number = join("a", "b");', "TS2322"],
    ['import { nothing } from "@std/path"; nothing;', "TS2305"],
  ] as const;
  const directory = Deno.makeTempDirSync({ prefix: "tapkit-check-" });
  const check = (code: string) => {
    const path = join(directory, "snippet.ts");
    Deno.writeTextFileSync(path, code);
    const { success, stderr } = new Deno.Command(Deno.execPath(), {
      args: ["check", "--config", join(ROOT, "deno.json"), path],
      env: { NO_COLOR: "1" },
    }).outputSync();
    return { success, said: new TextDecoder().decode(stderr) };
  };
  try {
    const accepted = check(right);
    assert(accepted.success, accepted.said);
    const refused = check(`${imports}void assert;\n${misuses.map(([line]) => line).join("\n")}`);
    assert(!refused.success);
    for (const [line, code] of misuses) {
      assert(refused.said.includes(`${code} [ERROR]`), `${line} is not refused:\n${refused.said}`);
    }
    assert(refused.said.includes(`Found ${misuses.length} errors`), refused.said);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});
