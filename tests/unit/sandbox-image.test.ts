/** The sandbox's program: it runs, waits without computing, and ends by a signal. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { sandboxProgram } from "../../lib/docker/sandbox-image.ts";
import { TapkitError } from "../../lib/errors.ts";

/** By architecture: what runs its programs here. */
const RUNNERS: Readonly<Record<string, readonly string[]>> = {
  amd64: Deno.build.arch === "x86_64" ? [] : ["qemu-x86_64"],
  arm64: Deno.build.arch === "aarch64" ? [] : ["qemu-aarch64"],
};

function isInstalled(program: string): boolean {
  return (Deno.env.get("PATH") ?? "").split(":").some((directory) => {
    try {
      return Deno.statSync(`${directory}/${program}`).isFile;
    } catch {
      return false;
    }
  });
}

for (const [arch, runner] of Object.entries(RUNNERS)) {
  const lacking = runner.find((program) => !isInstalled(program));
  const reason = lacking === undefined ? "" : ` (${lacking} is not installed)`;
  Deno.test({
    name: `sandboxProgram: ${arch}: waits until a signal ends it${reason}`,
    ignore: lacking !== undefined,
    fn: async () => {
      const path = await Deno.makeTempFile({ prefix: "tapkit-wait-" });
      try {
        await Deno.writeFile(path, sandboxProgram(arch), { mode: 0o755 });
        await Deno.chmod(path, 0o755);
        const [program, ...args] = [...runner, path];
        const child = new Deno.Command(program!, { args, stdin: "null" }).spawn();
        // It sleeps in a system call, and stays there.
        const deadline = Date.now() + 5000;
        const state = () => Deno.readTextFileSync(`/proc/${child.pid}/stat`).split(") ")[1]?.[0];
        while (state() !== "S" && Date.now() < deadline) {
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
        assertEquals(state(), "S");
        child.kill("SIGTERM");
        assertEquals((await child.status).signal, "SIGTERM");
      } finally {
        await Deno.remove(path);
      }
    },
  });
}

Deno.test("sandboxProgram: is a few hundred bytes, and refuses other architectures", () => {
  for (const arch of Object.keys(RUNNERS)) assert(sandboxProgram(arch).length < 300);
  assertThrows(() => sandboxProgram("riscv64"), TapkitError, "architecture riscv64");
});
