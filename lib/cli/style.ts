/**
 * Colours for people at a terminal.
 *
 * @module
 */

import { visible } from "./cli.ts";

/** SGR parameters of ECMA-48. */
const SGR = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33 } as const;

/** A colour, or another style. */
export type Style = keyof typeof SGR;

/** Gives text a style. Control characters in it are escaped, so that they give it none of their own. */
export type Paint = (text: string, style: Style) => string;

/** Escapes, and gives no style. */
export const plain: Paint = (text) => visible(text);

const coloured: Paint = (text, style) => `\x1b[${SGR[style]}m${visible(text)}\x1b[0m`;

/** How standard output is written on. */
export interface Screen {
  /** Whether it is a terminal. */
  readonly isTerminal: boolean;
  /** Of a terminal; a usual width where there is none. */
  readonly columns: number;
  readonly paint: Paint;
}

const USUAL_COLUMNS = 100;

/** Standard output: colours are for a terminal where neither NO_COLOR nor TERM=dumb is set. */
export function screen(): Screen {
  const isTerminal = Deno.stdout.isTerminal();
  const isDumb = Deno.env.get("TERM") === "dumb";
  return {
    isTerminal,
    columns: isTerminal ? Deno.consoleSize().columns : USUAL_COLUMNS,
    paint: isTerminal && !Deno.noColor && !isDumb ? coloured : plain,
  };
}
