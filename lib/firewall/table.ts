/**
 * Tables of nftables: their definition, and the commands that create them (pure).
 *
 * @module
 */

import { BURST_SECONDS, type NftSet } from "../netlink/nftables/elements.ts";
import { isPrefix, type SetDefinition } from "../netlink/nftables/fields.ts";
import type { NftRule } from "../netlink/nftables/objects.ts";
import type { Entry } from "./place.ts";

/**
 * Flags that nft needs to read its own listing. The kernel removes an element that counts no
 * connections from a hash table, but not from an interval set.
 */
const LIMIT_FLAGS = {
  rate: "flags dynamic;",
  connections: "flags interval; ct count over 1;",
} as const;

/** A chain of a table, and its rules. */
export interface Chain {
  readonly name: string;
  /** Its hook; a chain without a hook is a jump target. */
  readonly hook?: string;
  /** Each with the comment it is recognised by. */
  readonly rules: readonly (readonly [comment: string, rule: string])[];
}

/** A table of tapkit's. */
export interface Table {
  readonly family: "inet" | "bridge";
  readonly name: string;
  readonly sets: Readonly<Record<string, SetDefinition>>;
  /** Sets that rules fill while packets pass, in nft's language. They have no owners. */
  readonly learnt?: Readonly<Record<string, string>>;
  readonly chains: readonly Chain[];
  /** Differs from the layout of the same table in another version of tapkit. */
  readonly layout: string;
  /** The netlink messages that create its content, in base64; without them, libnftables creates it. */
  readonly messages?: string;
}

/** One of a table's sets and maps. */
export function setOf({ family, name, sets }: Table, set: string): NftSet {
  return { family, table: name, name: set, definition: sets[set]! };
}

/** All rules of a table in the kernel's order. The first one's comment tells the layout. */
export function marksOf({ chains, layout }: Table): Pick<NftRule, "chain" | "comment">[] {
  return chains.flatMap(({ name, rules }, index) =>
    rules.map(([comment], position) => ({
      chain: name,
      comment: index + position === 0 ? `${comment}, layout ${layout}` : comment,
    }))
  );
}

/** The commands that create a table without elements. They fail if the table exists. */
export function planTable(table: Table): string {
  const { family, name } = table;
  // `table … {` alone would add the rules once more.
  const lines = [
    `create table ${family} ${name}`,
    `table ${family} ${name} {`,
  ];
  for (const [set, { key, value, limit }] of Object.entries(table.sets)) {
    const fields = key.join(" . ").replaceAll("_prefix", "_addr");
    const type = fields + (value === undefined ? "" : ` : ${value.join(" . ")}`);
    const flags = limit !== undefined
      ? ` ${LIMIT_FLAGS[limit]}`
      : key.some(isPrefix)
      ? " flags interval;"
      : "";
    lines.push(`${value === undefined ? "set" : "map"} ${set} { type ${type};${flags} }`);
  }
  for (const [set, text] of Object.entries(table.learnt ?? {})) {
    lines.push(`set ${set} { ${text} }`);
  }
  const marks = marksOf(table);
  let rule = 0;
  for (const { name, hook, rules } of table.chains) {
    lines.push(`chain ${name} {`);
    if (hook !== undefined) lines.push(`type ${hook}; policy accept;`);
    for (const [, text] of rules) lines.push(`${text} comment "${marks[rule++]!.comment}"`);
    lines.push("}");
  }
  lines.push("}");
  return `${lines.join("\n")}\n`;
}

/** The commands that delete a table, whether it exists or not. */
export function planDropTable({ family, name }: Table): string {
  return `add table ${family} ${name}\ndelete table ${family} ${name}\n`;
}

/** The commands that add elements to a table. */
export function planAdd(elements: readonly Entry[], table: Table): string {
  let commands = "";
  for (const set of Object.keys(table.sets)) {
    const texts = elements.filter((element) => element.set === set).map((element) => {
      const value = element.value === undefined ? "" : ` : ${element.value.join(" . ")}`;
      return `${keyText(element, table)} comment "${element.owner}"${value}`;
    });
    if (texts.length === 0) continue;
    commands += `add element ${table.family} ${table.name} ${set} { ${texts.join(", ")} }\n`;
  }
  return commands;
}

function keyText({ set, key, limit = 0 }: Entry, table: Table): string {
  const { key: fields, limit: kind } = table.sets[set]!;
  const text = key.map((text, index) => fields[index] === "ifname" ? `"${text}"` : text).join(
    " . ",
  );
  return kind === undefined
    ? text
    : kind === "connections"
    ? `${text} ct count over ${limit}`
    : `${text} limit rate over ${limit}/second burst ${limit * BURST_SECONDS} packets`;
}
