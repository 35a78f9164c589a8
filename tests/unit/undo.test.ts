import { assertEquals, assertStrictEquals } from "@std/assert";
import { describe, InputError, TapkitError } from "../../lib/errors.ts";
import type { UndoError } from "../../lib/errors.ts";
import { UndoStack } from "../../lib/undo.ts";

Deno.test("UndoStack.unwind: last first, past failures, each naming its step", async () => {
  const undo = new UndoStack();
  const done: string[] = [];
  undo.push("first", () => done.push("first"));
  undo.push("second", () => {
    throw new Error("no");
  });
  undo.push("third", () => done.push("third"));
  const failures = await undo.unwind();
  assertEquals(done, ["third", "first"]);
  assertEquals(failures.map((failure) => failure.message), ["undoing second: no"]);
  assertEquals(await undo.unwind(), []);
});

Deno.test("UndoStack.fail: the error itself, or everything that is left behind", async () => {
  const undo = new UndoStack();
  const error = new TapkitError("full");
  assertStrictEquals(await undo.fail(error), error);
  undo.push("link", () => {
    throw new Error("busy");
  });
  const thrown = await undo.fail(error) as UndoError;
  assertEquals(thrown.message, "full (and then: undoing link: busy)");
  assertStrictEquals(thrown.errors[0], error);
});

Deno.test("UndoStack.commit: nothing is undone", async () => {
  const undo = new UndoStack();
  undo.push("link", () => {
    throw new Error("never");
  });
  undo.commit();
  assertEquals(await undo.unwind(), []);
});

Deno.test("describe: one line, with the mend where there is one", () => {
  assertEquals(describe(new InputError("bad\n  thing", { mend: "do it" })), "bad thing: do it");
  assertEquals(describe(new Error("plain")), "plain");
  assertEquals(describe("text"), "text");
});
