import { assertEquals } from "@std/assert";
import { inTurns } from "../../lib/turns.ts";

Deno.test("inTurns: whoever stops reading waits for those that are under way", async () => {
  const ended: number[] = [];
  const act = async (item: number, waits: () => void) => {
    waits();
    await new Promise((resolve) => setTimeout(resolve, item * 10));
    ended.push(item);
  };
  for await (const { item } of inTurns([3, 1, 2], act)) {
    assertEquals(item, 1);
    break;
  }
  assertEquals(ended, [1, 2, 3]);
});

Deno.test("inTurns: the next begins when the one before has ended, or waits; none after the signal", async () => {
  const stop = new AbortController();
  const begun: string[] = [];
  const { promise: released, resolve: release } = Promise.withResolvers<void>();
  const act = async (item: string, waits: () => void) => {
    begun.push(item);
    if (item === "b") {
      waits();
      await released;
    }
    if (item === "c") {
      assertEquals(begun, ["a", "b", "c"]);
      release();
      stop.abort();
    }
    return item.toUpperCase();
  };
  const results = await Array.fromAsync(inTurns(["a", "b", "c", "d"], act, stop.signal));
  assertEquals(results.map(({ result }) => result).toSorted(), ["A", "B", "C"]);
  assertEquals(begun, ["a", "b", "c"]);
});
