/**
 * The name servers that a guest is told, as the host's come and go.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { reboot } from "../support/reboot.ts";

Deno.test("attach-vm --restore: before the host has resolvers the guest gets them later", async () => {
  await using host = await Host.create({ name: "resolvers" });
  await host.addLan();
  await host.mustTapkit("attach-vm", "web");
  await reboot(host);
  await host.sh("rm /etc/resolv.conf");
  const { json: [early] } = await host.mustTapkit("attach-vm", "--restore");
  assertEquals(early.dns, { nameservers: ["192.0.2.53"], search: ["example.test"] });

  // One that is attached before there are any.
  const { json: [late], stderr } = await host.mustTapkit("attach-vm", "late");
  assertEquals(late.dns, { nameservers: [], search: [] });
  assertMatch(stderr, /warning: no name server for the guest/);

  await using guest = await NetnsGuest.start(host, late);
  assertEquals((await guest.dhcp()).dns, []);
  const stub = "nameserver 127.0.1.1\nsearch corp.example\n";
  await host.writeFile("/etc/resolv.conf", stub);
  await host.writeFile("/run/NetworkManager/no-stub-resolv.conf", "nameserver 192.0.2.77\n");
  const lease = await guest.dhcp();
  assertEquals([lease.dns, lease.search], [["192.0.2.77"], ["corp.example"]]);
  assertEquals([lease.lease, lease.options.opt53], ["86400", "05"]);
  // The file is replaced as a whole, and the record follows at the next look.
  await host.writeFile("/etc/resolv.new", "nameserver 192.0.2.78\n");
  await host.sh("mv /etc/resolv.new /etc/resolv.conf");
  assertEquals((await guest.dhcp()).dns, ["192.0.2.78"]);
  const { json: [again], stderr: said } = await host.mustTapkit("attach-vm", "late");
  assertEquals([again.dns.nameservers, said], [["192.0.2.78"], ""]);
  for (const name of ["web", "late"]) await host.mustTapkit("attach-vm", name, "--remove");
});

Deno.test("attach-vm: a network's own name servers are told, whatever the host's are", async () => {
  await using host = await Host.create({ name: "resolvers" });
  await host.addLan();
  const plugin = {
    type: "bridge",
    bridge: "br0",
    ipam: { type: "host-local", subnet: "10.4.0.0/24" },
    dns: { nameservers: ["10.4.0.53"], search: ["net.example"] },
  };
  const list = { cniVersion: "0.4.0", name: "net", plugins: [plugin] };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", JSON.stringify(list));
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--plugins", "builtin");
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await host.writeFile("/etc/resolv.conf", "nameserver 192.0.2.78\n");
  const lease = await guest.dhcp();
  assertEquals([lease.dns, lease.search], [["10.4.0.53"], ["net.example"]]);
  const { json: [again] } = await host.mustTapkit("attach-vm", "web");
  assertEquals(again, record);
  await host.mustTapkit("attach-vm", "web", "--remove");
});
