/** docs/troubleshooting.md: the messages that it explains are those of the sources. */

import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { literalsOf } from "../support/literals.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url));

function sources(directory: string): string[] {
  return [...Deno.readDirSync(directory)].flatMap(({ name, isDirectory }) => {
    const path = `${directory}/${name}`;
    if (isDirectory) return sources(path);
    return name.endsWith(".ts") ? [Deno.readTextFileSync(path)] : [];
  });
}

/** Code in the first column of the page's tables that are headed `message`. */
function messagesOf(page: string): string[] {
  const tables = page.match(/^\| message .*\n(?:\|.*\n)+/gm) ?? [];
  const rows = tables.flatMap((table) => table.trimEnd().split("\n").slice(2));
  return rows.flatMap((row) => {
    const spans = [...row.split("|")[1]!.matchAll(/`([^`]+)`/g)].map(([, span]) => span!);
    assert(spans.length > 0, `no message in ${row}`);
    return spans;
  });
}

interface Literal {
  readonly text: string;
  /** Matches what the literal becomes, with what is inserted as groups. */
  readonly filled: RegExp;
}

const words = (text: string) => text.match(/[a-z]+/gi)?.length ?? 0;

function pattern(text: string, hole: string): string {
  const parts = text.split("…").map((part) => part.replaceAll(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
  return parts.join(hole);
}

/** The literals that may be messages: those of two words or more. */
function read(source: string): Literal[] {
  return literalsOf(source).filter((text) => words(text) >= 2)
    .map((text) => ({ text, filled: new RegExp(`^${pattern(text, "(.*)")}$`, "s") }));
}

/**
 * Whether a literal is a message of the page, where `…` stands for what is inserted, and at the end
 * for all the rest. Or the literal becomes the message when others are inserted: `host port … is …`
 * and `in use by …`.
 */
function isThere(message: string, literals: readonly Literal[]): boolean {
  const isLiteral = (wanted: string) => {
    const [, most, rest] = /^(.*?)(…?)$/.exec(wanted)!;
    const regexp = new RegExp(`^${pattern(most!, "[^a-z]*")}${rest && ".*"}$`, "is");
    return literals.some(({ text }) => regexp.test(text));
  };
  return isLiteral(message) || literals.some(({ filled }) =>
    filled.exec(message)?.slice(1)
      .every((part) => /^…?$/.test(part) || words(part) >= 2 && isLiteral(part))
  );
}

Deno.test("docs/troubleshooting.md: every message is one of lib", () => {
  const literals = sources(`${ROOT}lib`).flatMap(read);
  const messages = messagesOf(Deno.readTextFileSync(`${ROOT}docs/troubleshooting.md`));
  assert(messages.length > 50, `${messages.length} messages are looked at`);
  assertEquals(messages.filter((message) => words(message) < 2), []);
  assertEquals(messages.filter((message) => !isThere(message, literals)), []);
  // None of them would be there with another word, or without one.
  const changed = messages.flatMap((message) => {
    const [longest] = message.match(/[a-z]+/gi)!.sort((a, b) => b.length - a.length);
    return [message.replace(longest!, "elsewhere"), message.replace(longest!, "")];
  });
  assertEquals(changed.filter((message) => isThere(message, literals)), []);
});

Deno.test("docs/troubleshooting.md: a message that is made up, or has changed, is found", () => {
  const source =
    'error(`host port ${port} is ${state}`, { mend: "choose " + "another" }); // "not this"\n' +
    "state(`in use by ${`${program} (pid ${pid})`}`);";
  assertEquals(literalsOf(source), [
    "host port … is …",
    "choose another",
    "… (pid …)",
    "in use by …",
  ]);
  const page = [
    ["message", "what it means"],
    ["---", "---"],
    ["`host port … is in use by …`, `choose another`", "`another column`"],
    ["`host port … is taken by …`", ""],
    ["`host port … is in use`", ""],
    ["`port … is in use by …`", ""],
    ["`the host is on fire`", ""],
  ].map((cells) => `| ${cells.join(" | ")} |\n`).join("");
  const wrong = messagesOf(page).filter((message) => !isThere(message, read(source)));
  assertEquals(wrong, [
    "host port … is taken by …",
    "host port … is in use",
    "port … is in use by …",
    "the host is on fire",
  ]);
});
