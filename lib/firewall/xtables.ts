/**
 * The programs of iptables: which there are, and running them.
 *
 * @module
 */

import { describe, TapkitError, XtablesError } from "../errors.ts";
import { runSync } from "../exec.ts";
import { isFile, isThere, readIfThere } from "../files.ts";
import type { Family } from "../inet/ip.ts";
import type { NftTable } from "../netlink/nftables/objects.ts";
import { memoryFile } from "../sys/memfd.ts";
import { type Netns, withNetns } from "../sys/netns.ts";

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
  return ["ip", "ip6"].flatMap((family) => {
    const names = readIfThere(`/proc/thread-self/net/${family}_tables_names`) ?? "";
    return names.split("\n").filter(Boolean).map((name) => ({ family, name }));
  });
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
