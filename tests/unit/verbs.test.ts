/**
 * Every verb, its order of effects, and what an error or a kill at each effect leaves, on a kernel that is
 * none. What the layers do to a real one the tests of netns and e2e show.
 *
 * @module
 */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { sentence } from "../../lib/finding.ts";
import { PortConflictError } from "../../lib/inet/ports.ts";
import { look } from "../../lib/vm/layers/bring.ts";
import { layersOf } from "../../lib/vm/layers/kinds.ts";
import { readVm } from "../../lib/vm/record/store.ts";
import { openHost } from "../../lib/vm/session.ts";
import { attachVm } from "../../lib/vm/verbs/attach.ts";
import { collectVms } from "../../lib/vm/verbs/gc.ts";
import { getVm, listVms } from "../../lib/vm/verbs/list.ts";
import { mapPorts, unmapPorts } from "../../lib/vm/verbs/map-ports.ts";
import { removeVm } from "../../lib/vm/verbs/remove.ts";
import { restoreVms } from "../../lib/vm/verbs/restore.ts";
import { contextOf, lookingAt } from "../../lib/vm/verbs/work.ts";
import { FakeKernel } from "../support/fake-kernel.ts";

/** To Deno 2.5, functions of libc that are looked up during a test are a leak. */
function test(name: string, fn: () => void | Promise<void>): void {
  Deno.test({ name, fn, sanitizeResources: false });
}

const PORT = { hostIP: "0.0.0.0", hostPort: 8080, vmPort: 80, protocol: "tcp" };

async function all<T>(generator: AsyncIterable<T>): Promise<T[]> {
  return await Array.fromAsync(generator);
}

test("attachVm: makes the layers in their order, and removing takes them in the other", async () => {
  using kernel = new FakeKernel();
  const { options } = kernel;
  const empty = kernel.snapshot();
  const { record, changes, tapReplaced } = await attachVm(
    { name: "web", ports: ["8080:80"] },
    options,
  );
  assertEquals(record.ports, [{ ...PORT, protocol: "tcp" }]);
  assertEquals(tapReplaced, false);
  assertEquals(changes.map(({ layer, change }) => `${layer} ${change}`), [
    "netns created",
    "network created",
    "wire created",
    "guard created",
    "rules created",
    "sysctls created",
  ]);
  const made = kernel.log.splice(0).map((line) => line.slice(2));
  await removeVm("web", options);
  const taken = kernel.log.map((line) => line.slice(2));
  assertEquals(taken[0], "netns web/vm_eth0/guard strict");
  assertEquals(taken.at(-1), "setting forwarding");
  // What is in something goes with it.
  assert(taken.every((name) => made.includes(name)), taken.join());
  assertEquals(kernel.snapshot(), empty);
});

test("attachVm: again changes nothing, and says so", async () => {
  using kernel = new FakeKernel();
  const request = { name: "web", ports: ["8080:80", "0:22"] };
  const first = await attachVm(request, kernel.options);
  const before = kernel.snapshot();
  for (const again of [request, { name: "web" }]) {
    const { record, changes } = await attachVm(again, kernel.options);
    assertEquals([record, changes], [first.record, []]);
  }
  assertEquals(kernel.snapshot(), before);
  assertEquals(await problems(kernel, "web"), []);
});

test("attachVm: what differs is repaired, and what stands on it", async () => {
  const cases = [
    ["netns web", true, ["netns", "network", "wire", "guard", "rules", "sysctls"]],
    ["netns web/eth0", true, ["network", "wire", "guard", "rules", "sysctls"]],
    ["netns web/vm_eth0", true, ["wire", "guard"]],
    ["netns web/vm_eth0/guard strict", false, ["guard"]],
    ["rules web/eth0", false, ["rules"]],
    ["setting forwarding", false, ["sysctls"]],
  ] as const;
  for (const [damage, replaced, layers] of cases) {
    using kernel = new FakeKernel();
    const { record } = await attachVm({ name: "web", ports: ["8080:80"] }, kernel.options);
    const before = kernel.snapshot();
    kernel.remove(damage);
    const [difference] = await differences(kernel, "web");
    assertEquals([difference?.object, difference?.layer], [damage, layers[0]]);
    const done = await attachVm({ name: "web" }, kernel.options);
    assertEquals(done.changes.map(({ layer }) => layer), [...layers], damage);
    assertEquals([done.tapReplaced, done.record], [replaced, record], damage);
    assertEquals(kernel.snapshot(), before, damage);
  }
});

test("attachVm, mapPorts: a port belongs to one VM, and claims are kept apart", async () => {
  using kernel = new FakeKernel();
  const { options } = kernel;
  await attachVm({ name: "a", ports: ["8080:80"] }, options);
  await attachVm({ name: "b" }, options);
  await assertRejects(() => mapPorts("b", ["8080:80"], options), PortConflictError);
  await mapPorts("a", ["9090:90"], options);
  const { record } = await attachVm({ name: "a", ports: ["8081:80"] }, options);
  assertEquals(record.ports.map(({ hostPort }) => hostPort), [8081, 9090]);
  const { ports } = await unmapPorts("a", ["8081:80"], options);
  assertEquals(ports.map(({ hostPort }) => hostPort), [9090]);
  assertEquals(getVm("a", options).ports.map(({ hostPort }) => hostPort), [9090]);
  assertEquals(listVms(options).map(({ vm }) => vm), ["a", "b"]);
});

