/**
 * Installs tapkit's commands on this host. See `deno run -A install.ts --help`.
 *
 * @module
 */

import { dirname, fromFileUrl, join, resolve } from "@std/path";
import { type Command, exclusive } from "./lib/cli/args.ts";
import { EXIT, printJson, printNote, printText, runScript } from "./lib/cli/main.ts";
import { describe, TapkitError } from "./lib/errors.ts";
import { DENO_DIR_BEFORE } from "./lib/exec.ts";
import { BUNDLE, compileBundle, makeBundle, warmCache } from "./lib/install/bundle.ts";

const COMMANDS = [
  "attach-vm",
  "bridge-legacy",
  "install-default-cni",
  "map-port",
  "serve",
  "serve-dhcp",
  "setup-weave",
];

const INSTALL = {
  name: "install.ts",
  summary: "install tapkit's commands on this host",
  usage: [
    "[--prefix DIR] [--bundle | --compile] [--unit] [--print]",
    "[--prefix DIR] --remove",
  ],
  options: [
    {
      name: "prefix",
      metavar: "DIR",
      help: "where the commands (DIR/bin) and the list of written files (DIR/share/tapkit) go",
      default: "/usr/local",
    },
    {
      name: "bundle",
      help: "install files made of the sources, which start faster and do not need this " +
        "directory; otherwise the commands run the sources here; both use the Deno that runs this",
    },
    { name: "compile", help: "install a binary that needs neither Deno nor this directory" },
    { name: "unit", help: "also write a systemd unit that runs serve-dhcp from boot" },
    {
      name: "unit-dir",
      metavar: "DIR",
      help: "where to write the unit",
      default: "/etc/systemd/system",
    },
    { name: "print", help: "print what would be written, and write nothing" },
    { name: "remove", help: "remove what was written; files that were changed since stay" },
  ],
  examples: [
    { does: "install to /usr/local/bin", command: "deno run -A install.ts" },
    { does: "install commands that start faster", command: "deno run -A install.ts --bundle" },
    {
      does: "install a binary, and serve DHCP from boot",
      command: "deno run -A install.ts --compile --unit",
    },
    { does: "remove all of it", command: "deno run -A install.ts --remove" },
  ],
} as const satisfies Command;

/** The files of an installation: `--remove` deletes these and nothing else. */
interface Manifest {
  /** The SHA-256 of each file, by path. */
  readonly files: Readonly<Record<string, string>>;
  /** The directories that were created, outermost first. */
  readonly directories: readonly string[];
  /** Directories of which everything is removed: Deno's cache for the bundle. */
  readonly caches?: readonly string[];
}

/** A file to write: its text, or the script that it is made from. */
type InstalledFile =
  & { readonly path: string; readonly mode: number }
  & (
    | { readonly text: string }
    | { readonly make: "bundle" | "compile"; readonly from: string }
  );

/** Runs the installer with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(INSTALL, args, async ({ flags }) => {
    const prefix = resolve(flags.prefix ?? "/usr/local");
    const manifestPath = join(prefix, "share/tapkit/installed.json");
    if (flags.remove) {
      printJson({ prefix, removed: await uninstall(manifestPath) });
      return EXIT.done;
    }
    const unitDir = flags.unit ? resolve(flags["unit-dir"] ?? "/etc/systemd/system") : undefined;
    exclusive(flags, ["bundle", "compile"]);
    const make = flags.bundle ? "bundle" : flags.compile ? "compile" : undefined;
    const wanted = plan(prefix, make, unitDir);
    if (flags.print) {
      for (const file of wanted) {
        printText(
          `# ${file.path}\n${"text" in file ? file.text : `(deno ${file.make} ${file.from})\n`}`,
        );
      }
      return EXIT.done;
    }
    if (unitDir !== undefined && await kindOf(unitDir) !== "directory") {
      throw new TapkitError(`the directory ${unitDir} does not exist`, {
        mend:
          "leave out --unit if systemd does not run here, or name the directory with --unit-dir",
      });
    }
    const cache = make === "bundle" ? cacheOf(prefix) : undefined;
    printJson({ prefix, written: await install(wanted, manifestPath, cache) });
    if (unitDir !== undefined) {
      printNote(
        INSTALL.name,
        "now run: systemctl daemon-reload; systemctl enable --now tapkit-dhcp",
      );
    }
    return EXIT.done;
  });
}

/** What Deno keeps for the bundle. Its own cache is everybody's, and may be emptied by others. */
function cacheOf(prefix: string): string {
  return join(prefix, "share/tapkit/cache");
}

