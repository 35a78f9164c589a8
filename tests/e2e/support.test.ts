/** The real guest, booted on a plain TAP with busybox' DHCP server: what the tests build on. */

import { assert, assertEquals } from "@std/assert";
import { Host } from "../support/host.ts";
import { QemuGuest } from "../support/qemu.ts";
import { serveTap } from "../support/tap-server.ts";

Deno.test("QemuGuest: boots, takes its lease, serves, and runs what it is asked", async () => {
  await using host = await Host.create();
  const record = await serveTap(host, { vm: "web", mac: "02:00:00:00:00:ab" });
  await using guest = await QemuGuest.boot(host, record);
  const { lease } = guest;
  assertEquals([lease.ip, lease.hostname, lease.mtu], ["10.99.0.2", "web", "1400"]);
  assertEquals(await guest.sh("hostname; cat /sys/class/net/eth0/mtu"), "web\n1400\n");
  assertEquals(
    await guest.sh("cat /etc/resolv.conf"),
    "search example.test\nnameserver 10.99.0.53\n",
  );
  assert((await guest.sh("ip route")).includes("10.98.0.0/16 via 10.99.0.7"));

  const page = await host.fetch("http://10.99.0.2/", { netns: "web" });
  assertEquals([page.status, page.body], [200, "web at your service\n"]);
  await guest.serveHttp(8081, "another\n");
  assertEquals((await host.fetch("http://10.99.0.2:8081/", { netns: "web" })).body, "another\n");
  const client = await host.fetch("http://10.99.0.2/cgi-bin/client", { netns: "web" });
  assert(client.body.includes("10.99.0.1"), client.body);
  assertEquals((await guest.fetch("http://10.99.0.1:8080/")).body, "from the host\n");

  const failed = await guest.run("echo out; echo err >&2; exit 7");
  assertEquals(failed, { code: 7, stdout: "out\n", stderr: "err\n" });
  assertEquals(await guest.shutdown(), 0);
});

Deno.test("QemuGuest: ip= on the kernel's command line configures it without DHCP", async () => {
  await using host = await Host.create();
  const record = await serveTap(host, { vm: "web", mac: "02:00:00:00:00:ab" });
  const append = "ip=10.99.0.9::10.99.0.1:255.255.255.0:static:eth0:off:10.99.0.53";
  await using guest = await QemuGuest.boot(host, record, { append });
  assertEquals([guest.lease.ip, await guest.sh("hostname")], ["10.99.0.9", "static\n"]);
  assertEquals((await host.fetch("http://10.99.0.9/", { netns: "web" })).status, 200);
});
