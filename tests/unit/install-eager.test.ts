import { assert, assertEquals } from "@std/assert";
import { condensed, withEager } from "../../lib/install/eager.ts";

const MODULE = `
export const early = [hoisted(1), typeof counted, Object(1)];
export const table = { of: (x) => x + 1, method() { return (() => this.of(1))(); } };
function hoisted(x) {
  const inner = (y) => y * x;
  async function* told() { yield* [1, 2].map((z) => inner(z)); }
  return { inner: inner.name, told, twice: [1].map(function twice(n) { return n === 0 ? 0 : twice(n - 1) + 2; }) };
}
function* counted() {
  yield this;
  yield arguments.length;
  yield { get four() { return (() => 4)(); }, ["five"]: () => 5, set six(_) {}, async seven() {} };
}
async function waits(given = () => 7) {
  return await given();
}
function cold() {
  return [() => "cold", cold.name];
}
function hoisted2({ a = () => 3 } = {}) {
  return a;
}
class Both {
  field = () => hoisted2;
  static made = [1].map((x) => x);
  arrow(x) { return ((y) => x + y)(1); }
}
export { cold, counted, hoisted, hoisted2, waits, Both };
`;

// deno-lint-ignore no-explicit-any
async function told(text: string): Promise<any[]> {
  const module = await import(`data:text/javascript,${encodeURIComponent(text)}`);
  const { early, table, hoisted, counted, waits, cold, hoisted2, Both } = module;
  const [first, second, third] = counted.call("this", 1, 2);
  return [
    early.map((value: unknown) => value instanceof Object ? Object.keys(value) : value),
    table.of.name,
    table.method(),
    hoisted(3).inner,
    await Array.fromAsync(hoisted(3).told()),
    hoisted(3).twice,
    [String(first), second, third.four, third.five(), third.five.name],
    await waits(),
    cold()[0](),
    cold()[1],
    hoisted2()(),
    hoisted2().name,
    new Both().field() === hoisted2,
    new Both().arrow(2),
    Both.made,
    [hoisted, counted, waits, cold, hoisted2].map(({ name, length }) => [name, length]),
  ];
}

Deno.test("withEager: named functions, and expressions inside them, are in parentheses", () => {
  const text = withEager(MODULE, new Set(["hoisted", "counted", "waits"]));
  const heads = text.match(/^var .*/gm);
  assertEquals(heads?.map((line) => line.replace(/ = \((async )?function.*/, "")), [
    "var hoisted",
    "var counted",
    "var waits",
  ]);
  assert(text.includes("const inner = ((y) => y * x);"), text);
  assert(text.includes("return ((() => 4))();"), text);
  assert(text.includes('\nfunction cold() {\n  return [() => "cold", cold.name];'), text);
});

const WAITING = `
var __esm = (fn, res) => () => (fn && (res = (0, fn[Object.keys(fn)[0]])(fn = 0)), res);
var parent = { hello() { return "parent"; } };
var made, also;
var init_made = __esm({
  "lib/made.ts"() {
    made = {
      __proto__: parent,
      plain(x) { return [1].map((y) => this.two() + x + y + arguments.length)[0]; },
      two() { return 2; },
      async waits() { return await 3; },
      *counted() { yield 4; },
      async *told() { yield 5; },
      hello() { return super.hello(); },
      ["six"]() { return 6; },
      get seven() { return (() => 7)(); },
      default() { return 8; },
      "9"() { return 9; },
    };
  }
});
var init_cold = __esm({
  "lib/cold.ts"() {
    init_made();
    also = { cold() { return "cold"; } };
  }
});
init_cold();
export { made, also };
`;

Deno.test("withEager: modules that wait until they are imported, and methods of objects", async () => {
  const text = withEager(WAITING, new Set(["init_made"]));
  assert(text.includes('var init_made = __esm({\n  "lib/made.ts": (function() {'), text);
  assert(text.includes('  "lib/cold.ts"() {\n    init_made();\n    also = { cold() {'), text);
  for (
    const head of [
      "plain: (function(x) { return [1].map(((y) =>",
      "waits: (async function() {",
      "counted: (function*() {",
      "told: (async function*() {",
      "hello() { return super",
      '["six"]() {',
      "get seven() { return ((() => 7))",
      "default: (function() {",
      '"9": (function() {',
    ]
  ) assert(text.includes(head), `${head}: ${text}`);
  const [one, other] = await Promise.all([WAITING, text].map(async (text) => {
    const { made, also } = await import(`data:text/javascript,${encodeURIComponent(text)}`);
    return [
      made.plain(1),
      await made.waits(),
      [...made.counted()],
      await Array.fromAsync(made.told()),
      [made.hello(), made.six(), made.seven, made.default(), made[9]()],
      Object.entries(made).map(([key, value]) =>
        value instanceof Function ? [key, value.name, value.length] : key
      ),
      also.cold(),
    ];
  }));
  assertEquals(one, other);
});

Deno.test("condensed: comments and indentation go, what is in texts stays", async () => {
  const text = condensed(
    `/* × */
    const a = \`
      // not a comment × \${ /* it is */ [1, 2]
        .join("  /* × */ ") }
    \`; // ×
    const b = /\\/\\* {2}/.source + a.length  /  2  / 1
    export default () => {
      return /*
      */ a
    }, c = 1
`.replace("() => {", "(() => {").replace("}, c = 1", "})() ?? [a, b]"),
  );
  assertEquals(
    text,
    `const a = \`
      // not a comment × \${ [1, 2]
.join("  /* × */ ") }
    \`;
const b = /\\/\\* {2}/.source + a.length / 2 / 1
export default (() => {
return
a
})() ?? [a, b]
`,
  );
  assertEquals(await told(condensed(MODULE)), await told(MODULE));
});

Deno.test("withEager: the module means the same", async () => {
  const same = await told(MODULE);
  for (const names of [["hoisted", "waits"], ["hoisted", "counted", "waits", "cold"], []]) {
    assertEquals(await told(withEager(MODULE, new Set(names))), same);
  }
});

Deno.test("hot.txt: names functions of the sources", () => {
  const text = Deno.readTextFileSync(new URL("../../lib/install/hot.txt", import.meta.url));
  const names = text.trim().split("\n");
  const sources = [...find(new URL("../../lib/", import.meta.url))].join("\n");
  const declared = new Set([...sources.matchAll(/\bfunction\*? (\w+)/g)].map(([, name]) => name));
  const known = names.filter((name) => declared.has(name) || name.startsWith("init_"));
  assert(names.length > 300, `${names.length} names`);
  assert(known.length > 0.8 * names.length, "many functions have other names: deno task hot");
});

function* find(directory: URL): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(directory)) {
    if (isDirectory) yield* find(new URL(`${name}/`, directory));
    else if (name.endsWith(".ts")) yield Deno.readTextFileSync(new URL(name, directory));
  }
}
