/**
 * The programs of iptables: which there are, and running them.
 *
 * @module
 */

import { describe, TapkitError, XtablesError } from "../errors.ts";
import { runSync } from "../exec.ts";
import { isFile, isThere } from "../files.ts";
import type { Family } from "../inet/ip.ts";
import type { NftTable } from "../netlink/nftables/objects.ts";
import { memoryFile } from "../sys/memfd.ts";
import { closeFd, tolerate } from "../sys/libc.ts";
import { type Netns, withNetns } from "../sys/netns.ts";
import { openIfThere, readAgain, readText } from "../sys/text.ts";

/**
 * Which of the kernel's two tables of iptables: nf_tables by its compatible programs, or the old
 * ones. A network namespace may have rules in both, and packets pass both.
 */
export type Variant = "nft" | "legacy";

const DIRECTORIES = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin"];
/** How long another process may hold the lock of the old tables. */
const LOCK_SECONDS = 10;

/** The variants whose programs are installed, the one that `iptables` stands for first. */
export function installedVariants(): Variant[] {
  const usual = variantOf(findProgram("iptables-restore"));
  const others = (["nft", "legacy"] as const).filter((variant) =>
    variant !== usual && findProgram(`iptables-${variant}-restore`) !== undefined
  );
  return usual === undefined ? others : [usual, ...others];
}

/** The old tables of iptables that have been used in the current network namespace. */
export function legacyTables(): NftTable[] {
  return FAMILIES.flatMap((family) =>
    namesOf(readText(namesPath(family)) ?? "").map((name) => ({ family, name }))
  );
}

const FAMILIES = ["ip", "ip6"] as const;

const namesPath = (family: string) => `/proc/thread-self/net/${family}_tables_names`;

const namesOf = (text: string) => text.split("\n").filter(Boolean);

/** The same of one network namespace, to be asked again and again: the kernel does not tell of them. */
export class LegacyTables implements Disposable {
  readonly #netns: Netns;
  readonly #files = new Map<string, number>();

  /** @param netns closed by its caller */
  constructor(netns: Netns) {
    this.#netns = netns;
  }

  list(): NftTable[] {
    return FAMILIES.flatMap((family) => {
      const text = this.#read(family) ?? this.#read(family) ?? "";
      return namesOf(text).map((name) => ({ family, name }));
    });
  }

  /** Undefined where the kernel's module is not loaded, or was unloaded since the file was opened. */
  #read(family: string): string | undefined {
    const file = this.#files.get(family) ?? this.#open(family);
    if (file === undefined) return undefined;
    const text = tolerate(["EIO"], () => readAgain(file, namesPath(family)));
    if (text === undefined) {
      closeFd(file);
      this.#files.delete(family);
    }
    return text;
  }

  /** Undefined as long as nobody has loaded the kernel's module. */
  #open(family: string): number | undefined {
    const path = namesPath(family);
    const file = withNetns(this.#netns, () => openIfThere(path));
    if (file !== undefined) this.#files.set(family, file);
    return file;
  }

  [Symbol.dispose](): void {
    for (const file of this.#files.values()) closeFd(file);
  }
}

/** One variant's programs, run in one network namespace. */
export class Xtables {
  readonly variant: Variant;
  readonly #netns: Netns;
  readonly #env: Readonly<Record<string, string>>;

  /**
   * @param netns closed by its caller
   * @param env added to the environment of the programs
   */
  constructor(variant: Variant, netns: Netns, env: Readonly<Record<string, string>> = {}) {
    this.variant = variant;
    this.#netns = netns;
    this.#env = env;
  }

  /**
   * What `iptables-save` prints; nothing for a family that the kernel or the host has not.
   *
   * @param table one of them, where others are not wanted; they may come all the same
   */
  save(family: Family, table?: string): string {
    if (family === 6 && !isThere("/proc/sys/net/ipv6")) return "";
    const program = this.#program(family, "save");
    if (program === undefined) return "";
    // Of the old tables, one that is named comes into being.
    const all = table === undefined || this.variant === "legacy";
    return this.#run(program, all ? [] : ["-t", table]);
  }

  /**
   * Changes rules; each table's changes take effect together, or none of them.
   *
   * Equivalent to: `iptables-restore --noflush --wait`
   *
   * @param action what errors say was attempted: `"change the rules of web/eth0"`
   * @throws {TapkitError} when a program is missing or refuses
   */
  restore(family: Family, text: string, action: string): void {
    if (text === "") return;
    const program = this.#program(family, "restore");
    const name = `${family === 4 ? "iptables" : "ip6tables"}-restore`;
    if (program === undefined) {
      throw new TapkitError(`${name} (${this.variant}) is not installed`, {
        mend: "install the package iptables",
      });
    }
    using file = memoryFile("iptables-restore", text);
    try {
      this.#run(program, ["--noflush", `--wait=${LOCK_SECONDS}`, file.path]);
    } catch (cause) {
      throw new XtablesError(`iptables cannot ${action}: ${describe(cause)}`, { cause });
    }
  }

  #run(program: string, args: readonly string[]): string {
    return withNetns(this.#netns, () => runSync(program, args, this.#env));
  }

  #program(family: Family, verb: "save" | "restore"): string | undefined {
    const name = family === 4 ? "iptables" : "ip6tables";
    const own = findProgram(`${name}-${this.variant}-${verb}`);
    if (own !== undefined) return own;
    const usual = findProgram(`${name}-${verb}`);
    return variantOf(usual) === this.variant ? usual : undefined;
  }
}

function findProgram(name: string): string | undefined {
  const path = (Deno.env.get("PATH") ?? "").split(":").filter((directory) => directory !== "");
  return [...path, ...DIRECTORIES].map((directory) => `${directory}/${name}`).find(isFile);
}

/** All of a variant's programs are links to one. */
function variantOf(program: string | undefined): Variant | undefined {
  if (program === undefined) return undefined;
  return /nft[^/]*$/.test(Deno.realPathSync(program)) ? "nft" : "legacy";
}
