/**
 * What doctor found, for people.
 *
 * @module
 */

import { wrap } from "./args.ts";
import { type Paint, plain } from "./style.ts";

/** What one check found. */
interface Row {
  readonly name: string;
  readonly ok: boolean;
  readonly detail: string;
  readonly mend: string;
  readonly fixed?: readonly string[];
}

const NAME_WIDTH = 30;
const INDENT = 6;
const NARROWEST = 30;

/**
 * A check as lines of text: its state and name, what was found, what was repaired, what to do.
 *
 * @param width of the terminal, in characters
 */
export function formatCheck(
  { name, ok, detail, mend, fixed = [] }: Row,
  width: number,
  paint: Paint = plain,
): string {
  const state = (ok ? fixed.length > 0 ? "fixed" : "ok" : "FAIL").padEnd(INDENT);
  const left = INDENT + NAME_WIDTH;
  const paragraphs = [
    detail,
    ...fixed.length === 0 ? [] : [`fixed: ${fixed.join("; ")}`],
    ...mend === "" ? [] : [`mend: ${mend}`],
  ];
  const lines = paragraphs.flatMap((text) => wrap(text, Math.max(NARROWEST, width - left)));
  const [first = "", ...rest] = lines.map((line) => plain(line, "bold"));
  return [
    paint(state, ok ? "green" : "red") + paint(name.padEnd(NAME_WIDTH), "bold") + first,
    ...rest.map((line) => " ".repeat(left) + line),
  ].join("\n");
}

/** The line after all checks. */
export function formatSummary(checks: readonly Row[]): string {
  const failed = checks.filter(({ ok }) => !ok).length;
  return failed === 0
    ? `all ${checks.length} checks passed`
    : `${failed} of ${checks.length} checks failed`;
}
