/**
 * install.ts's command line: its table and its rules.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import { type Command, exclusive, type Parsed } from "./args.ts";

/** Its table. */
export const INSTALL = {
  name: "install.ts",
  summary: "install tapkit's commands on this host",
  usage: [
    "[--prefix DIR] [--run | --bundle | --compile | --from-binary FILE] [--systemd] " +
    "[--with-cni-plugins] [--print]",
    "[--prefix DIR] --check | --uninstall",
  ],
  options: [
    {
      name: "prefix",
      metavar: "DIR",
      help: "where all files go; nothing outside of it is changed then: units are not enabled, " +
        "and missing packages are named, not installed",
      default: "/usr/local",
    },
    { name: "run", help: "the commands run the sources in this directory (default)" },
    {
      name: "bundle",
      help: "install files made of the sources: the commands start faster, and do not need this " +
        "directory",
    },
    {
      name: "compile",
      help: "install a binary made of the sources: the commands need neither Deno nor this " +
        "directory",
    },
    {
      name: "from-binary",
      metavar: "FILE",
      help: "install this binary, which --compile or deno task compile made",
    },
    {
      name: "systemd",
      alias: ["--unit"],
      help: "also install and enable units: tapkit.service, the resident, from boot; " +
        "tapkit-restore.service, which brings VMs back after a reboot; and tapkit-vm@.service, " +
        "for VMMs; with settings of the kernel",
    },
    {
      name: "with-cni-plugins",
      help: "also install the distribution's package of CNI plugins",
    },
    { name: "print", help: "print what would be written, and write nothing" },
    { name: "check", help: "compare what was installed with what is there; change nothing" },
    {
      name: "uninstall",
      alias: ["--remove", "--rm"],
      help: "remove what was written; files that were changed since stay",
    },
  ],
  examples: [
    { does: "install to /usr/local/bin", command: "deno run -A install.ts" },
    {
      does: "install commands that start faster, and serve from boot",
      command: "deno run -A install.ts --bundle --systemd",
    },
    { does: "install a binary", command: "deno run -A install.ts --compile" },
    { does: "remove all of it", command: "deno run -A install.ts --uninstall" },
  ],
  exitCodes: [["3", "--check found a difference"]],
} as const satisfies Command;

/** What install.ts does. */
export type InstallVerb = "install" | "print" | "check" | "uninstall";

/** A valid command line of install.ts. */
export interface InstallCommand {
  readonly verb: InstallVerb;
  /** Absent for the host's own directories. */
  readonly prefix?: string;
  readonly how: "run" | "bundle" | "binary";
  /** The binary to install; one is made when it is absent. */
  readonly binary?: string;
  readonly systemd: boolean;
  readonly withCniPlugins: boolean;
}

const WAYS = ["run", "bundle", "compile"] as const;

/** Checks which flags go together. Throws {@linkcode InputError}. */
export function readInstallCommand({ flags }: Parsed<typeof INSTALL>): InstallCommand {
  const { "from-binary": binary, prefix } = flags;
  const given = { ...flags, "from-binary": binary !== undefined };
  exclusive(given, [...WAYS, "from-binary"]);
  exclusive(flags, ["print", "check", "uninstall"]);
  const verb = (["print", "check", "uninstall"] as const).find((name) => flags[name]) ?? "install";
  if (verb === "check" || verb === "uninstall") {
    const other = ([...WAYS, "from-binary", "systemd", "with-cni-plugins"] as const)
      .find((name) => given[name]);
    if (other !== undefined) {
      throw new InputError(`--${other} does not go with --${verb}`, {
        mend: "leave it out: how tapkit was installed is known",
      });
    }
  }
  return {
    verb,
    how: flags.compile || binary !== undefined ? "binary" : flags.bundle ? "bundle" : "run",
    systemd: flags.systemd,
    withCniPlugins: flags["with-cni-plugins"],
    ...prefix === undefined ? {} : { prefix },
    ...binary === undefined ? {} : { binary },
  };
}
