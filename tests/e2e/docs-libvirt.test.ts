/**
 * docs/libvirt.md, with a small guest in place of the one of docs/qemu.md. apt-get, install.ts and systemctl
 * are not run: the packages are there, and the test does what systemd does.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { VMS } from "../support/debian-image.ts";
import { guestImage } from "../support/guest-image.ts";
import { Host } from "../support/host.ts";
import { eventually } from "../support/machine.ts";
import { installCommands, pageBlocks, startUnit, withoutKvm } from "../support/page.ts";

Deno.test("docs/libvirt.md: virsh starts a domain in the VM's namespace, whose page is fetched", async () => {
  await using host = await Host.create();
  await host.addLan();
  const page = await installCommands(host);
  await withoutKvm(host);
  // As udev has it, and as the packages make it.
  await host.sh(`mknod -m 666 /run/tun c 10 200; mount --bind /run/tun /dev/net/tun
    groupadd --force kvm`);
  const blocks = pageBlocks("libvirt.md", "sh");
  const [users = "", attach = "", give = "", settings = "", define = "", fetch = "", ...ends] =
    blocks;
  assertEquals(ends.length, 2);
  const { kernel, initramfs } = await guestImage();
  await host.sh(`mkdir -p ${VMS}; cp ${kernel} ${VMS}/vmlinuz; cp ${initramfs} ${VMS}/initrd.img
    truncate --size 1M ${VMS}/web.raw ${VMS}/seed.iso; chmod 755 ${VMS}; chmod 644 ${VMS}/*`);
  for (const block of [users, attach, give, settings]) await host.sh(block, page);
  const unit = await startUnit(host, "web", page);
  await eventually(30_000, "libvirtd listens", async () => {
    return (await host.run("test", ["-S", "/run/vms/web/libvirt/libvirt-sock"])).code === 0;
  });
  assertMatch(define, /<domain type='kvm'>/);
  await host.sh(define.replace("<domain type='kvm'>", "<domain type='qemu'>"), page);
  const fetched = await host.run("bash", ["-euc", fetch], { ...page, timeoutMs: 120_000 });
  assertEquals(fetched.stdout, "web at your service\n", unit.lines.slice(-30).join("\n"));
  assertEquals((await host.sh("ps -C qemu-system-x86_64 -o user=")).trim(), "vmm");

  await host.sh("attach-vm queued --queues 2", page);
  const listed = await host.sh("attach-vm queued --list --output libvirt", page);
  const domain = define.replace(/^[^]*?<domain type='kvm'>/, "<domain type='qemu'>")
    .replace(/<\/domain>[^]*/, "</domain>").replace("<name>web", "<name>queued")
    .replace(/^\$\(attach-vm.*$/m, listed);
  await host.writeFile("/tmp/queued.xml", domain);
  const uri = "qemu+unix:///session?socket=/run/vms/web/libvirt/libvirt-sock";
  const defined = await host.sh(`virsh -c '${uri}' define /tmp/queued.xml
    virsh -c '${uri}' dumpxml queued; virsh -c '${uri}' undefine queued; rm /tmp/queued.xml`);
  assertMatch(defined, /<target dev='vm_eth0' managed='no'\/>\s*<model type='virtio'\/>/);
  assertMatch(defined, /<driver queues='2'\/>/);
  await host.sh("attach-vm queued --remove", page);

  const [end = "", remove = ""] = ends;
  await host.sh(end, page);
  unit.kill("SIGTERM");
  assertEquals((await unit.status).code, 0);
  await host.sh(remove, page);
  assertEquals(await host.sh("attach-vm --list", page), "");
});
