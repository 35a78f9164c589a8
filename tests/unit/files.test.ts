import { assert, assertEquals } from "@std/assert";
import { appendBounded } from "../../lib/files.ts";

Deno.test("appendBounded: keeps the newer whole lines", () => {
  const path = Deno.makeTempFileSync();
  try {
    for (let i = 0; i < 1000; i++) appendBounded(path, `line ${i}\n`, 1000);
    const lines = Deno.readTextFileSync(path).trimEnd().split("\n");
    assert(Deno.statSync(path).size <= 1000);
    assert(lines.length > 40);
    assertEquals(lines, lines.map((_, i) => `line ${1000 - lines.length + i}`));
  } finally {
    Deno.removeSync(path);
  }
});