function plan(
  prefix: string,
  make: "bundle" | "compile" | undefined,
  unitDir: string | undefined,
): InstalledFile[] {
  const bin = join(prefix, "bin");
  const scripts = fromFileUrl(new URL("./scripts", import.meta.url));
  const share = join(prefix, "share/tapkit");
  const deno = `${quote(Deno.execPath())} run -A`;
  const command = (name: string): string =>
    make === "compile"
      ? `${quote(`${bin}/tapkit`)} ${name}`
      : make === "bundle"
      ? `${deno} --no-config ${quote(`${share}/tapkit.js`)}${name === "tapkit" ? "" : ` ${name}`}`
      : `${deno} ${quote(`${scripts}/${name}.ts`)}`;
  // Whoever may not write there has a cache of their own, as for any program of Deno's.
  const environment = make === "bundle"
    ? `cache=${quote(cacheOf(prefix))}
if [ -w "$cache" ]; then export ${DENO_DIR_BEFORE}="\${DENO_DIR-}" DENO_DIR="$cache"; fi
`
    : "";
  const launcher = (name: string): InstalledFile => ({
    path: `${bin}/${name}`,
    mode: 0o755,
    text: `#!/bin/sh\n${environment}exec ${command(name)} "$@"\n`,
  });
  const unit = (dir: string): InstalledFile => ({
    path: join(dir, "tapkit-dhcp.service"),
    mode: 0o644,
    text: `[Unit]
Description=DHCP for the virtual machines that tapkit attached

[Service]
Environment=DENO_NO_UPDATE_CHECK=1
ExecStart="${bin}/serve-dhcp"
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
`,
  });
  return [
    ...make === "bundle"
      ? Object.keys(BUNDLE).map((from) => ({ path: `${share}/${from}`, mode: 0o644, make, from }))
      : [],
    make === "compile"
      ? { path: `${bin}/tapkit`, mode: 0o755, make, from: "tapkit.js" }
      : launcher("tapkit"),
    ...COMMANDS.map(launcher),
    ...unitDir === undefined ? [] : [unit(unitDir)],
  ];
}

async function install(
  wanted: readonly InstalledFile[],
  manifestPath: string,
  cache: string | undefined,
): Promise<string[]> {
  const before = await readManifest(manifestPath);
  for (const { path } of wanted) {
    if (await kindOf(path) !== undefined && before.files[path] === undefined) {
      throw new TapkitError(`${path} exists and was not written by tapkit`, {
        mend: "move it, or choose another --prefix",
      });
    }
  }
  const directories = [...before.directories];
  const files = { ...before.files };
  const caches = [...new Set([...before.caches ?? [], ...cache === undefined ? [] : [cache]])];
  const keep = async () => {
    const text = JSON.stringify({ files, directories, caches } satisfies Manifest, null, 2);
    await putInPlace(manifestPath, 0o644, (path) => Deno.writeTextFile(path, `${text}\n`));
  };
  directories.push(...await makeDirectories(dirname(manifestPath)));
  const written: string[] = [];
  for (const file of wanted) {
    directories.push(...await makeDirectories(dirname(file.path)));
    const old = await kindOf(file.path) === undefined ? undefined : await sha256(file.path);
    files[file.path] = await putInPlace(
      file.path,
      file.mode,
      (path) =>
        "text" in file ? Deno.writeTextFile(path, file.text) : makeFrom(file.from, file.make, path),
    );
    if (files[file.path] !== old) written.push(file.path);
    await keep();
  }
  if (cache !== undefined) {
    await remove(cache);
    await warmCache(dirname(cache), cache);
  }
  return written;
}

async function uninstall(manifestPath: string): Promise<string[]> {
  const { files, directories, caches } = await readManifest(manifestPath);
  const removed: string[] = [];
  for (const [path, digest] of Object.entries(files)) {
    if (await kindOf(path) === undefined) continue;
    if (await sha256(path) === digest) {
      await Deno.remove(path);
      removed.push(path);
    } else printNote(INSTALL.name, `${path} was changed since it was written, and stays`);
  }
  for (const path of [...caches ?? [], manifestPath]) await remove(path);
  for (const directory of directories.toReversed()) {
    const entries = await kindOf(directory) === "directory"
      ? [...Deno.readDirSync(directory)]
      : [0];
    if (entries.length === 0) await Deno.remove(directory);
  }
  return removed;
}

async function readManifest(path: string): Promise<Manifest> {
  if (await kindOf(path) === undefined) return { files: {}, directories: [] };
  try {
    const { files, directories, caches = [] } = JSON.parse(await Deno.readTextFile(path));
    return { files: { ...files }, directories: [...directories], caches: [...caches] };
  } catch (cause) {
    throw new TapkitError(`${path} cannot be parsed`, {
      mend: "delete it, and the commands that it should list, by hand",
      cause,
    });
  }
}

/** Makes a file beside `path` and renames it, because `path` may be running. Returns its SHA-256. */
async function putInPlace(
  path: string,
  mode: number,
  make: (path: string) => Promise<void>,
): Promise<string> {
  const temporary = `${path}.new`;
  try {
    await make(temporary);
    await Deno.chmod(temporary, mode);
    const digest = await sha256(temporary);
    await Deno.rename(temporary, path);
    return digest;
  } catch (error) {
    await Deno.remove(temporary).catch(() => {});
    throw error;
  }
}

async function makeFrom(from: string, make: "bundle" | "compile", path: string): Promise<void> {
  printNote(INSTALL.name, `deno ${make} ${from}`);
  try {
    await (make === "bundle" ? makeBundle(from, path) : compileBundle(path));
  } catch (cause) {
    throw new TapkitError(`deno ${make} ${from} failed: ${describe(cause)}`, {
      mend: "Deno downloads what it needs for that: check that this host has network, or " +
        `install without --${make}`,
      cause,
    });
  }
}

async function makeDirectories(path: string): Promise<string[]> {
  if (await kindOf(path) !== undefined) return [];
  const above = await makeDirectories(dirname(path));
  await Deno.mkdir(path);
  return [...above, path];
}

/** Removes a file, or a directory with everything in it, if it is there. */
async function remove(path: string): Promise<void> {
  if (await kindOf(path) !== undefined) await Deno.remove(path, { recursive: true });
}

async function kindOf(path: string): Promise<"directory" | "other" | undefined> {
  const info = await Deno.lstat(path).catch((error) => {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  });
  return info && (info.isDirectory ? "directory" : "other");
}

async function sha256(path: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", await Deno.readFile(path));
  return new Uint8Array(digest).toHex();
}

function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
