/**
 * docs/firecracker.md, with programs in place of firecracker and jailer that boot a small guest. apt-get,
 * install.ts and systemctl are not run: the packages are there, and the test does what systemd does.
 */

import { assert, assertEquals } from "@std/assert";
import { Host } from "../support/host.ts";
import { installCommands, pageBlocks, startUnit } from "../support/page.ts";
import { published } from "../support/published.ts";
import { FIRECRACKER, giveGuest, JAILER } from "../support/stand-ins.ts";

const VMS = "/var/lib/vms";

Deno.test("docs/firecracker.md: a page from the guest, without and with the jailer", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const page = await installCommands(host, { firecracker: FIRECRACKER, jailer: JAILER });
  await giveGuest(host);
  // The jailer makes one that its user may open.
  await host.sh("mknod -m 666 /run/tun c 10 200; mount --bind /run/tun /dev/net/tun");
  const [root = "", configure = "", run = "", fetch = "", again = "", jail = "", remove = ""] =
    pageBlocks("firecracker.md", "sh");
  assert(remove.includes("attach-vm web --remove"));
  // What docs/qemu.md makes, and the kernel.
  await host.sh(`mkdir -p ${VMS}/debian/srv ${VMS}/debian/etc/systemd/system ${VMS}/debian/etc/cloud
    echo kernel >${VMS}/vmlinux; chmod -R a+rX /var/lib/vms`);
  const accepts = await published("firecracker");
  const fetched = async (unit: { readonly lines: readonly string[] }) => {
    const { stdout } = await host.run("bash", ["-euc", fetch], { ...page, timeoutMs: 120_000 });
    assertEquals(stdout, "web at your service\n", unit.lines.slice(-30).join("\n"));
  };

  await t.step("without", async () => {
    await host.sh(root, page);
    await host.sh(configure, page);
    accepts(JSON.parse(await host.readFile(`${VMS}/web.json`)));
    await host.sh(run, page);
    await using unit = await startUnit(host, "web", page);
    await fetched(unit);
    assert(unit.lines.includes(`firecracker runs as root in ${VMS}`));
    unit.kill("SIGTERM");
    assertEquals((await unit.status).code, 0);
  });

  await t.step("with, and again", async () => {
    await host.sh(again, page);
    accepts(JSON.parse(await host.readFile(`${VMS}/web.json`)));
    await host.sh(jail, page);
    for (let start = 0; start < 2; start++) {
      await using unit = await startUnit(host, "web", page);
      await fetched(unit);
      assert(
        unit.lines.includes(`firecracker runs as jailed in ${VMS}/jails/firecracker/web/root`),
      );
      unit.kill("SIGTERM");
      assertEquals((await unit.status).code, 0);
    }
  });

  await host.sh(remove, page);
  assertEquals(await host.sh("attach-vm --list", page), "");
});
