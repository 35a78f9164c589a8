/** Reading the report that `deno test --junit-path` writes. */

/** One test; its steps are part of it. */
export interface TestCase {
  readonly name: string;
  readonly outcome: "passed" | "failed" | "skipped";
  readonly seconds: number;
  /** The names of its steps that failed, the innermost ones. */
  readonly failedSteps: readonly string[];
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
    const [name, seconds] = [attribute("name"), Number(attribute("time"))];
    cases.push({ name, outcome, seconds, failedSteps: [] });
  }
  // Steps are listed as tests of their own, named "TEST > STEP".
  const names = new Set(cases.map(({ name }) => name));
  const isStep = (name: string) => {
    const parts = name.split(" > ");
    return parts.some((_, index) => index > 0 && names.has(parts.slice(0, index).join(" > ")));
  };
  const failed = cases.filter(({ outcome }) => outcome === "failed").map(({ name }) => name);
  return cases.filter(({ name }) => !isStep(name)).map((test) => {
    const steps = failed.filter((name) => name.startsWith(`${test.name} > `))
      .filter((name) => !failed.some((other) => other.startsWith(`${name} > `)));
    return { ...test, failedSteps: steps.map((name) => name.slice(`${test.name} > `.length)) };
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
