/** Tables for people, and what is in them. */

import { assertEquals } from "@std/assert";
import { parsePorts } from "../../lib/inet/ports.ts";
import { formatAge, formatTable, shortPorts } from "../../lib/cli/table.ts";
import { plain } from "../../lib/cli/style.ts";

Deno.test("formatTable: columns are as wide as their widest cell, and no line ends in spaces", () => {
  const rows = [["NAME", "STATE", "PORTS"], ["a-long-name", "lost", ""], [
    "b",
    "attached",
    "80:80",
  ]];
  assertEquals(formatTable(rows), [
    "NAME         STATE     PORTS",
    "a-long-name  lost",
    "b            attached  80:80",
  ]);
  assertEquals(formatTable([]), []);
});

Deno.test("formatTable: a style takes no room, and text of others gives itself none", () => {
  const paint = (text: string, style: string) => `<${style}>${plain(text, "bold")}</>`;
  const rows = [["a", ["ok", "green"], "x"], ["\x1b[31mb", ["FAIL", "red"], "y"]] as const;
  assertEquals(formatTable(rows, paint), [
    `a${" ".repeat(12)}<green>ok</>    x`,
    "\\u001b[31mb  <red>FAIL</>  y",
  ]);
});

Deno.test("formatAge: the largest unit that fits", () => {
  const now = Date.parse("2026-01-10T00:00:00Z");
  const cases: readonly (readonly [since: string, age: string])[] = [
    ["2026-01-10T00:00:00Z", "0s"],
    ["2026-01-09T23:59:01Z", "59s"],
    ["2026-01-09T23:59:00Z", "1m"],
    ["2026-01-09T22:30:00Z", "1h"],
    ["2026-01-01T00:00:00Z", "9d"],
    ["2026-01-10T00:00:05Z", "0s"],
  ];
  for (const [since, age] of cases) assertEquals(formatAge(since, now), age, since);
});

Deno.test("shortPorts: as short as --ports takes them, each once", () => {
  const cases: readonly (readonly [ports: string[], text: string])[] = [
    [[], ""],
    [["0.0.0.0:8080:80", "[::]:8080:80"], "8080:80"],
    [
      ["127.0.0.1:53:53/udp", "[2001:db8::1]:8080:80"],
      "127.0.0.1:53:53/udp, [2001:db8::1]:8080:80",
    ],
    [["9000-9009:9000-9009"], "9000-9009:9000-9009"],
    [["1:1", "2:2", "3:3", "4:4", "5:5", "6:6"], "1:1, 2:2, 3:3, 4:4, +2"],
  ];
  for (const [ports, text] of cases) assertEquals(shortPorts(parsePorts(ports)), text);
});
