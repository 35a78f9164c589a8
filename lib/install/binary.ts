/**
 * Binaries that hold Deno and the scripts.
 *
 * @module
 */

import { describe, TapkitError } from "../errors.ts";
import { runSync } from "../exec.ts";
import { BUNDLE, makeBundle } from "./bundle.ts";

/** The processors that binaries are made for: Deno's name, and ELF's number (linux/elf-em.h). */
export const ARCHITECTURES = {
  x86_64: { target: "x86_64-unknown-linux-gnu", machine: 62 /* EM_X86_64 */ },
  aarch64: { target: "aarch64-unknown-linux-gnu", machine: 183 /* EM_AARCH64 */ },
} as const;

/** A processor that a binary is made for. */
export type Architecture = keyof typeof ARCHITECTURES;

/** A binary to make. */
export interface Binary {
  readonly path: string;
  readonly arch?: Architecture;
  /** The one script that it is; it is all of them when absent. */
  readonly script?: string;
}

/**
 * Makes binaries, from one bundle of the scripts.
 *
 * @param done is told of each, with its size in bytes
 * @throws {TapkitError} when Deno cannot: it downloads its runtime, unless DENORT_BIN names one
 */
export async function compileBinaries(
  binaries: readonly Binary[],
  done: (binary: Binary, bytes: number) => void = () => {},
): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "tapkit-compile-" });
  try {
    for (const name of Object.keys(BUNDLE)) {
      await makeBundle(name, `${directory}/${name}`, { hot: new Set(), named: true });
    }
    for (const binary of binaries) {
      compile(`${directory}/tapkit.js`, binary);
      done(binary, (await Deno.stat(binary.path)).size);
    }
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

function compile(bundle: string, { path, arch = Deno.build.arch, script }: Binary): void {
  const { target } = ARCHITECTURES[arch];
  // A binary's code cache is a file in /tmp, whose name is known: anybody may have made it.
  const flags = ["--quiet", "-A", "--no-config", "--no-code-cache", "--target", target];
  const words = script === undefined ? [] : [script];
  try {
    runSync(Deno.execPath(), ["compile", ...flags, "--output", path, bundle, ...words]);
  } catch (cause) {
    throw new TapkitError(`${path} cannot be made: ${describe(cause)}`, {
      mend: `check that this host has network, from which Deno takes its runtime for ${target}, ` +
        "or name that with DENORT_BIN",
      cause,
    });
  }
  requireArchitecture(path, arch);
  if (arch === Deno.build.arch) versionOf(path);
}

/**
 * The version of tapkit that a binary is.
 *
 * @throws {TapkitError} when it does not run here, or is not tapkit
 */
export function versionOf(path: string): string {
  let said: string;
  try {
    said = runSync(path, ["--version"]);
  } catch (cause) {
    throw new TapkitError(`${path} does not run: ${describe(cause)}`, {
      mend: "make it for this machine, with the Deno that DENORT_BIN is of",
      cause,
    });
  }
  const version = /^\S+ (\d+\.\d+\.\d+\S*)$/m.exec(said)?.[1];
  if (version !== undefined) return version;
  throw new TapkitError(`${path} is not tapkit: it does not print its version`, {
    mend: "name a binary that install.ts --compile or deno task compile made",
  });
}

/**
 * Refuses a binary for another processor: DENORT_BIN is used whatever the target.
 *
 * @throws {TapkitError} when it is for another, or is none
 */
export function requireArchitecture(path: string, arch: Architecture): void {
  using file = Deno.openSync(path);
  const header = new Uint8Array(20);
  const read = file.readSync(header) ?? 0;
  const view = new DataView(header.buffer);
  const isElf = read === header.length && view.getUint32(0) === 0x7f454c46;
  // elf(5): e_machine
  if (isElf && view.getUint16(18, true) === ARCHITECTURES[arch].machine) return;
  throw new TapkitError(`${path} is not a program for ${arch}`, {
    mend: "unset DENORT_BIN, or let it name a runtime for that",
  });
}
