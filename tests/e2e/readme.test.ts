/** README.md: the recording of the demo is what the demo prints. */

import { assert, assertEquals } from "@std/assert";
import { ROOT } from "../support/machine.ts";

/** What differs from run to run: how long things take, and the MAC address. */
function masked(text: string): string[] {
  return text.trimEnd().split("\n").map((line) =>
    line.replace(/^ *\d+ ms/, "N ms")
      .replace(/\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b/, "MAC")
      .replace(/("bootSeconds":)[\d.]+/, "$1N")
  );
}

/** The block of README.md that ends in the demo's result. */
function recording(): string {
  const blocks = Deno.readTextFileSync(`${ROOT}/README.md`).matchAll(/^```\n([^]*?)^```$/gm);
  const [block] = [...blocks].map(([, text]) => text!).filter((text) => text.includes('{"demo":'));
  assert(block !== undefined, "README.md has no recording of the demo");
  return block;
}

Deno.test("README.md: the demo prints what is recorded", async () => {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", `${ROOT}/tests/demo.ts`],
    env: { NO_COLOR: "1" },
  }).output();
  const decoder = new TextDecoder();
  const told = decoder.decode(stderr);
  assert(success, told);
  assertEquals(masked(told + decoder.decode(stdout)), masked(recording()));
});