/** What is done from which state, and whether the VM is there when it has been done. */
const VERBS: readonly {
  readonly what: string;
  readonly before: (kernel: FakeKernel) => Promise<unknown>;
  readonly verb: (kernel: FakeKernel) => Promise<unknown>;
}[] = [
  {
    what: "attach",
    before: async () => {},
    verb: ({ options }) => attachVm({ name: "web", ports: ["8080:80"] }, options),
  },
  {
    what: "attach with other ports and guards",
    before: ({ options }) => attachVm({ name: "web", ports: ["8080:80"] }, options),
    verb: ({ options }) => attachVm({ name: "web", ports: ["8081:80"], antispoof: false }, options),
  },
  {
    what: "attach after the network went",
    before: async (kernel) => {
      await attachVm({ name: "web", ports: ["8080:80"] }, kernel.options);
      kernel.remove("netns web/eth0");
    },
    verb: ({ options }) => attachVm({ name: "web" }, options),
  },
  {
    what: "map a port",
    before: ({ options }) => attachVm({ name: "web", ports: ["8080:80"] }, options),
    verb: ({ options }) => mapPorts("web", ["9090:90"], options),
  },
  {
    what: "unmap a port",
    before: ({ options }) => attachVm({ name: "web", ports: ["8080:80", "9090:90"] }, options),
    verb: ({ options }) => unmapPorts("web", ["8080:80"], options),
  },
  {
    what: "restore after a reboot",
    before: async (kernel) => {
      await attachVm({ name: "web", ports: ["8080:80"] }, kernel.options);
      kernel.reboot();
    },
    verb: async ({ options }) => {
      for (const { error } of await all(restoreVms(options))) if (error !== undefined) throw error;
    },
  },
  {
    what: "remove",
    before: ({ options }) => attachVm({ name: "web", ports: ["8080:80"] }, options),
    verb: ({ options }) => removeVm("web", options),
  },
  {
    what: "collect after a reboot",
    before: async (kernel) => {
      await attachVm({ name: "web", ports: ["8080:80"] }, kernel.options);
      kernel.reboot();
    },
    verb: async ({ options }) => {
      for (const { error } of await all(collectVms(options))) if (error !== undefined) throw error;
    },
  },
];

/** Does something with an accident at each effect in turn, each time from the start. */
async function atEachEffect(
  { before, verb }: (typeof VERBS)[number],
  is: "failure" | "kill",
  then: (kernel: FakeKernel, started: readonly string[], at: number) => Promise<void>,
): Promise<void> {
  for (let at = 1;; at++) {
    using kernel = new FakeKernel();
    await before(kernel);
    const started = kernel.snapshot();
    if (!await kernel.with({ at, is }, () => verb(kernel))) {
      assert(at > 1, "the verb has effects");
      return;
    }
    await then(kernel, started, at);
  }
}

for (const verb of VERBS) {
  const ends = /^(remove|collect)/.test(verb.what);

  test(`${verb.what}: an error at any effect undoes the others`, async () => {
    await atEachEffect(verb, "failure", async (kernel, started, at) => {
      const again = () => verb.verb(kernel);
      // What is taken away does not come back: it goes on past failures.
      if (!ends && !/network went|reboot/.test(verb.what)) {
        assertEquals(kernel.snapshot(), started, `at ${at}`);
      }
      await again();
      assertEquals(await problems(kernel, "web"), [], `at ${at}`);
    });
  });

  test(`${verb.what}: killed at any effect, the same command again ends it`, async () => {
    await atEachEffect(verb, "kill", async (kernel, _started, at) => {
      await verb.verb(kernel).catch(async () => {
        // map-port leaves that to attach-vm.
        await attachVm({ name: "web" }, kernel.options);
        await verb.verb(kernel);
      });
      const expected = new FakeKernel();
      await verb.before(expected);
      await verb.verb(expected);
      assertEquals(named(kernel), named(expected), `at ${at}`);
      assertEquals(await problems(kernel, "web"), [], `at ${at}`);
      expected[Symbol.dispose]();
    });
  });

  test(`${verb.what}: killed at any effect, removing leaves nothing`, async () => {
    await atEachEffect(verb, "kill", async (kernel, _started, at) => {
      await removeVm("web", kernel.options);
      assertEquals(kernel.snapshot(), [], `at ${at}`);
    });
  });
}

/** What is there, without the files. */
function named(kernel: FakeKernel): string[] {
  return [...kernel.things.keys()].sort();
}

/** What differs of a VM, as sentences; nothing where there is none. */
async function problems(kernel: FakeKernel, name: string): Promise<string[]> {
  return (await differences(kernel, name)).map(sentence);
}

/** What its layers find; checkVm waits for a DHCP server too, of which there is none. */
async function differences(kernel: FakeKernel, name: string) {
  using host = openHost(kernel.options);
  const stored = readVm(host, name);
  if (stored === undefined) return [];
  assert(stored.is === "attached", `${name} is changing`);
  using context = contextOf(lookingAt(host), stored);
  return await look(layersOf(host).vm, context, stored.at);
}
