/**
 * A VM that the version before attached, by its record of version 1, taken over by this one.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { Record1 } from "../../lib/vm/record/version-1.ts";
import {
  REFERENCE_BRIDGE,
  REFERENCE_PORTMAP,
  referenceNetwork,
  requireReference,
  SHARED,
} from "../support/cni-reference.ts";
import { Host } from "../support/host.ts";
import { toRecord1 } from "../support/record-1.ts";

requireReference();

const RECORD = "/var/lib/tapkit/vms/web.json";

/** What comes by itself soon after an attachment: see attach.test.ts. */
const SETTLING = [/serve-dhcp/, /fe80::/];

async function storedVersion(host: Host): Promise<number> {
  return JSON.parse(await host.readFile(RECORD)).version;
}

/** A host with a VM whose record is of version 1. */
async function takenOver(host: Host, request: Record1["made"]["request"], ...args: string[]) {
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...args);
  const { version: _, ...attachment } = JSON.parse(await host.readFile(RECORD));
  await host.writeFile(RECORD, JSON.stringify(toRecord1(attachment, request)));
  await host.awaitDhcp();
  return record;
}

async function assertChecks(host: Host): Promise<void> {
  const { code, json, stderr } = await host.tapkit("attach-vm", "web", "--check");
  assertEquals([code, json], [0, [{ vm: "web", problems: [] }]], stderr);
}

const CASES: readonly {
  readonly name: string;
  readonly plugins?: readonly unknown[];
  readonly args: readonly string[];
  readonly request: Omit<Record1["made"]["request"], "name">;
}[] = [
  {
    name: "on the default network",
    args: ["--ports", "8080:80", "--deny-egress", "10.0.0.0/8"],
    request: { ports: ["8080:80"], denyEgress: ["10.0.0.0/8"] },
  },
  {
    name: "of executed plugins",
    plugins: [REFERENCE_BRIDGE, REFERENCE_PORTMAP],
    args: ["--ports", "8080:80"],
    request: { ports: ["8080:80"] },
  },
];

for (const { name, plugins, args, request } of CASES) {
  Deno.test(`attach-vm: a VM ${name} with a record of version 1 is taken over as it is`, async () => {
    await using host = await Host.create();
    await host.addLan();
    if (plugins !== undefined) {
      await host.writeFile("/etc/cni/net.d/10-net.conflist", referenceNetwork(plugins));
    }
    const empty = await host.snapshot();
    const record = await takenOver(host, { name: "web", ...request }, ...args);
    assertEquals((await host.mustTapkit("attach-vm", "--list")).json, [record]);
    await assertChecks(host);

    const before = await host.snapshot();
    const again = await host.mustTapkit("attach-vm", "web", ...args);
    assertEquals([again.json, again.done], [[record], [{ changes: [], tapReplaced: false }]]);
    await host.assertRestored(before, { strict: true, withinMs: 0, except: SETTLING });

    await host.mustTapkit("map-port", "web", "9090:90");
    assertEquals(await storedVersion(host), 2);
    const port = { hostIP: "0.0.0.0", hostPort: 9090, vmPort: 90, protocol: "tcp" };
    const { json: [mapped] } = await host.mustTapkit("attach-vm", "web", "--list");
    assertEquals(mapped, { ...record, ports: [...record.ports, port] });
    await assertChecks(host);

    assertEquals((await host.mustTapkit("attach-vm", "web", "--remove")).json, [
      { vm: "web", removed: true },
    ]);
    await host.assertRestored(empty, { except: plugins === undefined ? [] : SHARED });
  });
}
