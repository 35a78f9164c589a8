/**
 * Writes lib/firewall/main-table.ts from the rules in lib/firewall/ruleset.ts and limits-table.ts:
 * `deno task table`, as root.
 */

import { LIMITS_TABLE } from "../lib/firewall/limits-table.ts";
import { MAIN_TABLE } from "../lib/firewall/ruleset.ts";
import type { Table } from "../lib/firewall/table.ts";
import { compileTable, fingerprint } from "./support/main-table.ts";

function constants(prefix: string, what: string, table: Table): string {
  const layout = fingerprint(table);
  const lines = compileTable(table, layout).toBase64().match(/.{1,98}/g) ?? [];
  return `
/** The fingerprint of the layout of ${what}, which those of another version of tapkit do not have. */
export const ${prefix}LAYOUT = "${layout}";

/** Its chains, sets and rules: netlink messages, in base64. */
export const ${prefix}MESSAGES = \`
${lines.join("\n")}
\`;
`;
}

Deno.writeTextFileSync(
  new URL("../lib/firewall/main-table.ts", import.meta.url),
  `/**
 * The tables of all guests as messages for the kernel. Written by \`deno task table\` from the rules in
 * ruleset.ts and limits-table.ts, which libnftables reads for it; a test sees that they are the same.
 *
 * @module
 */
${constants("", "the table", MAIN_TABLE)}${
    constants("LIMITS_", "the table of limits", LIMITS_TABLE)
  }`,
);
