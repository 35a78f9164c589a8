/**
 * docs/qemu.md: a Debian guest with cloud-init, run as the unit tapkit-vm@ runs it. apt-get, install.ts and
 * systemctl are not run: the packages are there, and the test does what systemd does.
 */

import { assert, assertEquals } from "@std/assert";
import { giveDebianImage, imageCommands } from "../support/debian-image.ts";
import { Host } from "../support/host.ts";
import { installCommands, pageBlocks, startUnit, withoutKvm } from "../support/page.ts";

Deno.test("docs/qemu.md: from a disk image to a page from the guest, and nothing left", async () => {
  await using host = await Host.create();
  await host.addLan();
  const page = await installCommands(host);
  await withoutKvm(host);
  const before = await host.snapshot();
  await giveDebianImage(host);
  const blocks = pageBlocks("qemu.md", "sh").filter((block) => block !== imageCommands());
  const [attach = "", write = "", fetch = "", remove = ""] = blocks;
  assertEquals(blocks.length, 4);
  await host.sh(attach, page);
  await host.sh(write, page);
  const unit = await startUnit(host, "web", page);
  const fetched = await host.run("bash", ["-euc", fetch], { ...page, timeoutMs: 480_000 });
  assertEquals(fetched.stdout, "hello from web\n", unit.lines.slice(-30).join("\n"));
  assert(unit.lines.some((line) => line.includes("DataSourceNoCloud [seed=/dev/vdb]")));
  // As systemd stops it: KillMode=mixed.
  unit.kill("SIGTERM");
  assertEquals((await unit.status).code, 0);
  assertEquals((await host.run("attach-vm", ["web", "--check"], page)).code, 0);
  await host.sh(remove, page);
  await host.assertRestored(before);
});
