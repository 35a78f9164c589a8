/**
 * The compiled binary beside the bundle, by the same Deno. Where Deno's runtime cannot be had, DENORT_BIN and
 * TAPKIT_TEST_COMPILER name one.
 *
 * @module
 */

import type { Host } from "../support/host.ts";
import { compile, COMPILER, whyNoCompiler } from "../support/compiled.ts";
import { ROOT } from "../support/machine.ts";
import { ResidentServer } from "../support/resident.ts";
import { BESIDE, Booth, takeTurns } from "./booth.ts";
import type { SingleFigures } from "./report.ts";

/** What was measured, without and by the resident; or why nothing was. */
export type CompiledFigures =
  | Readonly<Record<"alone" | "byResident", ReadonlyMap<string, SingleFigures>>>
  | string;

/** The contestants. */
export const [BUNDLE, BINARY] = ["the bundle", "the binary"] as const;

/** @param directory where they are put */
export async function measureCompiled(
  directory: string,
  { rounds, settleMs }: { rounds: number; settleMs: number },
): Promise<CompiledFigures> {
  const unable = await whyNoCompiler();
  if (unable !== undefined) return unable;
  const made = await compile("tapkit", "--output", directory);
  if (!made.success) throw new Error(made.err);
  const { path } = JSON.parse(made.out);
  const install = [`${ROOT}/install.ts`, "--bundle", "--prefix", `${directory}/bundle`];
  const { success, stderr } = await new Deno.Command(COMPILER, {
    args: ["run", "-A", ...install],
  }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
  const commands = {
    [BUNDLE]: [`${directory}/bundle/bin/attach-vm`],
    [BINARY]: [path, "attach-vm"],
  } as const satisfies Record<string, readonly [string, ...string[]]>;
  const start = (host: Host) =>
    ResidentServer.start(host, { program: `${directory}/bundle/bin/serve` });
  const measure = async (byResident: boolean) => {
    await using stack = new AsyncDisposableStack();
    const booths: Booth[] = [];
    for (const [name, command] of Object.entries(commands)) {
      const contestant = { kind: "tapkit", command, ...byResident ? { byResident } : {} } as const;
      const booth = stack.use(await Booth.open(name, contestant));
      if (byResident) stack.use(await start(booth.host));
      await booth.do({ do: "attach", vm: BESIDE });
      booths.push(booth);
    }
    await takeTurns(booths, 1, settleMs);
    return await takeTurns(booths, rounds, settleMs);
  };
  return { alone: await measure(false), byResident: await measure(true) };
}
