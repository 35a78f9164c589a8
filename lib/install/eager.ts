/**
 * What makes a bundle start faster: less text, and functions that V8 compiles while it loads the
 * file, so that they are in the code cache.
 *
 * Of other functions, V8 only looks where they end, and compiles them when they are first called,
 * in every process again. It compiles function expressions at once if they are in parentheses.
 *
 * @module
 */

import { type FunctionDeclaration, type Node, parse, type Token } from "acorn";

/**
 * The text of a module in which the functions of these names are in parentheses, and so are the
 * function expressions inside them. Only functions of the module itself are looked at. They become
 * variables at its beginning, where they are defined as early as a declaration is.
 */
export function withEager(module: string, names: ReadonlySet<string>): string {
  const { body } = parse(module, { ecmaVersion: "latest", sourceType: "module" });
  const isHot = (node: Node): node is FunctionDeclaration =>
    node.type === "FunctionDeclaration" && names.has((node as FunctionDeclaration).id.name);
  const hot: FunctionDeclaration[] = body.filter(isHot);
  const variables = hot.map((node) => `var ${node.id.name} = (${eagerText(module, node)});\n`);
  const starts = [0, ...hot.map(({ end }) => end)];
  const rest = starts.map((start, index) => module.slice(start, hot[index]?.start));
  return [...variables, ...rest].join("");
}

/**
 * The text of a module without comments and indentation. Deno reads less then; and V8 takes half the
 * memory for a text that is ASCII, as a bundle is but for its comments.
 */
export function condensed(module: string): string {
  const tokens: Token[] = [];
  parse(module, { ecmaVersion: "latest", sourceType: "module", onToken: tokens });
  let text = "";
  let from = 0;
  for (const { start, end } of tokens) {
    const gap = module.slice(from, start);
    text += (gap.includes("\n") ? "\n" : gap === "" ? "" : " ") + module.slice(start, end);
    from = end;
  }
  return `${text.trim()}\n`;
}

/** The functions of a module that {@linkcode withEager} can put into parentheses. */
export function declaredFunctions(module: string): { name: string; end: number }[] {
  return parse(module, { ecmaVersion: "latest", sourceType: "module" }).body
    .filter((node) => node.type === "FunctionDeclaration")
    .map((node) => ({ name: node.id.name, end: node.end }));
}

/** The text of a part of the module, with the function expressions inside it in parentheses. */
function eagerText(module: string, node: Node): string {
  let text = "";
  let from = node.start;
  for (const inner of outermost(node)) {
    text += `${module.slice(from, inner.start)}(${eagerText(module, inner)})`;
    from = inner.end;
  }
  return text + module.slice(from, node.end);
}

/** The function expressions inside a part of a module that are in no other such, in their order. */
function outermost(node: Node): Node[] {
  const children = Object.values(node).flat().filter(isNode);
  return children.flatMap((child) => {
    const expression = child.type === "ArrowFunctionExpression" ||
      child.type === "FunctionExpression" && !isMethod(node);
    return expression ? [child] : outermost(child);
  }).sort((one, other) => one.start - other.start);
}

/** The function of a method begins at its parameters, and cannot be in parentheses. */
function isMethod(node: Node & { kind?: string; method?: boolean }): boolean {
  return node.type === "MethodDefinition" ||
    node.type === "Property" && (node.method === true || node.kind !== "init");
}

function isNode(value: unknown): value is Node {
  return value instanceof Object && "type" in value && "start" in value && "end" in value;
}
