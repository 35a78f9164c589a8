/** The namespace that plays a guest, against busybox' own DHCP server on the TAP. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { serveTap } from "../support/tap-server.ts";

const MAC = "02:00:00:00:00:aa";

Deno.test("NetnsGuest: gets a lease over the TAP, serves and fetches", async () => {
  await using host = await Host.create();
  const record = await serveTap(host, { vm: "web", mac: MAC });
  await using guest = await NetnsGuest.start(host, record);
  const lease = await guest.dhcp();
  assertEquals(
    [lease.ip, lease.mask, lease.router, lease.dns, lease.hostname, lease.mtu],
    ["10.99.0.2", "24", ["10.99.0.1"], ["10.99.0.53"], "web", "1400"],
  );
  assertEquals(lease.routes, ["10.98.0.0/16 10.99.0.7", "0.0.0.0/0 10.99.0.1"]);
  const [link] = JSON.parse(await guest.must("ip", ["-j", "address", "show", "eth0"]));
  assertEquals([link.address, link.mtu], [MAC, 1400]);
  assertEquals(link.addr_info[0].local, "10.99.0.2");
  const routes = await guest.must("ip", ["route"]);
  assert(routes.includes("10.98.0.0/16 via 10.99.0.7"), routes);
  assertEquals(await guest.must("hostname"), "web\n");
  assertEquals(
    await guest.readFile("/etc/resolv.conf"),
    "search example.test\nnameserver 10.99.0.53\n",
  );

  await guest.serveHttp(80, "from the guest\n");
  const page = await host.fetch("http://10.99.0.2/", { netns: "web" });
  assertEquals([page.status, page.body], [200, "from the guest\n"]);
  const back = await guest.fetch("http://10.99.0.1:8080/");
  assertEquals([back.status, back.body], [200, "from the host\n"]);
});

Deno.test("NetnsGuest: sends forged frames, and shows what passes", async () => {
  await using host = await Host.create();
  await using guest = await NetnsGuest.start(host, await serveTap(host, { vm: "web", mac: MAC }));
  const forged = new Uint8Array(60).fill(0xee);
  const frames = await guest.sniff(async () => {
    await guest.sendFrame(forged);
    await guest.dhcp();
  });
  assert(frames.some(({ bytes, direction }) => direction === "from-guest" && bytes[20] === 0xee));
  assert(frames.some(({ bytes, direction }) => direction === "to-guest" && bytes.length > 300));
});

Deno.test("NetnsGuest.dhcp: says so when nobody answers", async () => {
  await using host = await Host.create();
  await host.sh("ip netns add lonely; ip -n lonely tuntap add vm_eth0 mode tap");
  await using guest = await NetnsGuest.start(host, {
    vm: "lonely",
    netns: "/run/netns/lonely",
    interfaces: [{ tap: "vm_eth0", mac: MAC }],
  });
  await assertRejects(() => guest.dhcp(), Error, 'the guest "lonely" got no lease');
});
