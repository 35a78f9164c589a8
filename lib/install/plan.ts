/**
 * The files that an installation consists of.
 *
 * @module
 */

import { fromFileUrl, join } from "@std/path";
import { DENO_DIR_BEFORE } from "../caller.ts";
import { RESIDENT_CACHE, RESIDENT_V8_FLAGS } from "../exec.ts";
import type { Command } from "../cli/args.ts";
import { BUNDLE } from "./bundle.ts";
import { bashCompletion, COMPLETION_DIRS, fishCompletion, zshCompletion } from "./completion.ts";
import { MAN_SECTION, manPage, pageName } from "./man.ts";
import type { Installation, InstalledFile } from "./manifest.ts";
import { SYSCTL_DIR, SYSCTLS, UNIT_DIR, units } from "./units.ts";

/** The command lines that there are. */
export interface Tables {
  /** Every command, `tapkit` included. */
  readonly commands: readonly Command[];
  /** Those of tapkit alone, as `tapkit ls`. */
  readonly words: readonly Command[];
}

/** Where an installation has its files, below the prefix. */
export interface Layout {
  readonly bin: string;
  readonly share: string;
  /** The Deno that stays. */
  readonly deno: string;
  /** What Deno keeps for the bundle. Its own cache is everybody's, and may be emptied by others. */
  readonly cache: string;
  readonly manifest: string;
}

/** The directories of an installation. */
export function layoutOf(prefix: string): Layout {
  const share = join(prefix, "share/tapkit");
  return {
    bin: join(prefix, "bin"),
    share,
    deno: join(prefix, "lib/tapkit/deno"),
    cache: join(share, "cache"),
    manifest: join(share, "installed.json"),
  };
}

/**
 * The Deno that installed commands run by: this one, or a copy of it where it is in a cache that is
 * emptied sooner or later, as npx has it.
 */
export function lastingDeno(prefix: string, path: string): string {
  return /\/(?:_npx|_cacache|node_modules)\//.test(path) || path.startsWith("/tmp/")
    ? layoutOf(prefix).deno
    : path;
}

/**
 * The files of an installation, in the order to write them.
 *
 * @param from where a binary, or the Deno to copy, is
 */
export function plan(
  prefix: string,
  installation: Installation,
  { commands, words }: Tables,
  from: { readonly deno: string; readonly binary?: string | undefined },
): InstalledFile[] {
  const { bin, share, deno } = layoutOf(prefix);
  const { how, version, systemd } = installation;
  const names = commands.map(({ name }) => name).sort();
  const all = [...commands, ...words];
  const file = (path: string, text: string) => ({ path: join(prefix, path), mode: 0o644, text });
  const scripts = names.filter((name) => name !== "tapkit");
  return [
    ...how === "binary" ? binaryFiles(bin, scripts, from.binary) : [
      ...installation.deno === deno ? [{ path: deno, mode: 0o755, copy: from.deno }] : [],
      ...how === "run" ? [] : Object.keys(BUNDLE).map((make) => ({
        path: `${share}/${make}`,
        mode: 0o644,
        make,
      })),
      ...["tapkit", ...scripts].map((name) => ({
        path: `${bin}/${name}`,
        mode: 0o755,
        text: launcher(name, prefix, installation),
      })),
    ],
    ...all.map((command) =>
      file(
        `share/man/man${MAN_SECTION}/${pageName(command)}.${MAN_SECTION}`,
        manPage(command, version, all.map(pageName).sort()),
      )
    ),
    file(`${COMPLETION_DIRS.bash}/tapkit`, bashCompletion(commands, words)),
    ...scripts.map((name) => ({
      path: join(prefix, COMPLETION_DIRS.bash, name),
      link: "tapkit",
    })),
    file(`${COMPLETION_DIRS.zsh}/_tapkit`, zshCompletion(commands, words)),
    ...commands.map((command) =>
      file(`${COMPLETION_DIRS.fish}/${command.name}.fish`, fishCompletion(command, all))
    ),
    ...systemd
      ? [
        ...Object.entries(units(bin)).map(([name, text]) => file(`${UNIT_DIR}/${name}`, text)),
        file(`${SYSCTL_DIR}/${SYSCTLS.name}`, SYSCTLS.text),
      ]
      : [],
  ];
}

/** One binary, which answers to the name that it is called by. */
function binaryFiles(
  bin: string,
  scripts: readonly string[],
  binary: string | undefined,
): InstalledFile[] {
  const path = `${bin}/tapkit`;
  return [
    { path, mode: 0o755, ...binary === undefined ? { make: "tapkit" } : { copy: binary } },
    ...scripts.map((name) => ({ path: `${bin}/${name}`, link: "tapkit" })),
  ];
}

function launcher(name: string, prefix: string, { how, deno = "" }: Installation): string {
  const { cache, share } = layoutOf(prefix);
  const sources = fromFileUrl(new URL("../../scripts", import.meta.url));
  const run = `${quote(deno)} run -A`;
  const command = how === "bundle"
    ? `${run} --no-config ${quote(`${share}/tapkit.js`)}${name === "tapkit" ? "" : ` ${name}`}`
    : `${run} ${quote(`${sources}/${name}.ts`)}`;
  const isResident = name === "serve" || name === "serve-dhcp";
  const flags = isResident ? ` DENO_V8_FLAGS="\${DENO_V8_FLAGS-${RESIDENT_V8_FLAGS}}"` : "";
  // Whoever may not write there has a cache of their own, as for any program of Deno's.
  const environment = how === "bundle"
    ? `cache=${quote(isResident ? join(cache, RESIDENT_CACHE) : cache)}
if [ -w "$cache" ]; then export ${DENO_DIR_BEFORE}="\${DENO_DIR-}" DENO_DIR="$cache"${flags}; fi
`
    : "";
  return `#!/bin/sh\n${environment}exec ${command} "$@"\n`;
}

function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
