/**
 * What makes a bundle start faster: less text, and functions that V8 compiles while it loads the
 * file, so that they are in the code cache.
 *
 * Of other functions, V8 only looks where they end, and compiles them when they are first called,
 * in every process again. It compiles function expressions at once if they are in parentheses.
 *
 * @module
 */

import { type FunctionExpression, type Node, parse, type Property, type Token } from "acorn";

/**
 * The text of a module in which the functions of these names are in parentheses, and so are the
 * function expressions inside them. Only functions of the module itself are looked at. They become
 * variables at its beginning, where they are defined as early as a declaration is. A module that
 * waits in a bundle until it is imported is such a function by the variable's name: `init_errors`.
 */
export function withEager(module: string, names: ReadonlySet<string>): string {
  const hot = functionsOf(module).filter(({ name }) => names.has(name));
  const texts = hot.map(({ name, node, waits }) =>
    waits
      ? `var ${name} = ${eagerText(module, node)};\n`
      : `var ${name} = (${eagerText(module, node)});\n`
  );
  const early = texts.filter((_, index) => !hot[index]!.waits);
  const starts = [0, ...hot.map(({ statement }) => statement.end)];
  const rest = starts.map((start, index) =>
    module.slice(start, hot[index]?.statement.start) + (hot[index]?.waits ? texts[index] : "")
  );
  return [...early, ...rest].join("");
}

/** A function of a bundle that can be compiled at once. */
interface Declared {
  readonly name: string;
  readonly statement: Node;
  /** The declaration, or what the variable is set to. */
  readonly node: Node;
  /** The function itself. */
  readonly body: Node;
  /** Whether it is a module that waits until it is imported: `var init_errors = __esm({ "errors.ts"() {} })`. */
  readonly waits: boolean;
}

function functionsOf(module: string): Declared[] {
  const { body } = parse(module, { ecmaVersion: "latest", sourceType: "module" });
  return body.flatMap((statement): Declared[] => {
    if (statement.type === "FunctionDeclaration") {
      const { name } = statement.id;
      return [{ name, statement, node: statement, body: statement, waits: false }];
    }
    if (statement.type !== "VariableDeclaration") return [];
    const { id, init } = statement.declarations[0]!;
    if (id.type !== "Identifier" || init?.type !== "CallExpression") return [];
    if (init.callee.type !== "Identifier" || !WAITING.has(init.callee.name)) return [];
    const [object] = init.arguments;
    const property = object?.type === "ObjectExpression" ? object.properties[0] : undefined;
    if (property?.type !== "Property") return [];
    return [{ name: id.name, statement, node: init, body: property.value, waits: true }];
  });
}

/** What esbuild wraps modules in that are imported later. */
const WAITING: ReadonlySet<string> = new Set(["__esm", "__commonJS"]);

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
  return functionsOf(module).map(({ name, body }) => ({ name, end: body.end }));
}

/** The text of a part of the module, with the function expressions inside it in parentheses. */
function eagerText(module: string, node: Node): string {
  let text = "";
  let from = node.start;
  for (const inner of outermost(node)) {
    text += module.slice(from, inner.start) + inParentheses(module, inner);
    from = inner.end;
  }
  return text + module.slice(from, node.end);
}

function inParentheses(module: string, node: Node): string {
  if (node.type !== "Property") return `(${eagerText(module, node)})`;
  // A method of an object, as the same function without the shorthand.
  const { key, value } = node as Property & { value: FunctionExpression };
  const [start, name] = [module.slice(node.start, key.start), module.slice(key.start, key.end)];
  const kind = `${/^async\b/.test(start) ? "async " : ""}function${start.includes("*") ? "*" : ""}`;
  return `${name}: (${kind}${eagerText(module, value)})`;
}

/** The function expressions inside a part of a module that are in no other such, in their order. */
function outermost(node: Node): Node[] {
  const children = Object.values(node).flat().filter(isNode);
  return children.flatMap((child) => {
    const expression = child.type === "ArrowFunctionExpression" || isPlainMethod(child) ||
      child.type === "FunctionExpression" && !isMethod(node);
    return expression ? [child] : outermost(child);
  }).sort((one, other) => one.start - other.start);
}

/** Whether it is a method of an object that could as well be a property with a function. */
function isPlainMethod(
  node: Node & { method?: boolean; computed?: boolean; value?: Node; key?: { name?: string } },
): boolean {
  return node.type === "Property" && node.method === true && node.computed === false &&
    node.key?.name !== "__proto__" && !usesSuper(node.value!);
}

/** Whether `super` in a method's function is that method's. */
function usesSuper(node: Node): boolean {
  return Object.values(node).flat().filter(isNode)
    .some((child) => child.type === "Super" || !isMethod(child) && usesSuper(child));
}

/** The function of a method begins at its parameters, and cannot be in parentheses. */
function isMethod(node: Node & { kind?: string; method?: boolean }): boolean {
  return node.type === "MethodDefinition" ||
    node.type === "Property" && (node.method === true || node.kind !== "init");
}

function isNode(value: unknown): value is Node {
  return value instanceof Object && "type" in value && "start" in value && "end" in value;
}
