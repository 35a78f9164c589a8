/** The text in a program's source. */

import { type Token, tokenizer } from "acorn";

/**
 * The string and template literals of a TypeScript source. `…` stands for what a template inserts,
 * whose own literals are listed too. Literals that `+` joins are one.
 */
export function literalsOf(source: string): string[] {
  const found: string[] = [];
  /** Of each brace that is open, the template before it; undefined if it is in none. */
  const braces: (string | undefined)[] = [];
  let text: string | undefined;
  let joins = false;
  let inTemplate = false;
  const end = () => {
    if (text !== undefined) found.push(text);
    text = undefined;
  };
  const begin = (literal: string) => {
    if (joins) text += literal;
    else {
      end();
      text = literal;
    }
    joins = false;
  };
  // The tokens of TypeScript are those of JavaScript. acorn does not declare their values.
  const tokens = tokenizer(source, { ecmaVersion: "latest" }) as Iterable<
    Token & { readonly value: string }
  >;
  for (const { type, value } of tokens) {
    const isPlus = type.label === "+/-" && value === "+";
    if (type.label === "string") begin(value);
    else if (type.label === "template") text += value;
    else if (type.label === "`") {
      if (!inTemplate) begin("");
      inTemplate = !inTemplate;
    } else if (type.label === "${") {
      braces.push(text);
      text = undefined;
      inTemplate = false;
    } else if (isPlus && text !== undefined) {
      joins = true;
    } else {
      end();
      joins = false;
      if (type.label === "{") braces.push(undefined);
      const template = type.label === "}" ? braces.pop() : undefined;
      if (template !== undefined) {
        text = `${template}…`;
        inTemplate = true;
      }
    }
  }
  end();
  return found;
}
