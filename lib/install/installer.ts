/**
 * What install.ts does: the files, the packages and the units together.
 *
 * @module
 */

import { join, resolve } from "@std/path";
import deno from "../../deno.json" with { type: "json" };
import type { InstallCommand } from "../cli/install-command.ts";
import { describe, InputError, TapkitError } from "../errors.ts";
import { RESIDENT_CACHE, RESIDENT_V8_FLAGS } from "../exec.ts";
import { isFile, isThere } from "../files.ts";
import { compileBinaries, requireArchitecture, versionOf } from "./binary.ts";
import { hasSources, makeBundle, warmCache } from "./bundle.ts";
import {
  differences,
  install,
  type Installation,
  type InstalledFile,
  readManifest,
  uninstall,
} from "./manifest.ts";
import { installPackages, refuseMusl } from "./packages.ts";
import { lastingDeno, type Layout, layoutOf, plan, type Tables } from "./plan.ts";
import {
  disableUnits,
  enableUnits,
  reloadUnits,
  requireSystemd,
  unitDifferences,
} from "./systemd.ts";
import { SYSCTL_DIR, SYSCTLS } from "./units.ts";

const DEFAULT_PREFIX = "/usr/local";

/** What an {@linkcode Installer} needs beside its request. */
export interface InstallerOptions {
  readonly tables: Tables;
  readonly note: (text: string) => void;
}

/** What is asked for, with what is not said filled in. */
type InstallRequest = Pick<InstallCommand, "systemd" | "withCniPlugins" | "withDocker"> & {
  readonly how: Installation["how"];
  readonly binary: string | undefined;
};

/** One call of install.ts. */
export class Installer {
  /** The absolute path of the directory that everything is in. */
  readonly prefix: string;
  readonly #request: InstallRequest;
  readonly #options: InstallerOptions;
  readonly #layout: Layout;
  /** Whether packages and units of the host are its business. */
  readonly #isHosts: boolean;

  constructor(
    { how, binary, ...request }: Omit<InstallCommand, "verb" | "cloud">,
    options: InstallerOptions,
  ) {
    this.prefix = resolve(request.prefix ?? DEFAULT_PREFIX);
    this.#isHosts = request.prefix === undefined;
    const itself = how === undefined && Deno.build.standalone;
    this.#request = {
      ...request,
      how: itself ? "binary" : how ?? "run",
      binary: itself ? Deno.execPath() : binary && resolve(binary),
    };
    this.#options = options;
    this.#layout = layoutOf(this.prefix);
  }

  /** What would be written, as text. */
  print(): string {
    this.#requireSources();
    return this.#plan(this.#asked()).map((file) =>
      `# ${file.path}\n${
        "text" in file
          ? file.text
          : "link" in file
          ? `(link to ${file.link})\n`
          : "copy" in file
          ? `(copy of ${file.copy})\n`
          : `(deno ${this.#request.how === "binary" ? "compile" : "bundle"})\n`
      }`
    ).join("\n").trimEnd();
  }

  /** What differs from what was installed, in sentences. */
  async check(): Promise<string[]> {
    const { installation } = readManifest(this.#layout.manifest);
    return [
      ...await differences(this.#layout.manifest, (of) => this.#plan(of), deno.version),
      ...this.#isHosts && installation?.systemd ? unitDifferences() : [],
    ];
  }

  /** Removes what was installed. Returns the files. */
  async uninstall(): Promise<string[]> {
    const { note } = this.#options;
    const { installation } = readManifest(this.#layout.manifest);
    const hasUnits = this.#isHosts && installation?.systemd === true;
    if (hasUnits) disableUnits(note);
    const removed = await uninstall(this.#layout.manifest, note);
    if (hasUnits) reloadUnits();
    return removed;
  }

  /**
   * Installs.
   *
   * @returns the files whose content is another than before, and the packages that were installed
   */
  async install(): Promise<{ written: string[]; packages: string[] }> {
    const { systemd, binary, how, withCniPlugins, withDocker } = this.#request;
    const { note } = this.#options;
    refuseMusl();
    if (binary === undefined) this.#requireSources();
    else requireBinary(binary);
    if (this.#isHosts && systemd) requireSystemd();
    const { manifest, cache } = this.#layout;
    const before = readManifest(manifest).installation;
    const packages = installPackages({
      ...{ withCniPlugins, withDocker, note },
      mayInstall: this.#isHosts,
    });
    const installation = this.#asked();
    if (this.#isHosts && before?.systemd && !systemd) disableUnits(note);
    const written = await install(this.#plan(installation), {
      manifest,
      installation,
      caches: how === "bundle" ? [cache] : [],
      make: (name, path) => this.#make(name, path),
      note,
    });
    if (how === "bundle") await this.#warm();
    if (this.#isHosts && systemd) await this.#enable(before !== undefined);
    return { written, packages };
  }

  /** Enables the units. If that fails, a new installation goes; another one stays as it is now. */
  async #enable(wasInstalled: boolean): Promise<void> {
    try {
      enableUnits(join(this.prefix, SYSCTL_DIR, SYSCTLS.name));
    } catch (cause) {
      if (!wasInstalled) await this.uninstall();
      throw new TapkitError(`the units cannot be enabled: ${describe(cause)}`, {
        mend: `see journalctl -u tapkit${wasInstalled ? "; the files are installed" : ""}`,
        cause,
      });
    }
  }

  #requireSources(): void {
    if (this.#request.binary !== undefined || hasSources()) return;
    throw new InputError("there are no sources here to install", {
      mend: "name a binary with --from-binary, or run install.ts in a checkout",
    });
  }

  #asked(): Installation {
    const { how, systemd } = this.#request;
    return {
      version: deno.version,
      how,
      systemd,
      ...how === "binary" ? {} : { deno: lastingDeno(this.prefix, Deno.execPath()) },
    };
  }

  #plan(installation: Installation): InstalledFile[] {
    const { binary } = this.#request;
    const from = { deno: Deno.execPath(), binary };
    return plan(this.prefix, installation, this.#options.tables, from);
  }

  async #make(name: string, path: string): Promise<void> {
    const { how } = this.#request;
    const work = how === "binary" ? "deno compile" : `deno bundle ${name}`;
    this.#options.note(work);
    try {
      await (how === "binary" ? compileBinaries([{ path }]) : makeBundle(name, path));
    } catch (cause) {
      throw new TapkitError(`${work} failed: ${describe(cause)}`, {
        mend: "Deno downloads what it needs for that: check that this host has network, or " +
          `install without --${how === "binary" ? "compile" : "bundle"}`,
        cause,
      });
    }
  }

  /** Fills Deno's cache for the bundle. Without, commands start slower. */
  async #warm(): Promise<void> {
    const { share, cache } = this.#layout;
    try {
      if (isThere(cache)) await Deno.remove(cache, { recursive: true });
      await warmCache(share, cache);
      await warmCache(share, join(cache, RESIDENT_CACHE), { DENO_V8_FLAGS: RESIDENT_V8_FLAGS });
    } catch (error) {
      this.#options.note(`warning: the first commands start slower: ${describe(error)}`);
    }
  }
}

function requireBinary(path: string): void {
  if (!isFile(path)) {
    throw new InputError(`there is no file ${path}`, {
      mend: "name the binary that install.ts --compile or deno task compile made",
    });
  }
  requireArchitecture(path, Deno.build.arch);
  versionOf(path);
}
