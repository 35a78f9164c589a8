/**
 * docs/cloud-hypervisor.md, with a program in place of cloud-hypervisor that boots a small guest. apt-get,
 * install.ts and systemctl are not run: the packages are there, and the test does what systemd does.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";
import { installCommands, pageBlocks, startUnit } from "../support/page.ts";
import { CLOUD_HYPERVISOR, giveGuest } from "../support/stand-ins.ts";

const VMS = "/var/lib/vms";

Deno.test("docs/cloud-hypervisor.md: a page from the guest, with one queue and with two", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const page = await installCommands(host, { "cloud-hypervisor": CLOUD_HYPERVISOR });
  await giveGuest(host);
  // As udev has it, and as the packages make it.
  await host.sh(`mknod -m 666 /run/tun c 10 200; mount --bind /run/tun /dev/net/tun
    groupadd --force kvm`);
  const [users = "", attach = "", give = "", run = "", fetch = "", queues = "", remove = ""] =
    pageBlocks("cloud-hypervisor.md", "sh");
  assert(remove.includes("attach-vm web --remove"));
  // What docs/qemu.md makes.
  await host.sh(`mkdir -p ${VMS}; cd ${VMS}; echo | tee vmlinuz initrd.img web.raw seed.iso
    chmod 755 ${VMS}`);
  for (const block of [users, attach, give, run]) await host.sh(block, page);

  const start = async () => {
    await using unit = await startUnit(host, "web", page);
    const { stdout } = await host.run("bash", ["-euc", fetch], { ...page, timeoutMs: 120_000 });
    assertEquals(stdout, "web at your service\n", unit.lines.slice(-30).join("\n"));
    assertEquals((await host.sh("ps -C qemu-system-x86_64 -o user=")).trim(), "vmm");
    const [link] = JSON.parse(await host.sh("ip -n tapkit-web -d -j link show vm_eth0"));
    unit.kill("SIGTERM");
    assertEquals((await unit.status).code, 0);
    return link.linkinfo.info_data;
  };
  await t.step("one queue", async () => {
    assertEquals((await start()).multi_queue, false);
  });
  await t.step("two queues", async () => {
    await host.sh(queues, page);
    assertMatch(await host.readFile("/etc/tapkit/web.conf"), /,num_queues=4$/m);
    const { multi_queue, numqueues } = await start();
    assertEquals([multi_queue, numqueues], [true, 2]);
  });

  await host.sh(remove, page);
  assertEquals(await host.sh("attach-vm --list", page), "");
});
