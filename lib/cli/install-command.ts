/**
 * install.ts's command line: its table and its rules.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import { type Command, exclusive, type Parsed } from "./args.ts";
import { withoutUndefined } from "./cli.ts";

/** Its table. */
export const INSTALL = {
  name: "install.ts",
  summary: "install tapkit's commands on this host",
  usage: [
    "[--prefix DIR] [--run | --bundle | --compile | --from-binary FILE] [--systemd] " +
    "[--with-cni-plugins] [--print]",
    "[--prefix DIR] --check | --uninstall",
    "--cloud-init [--binary-url URL --sha256 SUM] [--network default | --network weave " +
    "[--peers A,B]] [--vm NAME [--ports HOST:VM]…]",
  ],
  groups: [
    { title: "how", options: ["run", "bundle", "compile", "from-binary", "prefix"] },
    { title: "what else", options: ["systemd", "with-cni-plugins", "with-docker"] },
    { title: "instead of installing", options: ["print", "check", "uninstall"] },
    {
      title: "user data for a new instance",
      options: ["cloud-init", "binary-url", "sha256", "network", "peers", "vm", "ports"],
    },
  ],
  options: [
    {
      name: "prefix",
      metavar: "DIR",
      help: "where all files go; nothing outside of it is changed then: units are not enabled, " +
        "and missing packages are named, not installed",
      default: "/usr/local",
    },
    {
      name: "run",
      help: "the commands run the sources in this directory (default); a binary installs itself",
    },
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
    { name: "with-docker", help: "also install the distribution's package of Docker" },
    { name: "print", help: "print what would be written, and write nothing" },
    { name: "check", help: "compare what was installed with what is there; change nothing" },
    {
      name: "uninstall",
      alias: ["--remove", "--rm"],
      help: "remove what was written; files that were changed since stay",
    },
    {
      name: "cloud-init",
      help: "print user data that makes a new instance a host for VMs: tapkit with its units, a " +
        "network, and a VM if one is named",
    },
    {
      name: "binary-url",
      metavar: "URL",
      help:
        "with --cloud-init, where the instance fetches the binary from; without, the document " +
        "carries the sources, and the instance fetches Deno with npm",
    },
    { name: "sha256", metavar: "SUM", help: "the SHA-256 of that binary, in hexadecimal" },
    {
      name: "network",
      metavar: "NETWORK",
      choices: ["default", "weave"],
      help: "with --cloud-init, the network of its VMs",
      default: "default",
    },
    { name: "peers", metavar: "A,B", help: "with --network weave, its other hosts" },
    { name: "vm", metavar: "NAME", help: "with --cloud-init, attach a VM of this name" },
    {
      name: "ports",
      metavar: "HOST:VM[/PROTO]",
      repeat: true,
      help: "with --vm, publish a port",
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
    {
      does: "make a new instance a host with a VM",
      command: "deno run -A install.ts --cloud-init --vm web --ports 8080:80 >user-data",
    },
  ],
  exitCodes: [["3", "--check found a difference"]],
} as const satisfies Command;

/** What the instance is to be. */
export interface CloudInitRequest {
  /** Where the binary is, and its SHA-256; without it the document carries the sources. */
  readonly binary?: { readonly url: string; readonly sha256: string };
  readonly network: "default" | "weave";
  /** With Weave Net, its other hosts. */
  readonly peers?: string;
  /** A VM to attach. */
  readonly vm?: { readonly name: string; readonly ports: readonly string[] };
}

/** What install.ts does. */
export type InstallVerb = "install" | "print" | "check" | "uninstall" | "cloud-init";

/** A valid command line of install.ts. */
export interface InstallCommand {
  readonly verb: InstallVerb;
  /** Absent for the host's own directories. */
  readonly prefix?: string;
  /** Absent where it is not said. */
  readonly how?: "run" | "bundle" | "binary";
  /** The binary to install; one is made when it is absent. */
  readonly binary?: string;
  readonly systemd: boolean;
  readonly withCniPlugins: boolean;
  readonly withDocker: boolean;
  /** With the verb `cloud-init`. */
  readonly cloud?: CloudInitRequest;
}

const VERBS = ["print", "check", "uninstall", "cloud-init"] as const;
const WAYS = ["run", "bundle", "compile"] as const;
/** What says how to install. */
const SHAPING = [...WAYS, "from-binary", "systemd", "with-cni-plugins", "with-docker"] as const;
const OF_CLOUD_INIT = ["binary-url", "sha256", "network", "peers", "vm", "ports"] as const;

type InstallFlags = Parsed<typeof INSTALL>["flags"];

/** Checks which flags go together. Throws {@linkcode InputError}. */
export function readInstallCommand({ flags }: Parsed<typeof INSTALL>): InstallCommand {
  const { "from-binary": binary, prefix } = flags;
  exclusive({ ...flags, "from-binary": binary !== undefined }, [...WAYS, "from-binary"]);
  exclusive(flags, VERBS);
  const verb = VERBS.find((name) => flags[name]) ?? "install";
  if (verb === "check" || verb === "uninstall") {
    refuseWith(verb, flags, SHAPING, "leave it out: how tapkit was installed is known");
  }
  if (verb === "cloud-init") {
    refuseWith(
      verb,
      flags,
      ["prefix", ...SHAPING],
      "leave it out: it is the instance's own matter",
    );
  } else refuseWith(undefined, flags, OF_CLOUD_INIT, "add --cloud-init");
  return {
    verb,
    systemd: flags.systemd,
    withCniPlugins: flags["with-cni-plugins"],
    withDocker: flags["with-docker"],
    ...withoutUndefined({
      prefix,
      binary,
      how: flags.compile || binary !== undefined
        ? "binary" as const
        : flags.bundle
        ? "bundle" as const
        : flags.run
        ? "run" as const
        : undefined,
      cloud: verb === "cloud-init" ? readCloudInit(flags) : undefined,
    }),
  };
}

function refuseWith(
  verb: InstallVerb | undefined,
  flags: InstallFlags,
  names: readonly (keyof InstallFlags)[],
  mend: string,
): void {
  const given = (name: keyof InstallFlags) => {
    const value = flags[name];
    return Array.isArray(value) ? value.length > 0 : Boolean(value);
  };
  const other = names.find(given);
  if (other === undefined) return;
  const message = verb === undefined
    ? `--${other} is for --cloud-init`
    : `--${other} does not go with --${verb}`;
  throw new InputError(message, { mend });
}

function readCloudInit(flags: InstallFlags): CloudInitRequest {
  const { "binary-url": url, sha256, network = "default", peers, vm: name, ports } = flags;
  if (url !== undefined && !/^https?:\/\/[\x21-\x7e]+$/.test(url)) {
    throw new InputError(`--binary-url ${JSON.stringify(url)} is no address of a page`, {
      mend: "write --binary-url https://example.org/tapkit",
    });
  }
  if ((url === undefined) !== (sha256 === undefined)) {
    throw new InputError("--binary-url and --sha256 go together", {
      mend: "give both: sha256sum prints the sum of a file",
    });
  }
  if (sha256 !== undefined && !/^[0-9a-f]{64}$/i.test(sha256)) {
    throw new InputError(`--sha256 ${JSON.stringify(sha256)} is no SHA-256`, {
      mend: "write the 64 digits that sha256sum prints",
    });
  }
  if (peers !== undefined && network !== "weave") {
    throw new InputError("--peers is for --network weave", { mend: "add --network weave" });
  }
  if (name === undefined && ports.length > 0) {
    throw new InputError("--ports is for --vm", { mend: "add --vm NAME" });
  }
  if (peers !== undefined && !/^[\w.:-]+(,[\w.:-]+)*$/.test(peers)) {
    throw new InputError(`--peers ${JSON.stringify(peers)} is no list of hosts`, {
      mend: "write --peers 192.0.2.1,192.0.2.2",
    });
  }
  return {
    network,
    ...withoutUndefined({
      peers,
      binary: url === undefined ? undefined : { url, sha256: sha256!.toLowerCase() },
      vm: name === undefined ? undefined : { name, ports },
    }),
  };
}
