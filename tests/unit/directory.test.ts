import { assertEquals, assertThrows } from "@std/assert";
import { SyscallError } from "../../lib/errors.ts";
import { countFiles } from "../../lib/sys/directory.ts";

Deno.test({
  name: "countFiles: counts those of a kind, as far as it is asked",
  // To Deno 2.5, functions of libc that are looked up during a test are a leak.
  sanitizeResources: false,
  fn: async () => {
    const directory = await Deno.makeTempDir({ prefix: "tapkit-count-" });
    try {
      assertEquals(countFiles(directory, ".json", 5), 0);
      assertEquals(countFiles(`${directory}/none`, ".json", 5), 0);
      for (let i = 0; i < 100; i++) {
        await Deno.writeTextFile(`${directory}/${"x".repeat(200)}${i}.json`, "");
        await Deno.writeTextFile(`${directory}/${i}.json.new`, "");
      }
      for (const most of [0, 1, 2, 99, 100]) {
        assertEquals(countFiles(directory, ".json", most), most);
      }
      assertEquals(countFiles(directory, ".json", 1000), 100);
      await Deno.writeTextFile(`${directory}/file`, "");
      assertThrows(() => countFiles(`${directory}/file`, ".json", 1), SyscallError, "ENOTDIR");
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  },
});
