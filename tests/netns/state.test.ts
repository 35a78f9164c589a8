/**
 * The state directory under processes that come and go at the same time. No kernel object is made.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { isThere } from "../../lib/files.ts";

const PROCESSES = 4;
const ROUNDS = 150;

const module = (name: string) => new URL(`../../lib/vm/record/${name}.ts`, import.meta.url).href;

/** One VM that comes and goes again and again; the last to go takes the directory away. */
const COMES_AND_GOES = `
import { hostPaths } from "${module("paths")}";
import { identityOf } from "${module("identity")}";
import { claimId, releaseId } from "${module("ids")}";
import { lockHost, lockVm, tidyState } from "${module("locks")}";
import { deleteVm, writeVm } from "${module("store")}";
const [stateDir, common, name] = Deno.args;
const host = { ...hostPaths({ stateDir }), registry: common + "/elsewhere" };
const id = identityOf(name);
for (let round = 0; round < ${ROUNDS}; round++) {
  {
    using _vm = await lockVm(host, name);
    using _host = await lockHost(host);
    claimId(host, id);
    writeVm(host, name, { is: "changing" });
    releaseId(host, id);
    deleteVm(host, name);
  }
  tidyState(host);
}
`;

Deno.test("state: processes that come and go find the directory, and the last takes it away", async () => {
  const parent = await Deno.makeTempDir();
  const program = `${parent}/comes-and-goes.ts`;
  await Deno.writeTextFile(program, COMES_AND_GOES);
  const [stateDir, common] = [`${parent}/tapkit`, `${parent}/common`];
  try {
    const outputs = await Promise.all(
      Array.from({ length: PROCESSES }, (_, index) =>
        new Deno.Command(Deno.execPath(), {
          args: ["run", "-A", "--no-check", program, stateDir, common, `vm${index}`],
          stderr: "piped",
        }).output()),
    );
    const errors = outputs.map(({ stderr }) => new TextDecoder().decode(stderr));
    assertEquals(errors, outputs.map(() => ""));
    assertEquals([isThere(stateDir), isThere(common)], [false, false]);
  } finally {
    await Deno.remove(parent, { recursive: true });
  }
});
