/**
 * What a host needs beside tapkit itself, and getting it from the distribution.
 *
 * @module
 */

import { describe, TapkitError } from "../errors.ts";
import { runSync } from "../exec.ts";
import { isThere, namesIn } from "../files.ts";

/** Something that a package brings. */
interface Need {
  readonly what: string;
  /** The package's name by package manager; dnf and zypper also take what a package provides. */
  readonly names: Readonly<Record<Manager, string>>;
  readonly present: (root: string) => boolean;
}

type Manager = "apt-get" | "dnf" | "zypper";

/** What is asked of each package manager, to install without a question. */
const INSTALL: Readonly<Record<Manager, readonly string[]>> = {
  "apt-get": [
    ...["-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=1"],
    ...["-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"],
    ...["install", "-y", "--no-install-recommends"],
  ],
  "dnf": ["install", "-y", "--setopt=install_weak_deps=False"],
  "zypper": ["--non-interactive", "install", "--no-recommends"],
};

const LIBRARY_DIRS = ["usr/lib64", "lib64", "usr/lib", "lib"];

const NFTABLES: Need = {
  what: "libnftables.so.1",
  names: {
    "apt-get": "libnftables1",
    "dnf": "libnftables.so.1()(64bit)",
    "zypper": "libnftables.so.1()(64bit)",
  },
  present: (root) =>
    LIBRARY_DIRS.flatMap((name) => [
      `${root}${name}`,
      ...namesIn(`${root}${name}`).filter((below) => below.endsWith("-linux-gnu"))
        .map((below) => `${root}${name}/${below}`),
    ]).some((directory) => isThere(`${directory}/libnftables.so.1`)),
};

const CNI_PLUGINS: Need = {
  what: "CNI plugins",
  names: {
    "apt-get": "containernetworking-plugins",
    "dnf": "containernetworking-plugins",
    "zypper": "cni-plugins",
  },
  present: (root) =>
    ["opt/cni/bin", "usr/lib/cni", "usr/libexec/cni"]
      .some((directory) => isThere(`${root}${directory}/bridge`)),
};

const DOCKER: Need = {
  what: "Docker",
  names: { "apt-get": "docker.io", "dnf": "moby-engine", "zypper": "docker" },
  present: (root) =>
    ["usr/bin/dockerd", "usr/sbin/dockerd"].some((path) => isThere(`${root}${path}`)),
};

/** How to look, and what to do. */
export interface PackageOptions {
  /** Whether these are wanted too: failing to get them is an error. */
  readonly withCniPlugins: boolean;
  readonly withDocker: boolean;
  /** Whether packages may be installed; otherwise they are only named. */
  readonly mayInstall: boolean;
  readonly note: (text: string) => void;
  /** Where the system is, with a slash at its end. */
  readonly root?: string;
  readonly run?: typeof runSync;
}

/**
 * Installs what is missing with apt, dnf or zypper. Without libnftables only some of what tapkit does
 * is impossible, so that is a note where it cannot be had.
 *
 * @returns the packages that were installed
 * @throws {TapkitError} when what is asked for cannot be had
 */
export function installPackages(options: PackageOptions): string[] {
  const { withCniPlugins, withDocker, mayInstall, note, root = "/", run = runSync } = options;
  const asked = [...withCniPlugins ? [CNI_PLUGINS] : [], ...withDocker ? [DOCKER] : []];
  return [NFTABLES, ...asked].flatMap((need) => {
    if (need.present(root)) return [];
    const failed = (why: string, mend: string) => {
      if (need !== NFTABLES) throw new TapkitError(why, { mend });
      note(`${why}; isolation, egress rules, and other firewalls' chains need it: ${mend}`);
      return [];
    };
    const manager = (Object.keys(INSTALL) as Manager[])
      .find((name) => isThere(`${root}usr/bin/${name}`));
    if (manager === undefined) {
      return failed(
        `${need.what} is missing, and there is no apt, dnf or zypper to install it`,
        "install it by hand",
      );
    }
    const name = need.names[manager];
    const byHand = `${manager} install ${/[()]/.test(name) ? `'${name}'` : name}`;
    if (!mayInstall) return failed(`${need.what} is missing`, `run ${byHand}`);
    note(`installing ${name} with ${manager}`);
    try {
      installOne(manager, name, run);
      return [name];
    } catch (error) {
      return failed(
        `${need.what} is missing, and ${name} could not be installed: ${describe(error)}`,
        `when the package can be had, run ${byHand}`,
      );
    }
  });
}

function installOne(manager: Manager, name: string, run: typeof runSync): void {
  const env = { DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C.UTF-8" };
  const args = INSTALL[manager];
  try {
    run(manager, [...args, name], env);
  } catch (error) {
    if (manager !== "apt-get") throw error;
    // A new image has no lists of packages, or old ones.
    run(manager, [...args.slice(0, args.indexOf("install")), "update"], env);
    run(manager, [...args, name], env);
  }
}

/**
 * Refuses a system whose C library is musl.
 *
 * @throws {TapkitError} which says why
 */
export function refuseMusl(root = "/"): void {
  const loaders = ["lib", "lib64"].flatMap((name) => namesIn(`${root}${name}`));
  const has = (pattern: RegExp) => loaders.some((name) => pattern.test(name));
  if (!has(/^ld-musl-/) || has(/^ld-linux-/)) return;
  throw new TapkitError(
    "this system's C library is musl: tapkit calls glibc's libc.so.6, and Deno's binaries need it",
    { mend: "use a distribution with glibc, such as Debian, Fedora or openSUSE" },
  );
}
