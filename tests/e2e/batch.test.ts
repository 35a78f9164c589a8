/**
 * What a VM of a batch asks of the kernel: that does not depend on the machine's load.
 */

import { assert, assertEquals } from "@std/assert";
import { Host } from "../support/host.ts";
import { callLibrary } from "../support/library.ts";

/** Datagrams to netlink for a VM with an interface and a published port; each has its answers. */
const MOST = 23;

Deno.test("attachVm: a VM of a session asks the kernel for no more than the one before it", async () => {
  await using host = await Host.create();
  await host.addLan();
  const counts = await callLibrary<number[]>(
    host,
    "sys/socket.ts",
    `
    const { attachVm, openSession, removeVms } = await import(root + "/mod.ts");
    let sent = 0;
    const { send } = library.Socket.prototype;
    library.Socket.prototype.send = function (...args) {
      sent++;
      return send.apply(this, args);
    };
    const names = Array.from({ length: 12 }, (_, index) => "vm" + index);
    const counts = [];
    {
      using session = await openSession(names.length);
      for (const [index, name] of names.entries()) {
        sent = 0;
        await attachVm({ name, ports: [(9000 + index) + ":80"] }, { session });
        counts.push(sent);
      }
    }
    for await (const { error } of removeVms(names)) if (error) throw error;
    return counts;`,
  );
  // The first makes the bridge, the firewall's table and the settings, the second reads them.
  const [, , third, ...others] = counts;
  assert(third !== undefined && third <= MOST, `${counts} datagrams`);
  assertEquals(new Set(others), new Set([third]), `${counts} datagrams`);
});
