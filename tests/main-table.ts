/**
 * Writes lib/firewall/main-table.ts from lib/firewall/ruleset.ts: `deno task table`, as root.
 */

import { layoutText } from "../lib/firewall/ruleset.ts";
import { compileMainTable, fingerprint } from "./support/main-table.ts";

const layout = fingerprint(layoutText());
const lines = compileMainTable(layout).toBase64().match(/.{1,98}/g) ?? [];
Deno.writeTextFileSync(
  new URL("../lib/firewall/main-table.ts", import.meta.url),
  `/**
 * The table of all guests as messages for the kernel. Written by \`deno task table\` from the rules in
 * ruleset.ts, which libnftables reads for it; a test sees that they are the same.
 *
 * @module
 */

/** The fingerprint of the table's layout, which tables of another version of tapkit do not have. */
export const LAYOUT = "${layout}";

/** Its chains, sets and rules: netlink messages, in base64. */
export const MESSAGES = \`
${lines.join("\n")}
\`;
`,
);
