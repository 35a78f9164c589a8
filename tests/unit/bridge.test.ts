/**
 * Letting a bridge pass, and an error or a kill at each effect of that, on a kernel that is none.
 *
 * @module
 */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { sentence } from "../../lib/finding.ts";
import { attachVm } from "../../lib/vm/verbs/attach.ts";
import { allowBridge, checkBridge, revokeBridge } from "../../lib/vm/verbs/bridge.ts";
import { removeVm } from "../../lib/vm/verbs/remove.ts";
import { restoreVms } from "../../lib/vm/verbs/restore.ts";
import { FakeKernel } from "../support/fake-kernel.ts";

/** To Deno 2.5, functions of libc that are looked up during a test are a leak. */
function test(name: string, fn: () => void | Promise<void>): void {
  Deno.test({ name, fn, sanitizeResources: false });
}

async function problems({ options }: FakeKernel): Promise<string[]> {
  return (await checkBridge("weave", options)).map(sentence);
}

test("allowBridge: lasts beyond the last VM, until revokeBridge", async () => {
  using kernel = new FakeKernel();
  const { options } = kernel;
  const empty = kernel.snapshot();
  assertMatch((await problems(kernel)).join(), /^bridge "weave" is not let pass/);
  const changes = await allowBridge("weave", options);
  assertEquals(changes.map(({ layer, change }) => `${layer} ${change}`), [
    "rules created",
    "sysctls created",
  ]);
  const allowed = kernel.snapshot();
  assertEquals([await allowBridge("weave", options), await problems(kernel)], [[], []]);
  await attachVm({ name: "web", ports: ["8080:80"] }, options);
  await removeVm("web", options);
  assertEquals(kernel.snapshot(), allowed);
  kernel.reboot();
  assert((await problems(kernel)).length > 0);
  assertEquals(await Array.fromAsync(restoreVms(options)), []);
  assertEquals(kernel.snapshot(), allowed);
  await revokeBridge("weave", options);
  await revokeBridge("weave", options);
  assertEquals(kernel.snapshot(), empty);
});

test("allowBridge: an error at any effect undoes the others; killed, both calls go on from there", async () => {
  const allow = ({ options }: FakeKernel) => allowBridge("weave", options);
  const revoke = ({ options }: FakeKernel) => revokeBridge("weave", options);
  for (let at = 1;; at++) {
    using kernel = new FakeKernel();
    if (!await kernel.with({ at, is: "failure" }, () => allow(kernel))) break;
    assertEquals(kernel.snapshot(), [], `at ${at}`);
    await kernel.with({ at, is: "kill" }, () => allow(kernel));
    await allow(kernel);
    assertEquals(await problems(kernel), [], `at ${at}`);
    await revoke(kernel);
    await kernel.with({ at, is: "kill" }, () => allow(kernel));
    await revoke(kernel);
    assertEquals(kernel.snapshot(), [], `at ${at}`);
  }
});

test("revokeBridge: an error or a kill at any effect, then the same call, or --restore, ends it", async () => {
  for (let at = 1;; at++) {
    using kernel = new FakeKernel();
    const { options } = kernel;
    const revoke = () => revokeBridge("weave", options);
    await allowBridge("weave", options);
    if (!await kernel.with({ at, is: "kill" }, revoke)) break;
    await revoke();
    assertEquals(kernel.snapshot(), [], `at ${at}`);
    await allowBridge("weave", options);
    await assertRejects(async () => {
      if (await kernel.with({ at, is: "failure" }, revoke)) throw new Error("refused");
    });
    assertMatch((await problems(kernel)).join(), /left half removed/, `at ${at}`);
    assertEquals(await Array.fromAsync(restoreVms(options)), []);
    assertEquals(kernel.snapshot(), [], `at ${at}`);
  }
});
