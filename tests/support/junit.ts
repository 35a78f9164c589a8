/** Reading the report that `deno test --junit-path` writes. */

/** One test; its steps are part of it. */
export interface TestCase {
  readonly name: string;
  readonly outcome: "passed" | "failed" | "skipped";
  readonly seconds: number;
}

/** The tests of a report, in its order; none for a text that is no report. */
export function parseReport(xml: string): TestCase[] {
  const cases: TestCase[] = [];
  for (
    const [, attributes = "", body = ""] of xml.matchAll(/<testcase ([^>]*)>(.*?)<\/testcase>/gs)
  ) {
    const attribute = (name: string) => {
      return unescape(new RegExp(`\\b${name}="([^"]*)"`).exec(attributes)?.[1] ?? "");
    };
    const outcome = body.includes("<failure") || body.includes("<error")
      ? "failed"
      : body.includes("<skipped")
      ? "skipped"
      : "passed";
    cases.push({ name: attribute("name"), outcome, seconds: Number(attribute("time")) });
  }
  // Steps are listed as tests of their own, named "TEST > STEP".
  const names = new Set(cases.map(({ name }) => name));
  return cases.filter(({ name }) => {
    const parts = name.split(" > ");
    return !parts.some((_, index) => index > 0 && names.has(parts.slice(0, index).join(" > ")));
  });
}

const ENTITIES: Readonly<Record<string, string>> = {
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  amp: "&",
};

function unescape(text: string): string {
  return text.replaceAll(/&(#?\w+);/g, (whole, name: string) => {
    if (name.startsWith("#x")) return String.fromCodePoint(parseInt(name.slice(2), 16));
    if (name.startsWith("#")) return String.fromCodePoint(Number(name.slice(1)));
    return ENTITIES[name] ?? whole;
  });
}
