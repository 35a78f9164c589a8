/**
 * Manual pages, made from the tables that `--help` is made from.
 *
 * @module
 */

import { type Command, describeCommand, type Row, type Section } from "../cli/args.ts";

/** The section of all of them: commands of the administrator. */
export const MAN_SECTION = 8;

/** What man(1) calls the page of a command: `tapkit-ls`, which `man tapkit ls` finds too. */
export function pageName({ name }: Command): string {
  return name.replaceAll(" ", "-");
}

/**
 * The manual page of a command, in roff with the macros of man(7).
 *
 * @param others the names of the pages to see also
 */
export function manPage(command: Command, version: string, others: readonly string[]): string {
  const { name, summary, usage, examples, commands = [] } = command;
  const { words, options, exitCodes } = describeCommand(command);
  const page = pageName(command);
  const see = others.filter((other) => other !== page);
  return [
    `.TH ${quoted(page.toUpperCase())} ${MAN_SECTION} "" ${quoted(`tapkit ${version}`)}`,
    ".SH NAME",
    `${roff(page)} \\- ${roff(summary)}`,
    ".SH SYNOPSIS",
    ...usage.flatMap((line, index) => [
      ...index === 0 ? [] : [".br"],
      `.B ${roff(name)}`,
      ...line === "" ? [] : [text(line)],
    ]),
    ...words.length === 0 ? [] : [".SH ARGUMENTS", ...words.flatMap(item)],
    ...commands.length === 0 ? [] : [".SH COMMANDS", ...commands.flatMap(subsection)],
    ".SH OPTIONS",
    ...options.length === 1 ? options[0]!.rows.flatMap(item) : options.flatMap(subsection),
    ".SH EXIT STATUS",
    ...exitCodes.flatMap(item),
    ".SH EXAMPLES",
    ...examples.flatMap(({ does, command }) => [
      ".TP",
      text(`${does}:`),
      `.B ${roff(command)}`,
    ]),
    ...see.length === 0 ? [] : [
      ".SH SEE ALSO",
      `${see.map((other) => `.BR ${roff(other)} (${MAN_SECTION})`).join(" ,\n")}`,
    ],
    "",
  ].join("\n");
}

function subsection({ title, rows }: Section): string[] {
  return [`.SS ${quoted(title)}`, ...rows.flatMap(item)];
}

/** What is written, in bold, and what it means below it. */
function item([left, right]: Row): string[] {
  return [".TP", `.B ${roff(left)}`, text(right)];
}

/** A line of text. A period or an apostrophe at its beginning would make it a request. */
function text(line: string): string {
  return roff(line).replace(/^(?=[.'])/, "\\&");
}

function quoted(words: string): string {
  return `"${roff(words)}"`;
}

/** The text with what roff(7) would take for something else as escapes; what is not ASCII too. */
function roff(words: string): string {
  return words
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll('"', "\\(dq")
    .replaceAll("'", "\\(aq")
    .replaceAll("^", "\\(ha")
    .replaceAll("~", "\\(ti")
    .replaceAll("`", "\\(ga")
    .replaceAll(
      /[^\x20-\x7e]/gu,
      (character) =>
        `\\[u${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}]`,
    );
}
