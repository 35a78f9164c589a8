import { assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { Host } from "../support/host.ts";
import { QemuGuest } from "../support/qemu.ts";

Deno.test("a real guest: its lease, its page for everyone, the LAN for it, and nothing left", async () => {
  await using host = await Host.create();
  const peer = await host.addLan({ mtu: 1450 });
  await peer.serveHttp(8000, "from the LAN");
  const before = await host.snapshot();
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  {
    await using guest = await QemuGuest.boot(host, record);
    const { ip, mask, router, dns, search, hostname, mtu, lease } = guest.lease;
    assertEquals(
      { ip, mask, router, dns, search, hostname, mtu, lease },
      {
        ip: "172.18.0.2",
        mask: "16",
        router: ["172.18.0.1"],
        dns: ["192.0.2.53"],
        search: ["example.test"],
        hostname: "web",
        mtu: "1450",
        lease: "86400",
      },
    );
    // What the guest made of it.
    assertMatch(await guest.sh("ip route"), /^default via 172\.18\.0\.1 dev eth0/m);
    assertMatch(await guest.sh("ip link show eth0"), /mtu 1450/);
    assertEquals(
      await guest.sh("cat /etc/resolv.conf"),
      "search example.test\nnameserver 192.0.2.53\n",
    );
    assertEquals(await guest.sh("hostname"), "web\n");

    assertEquals((await peer.fetch("http://192.0.2.1:8080/")).status, 200);
    assertEquals((await host.fetch("http://127.0.0.1:8080/")).status, 200);
    assertEquals((await guest.fetch("http://192.0.2.1:8080/")).status, 200);
    assertEquals((await guest.fetch("http://192.0.2.2:8000/")).body, "from the LAN");
  }
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("two real guests started by attach-vm reach each other, and go with their VMMs", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const before = await host.snapshot();
  const [web, api] = await Promise.all([
    QemuGuest.attach(host, ["web", "--ports", "8080:80"]),
    QemuGuest.attach(host, ["api"]),
  ]);
  assertNotEquals(web.lease.ip, api.lease.ip);
  assertEquals((await api.fetch(`http://${web.lease.ip}/`)).status, 200);
  assertEquals((await web.fetch(`http://${api.lease.ip}/`)).status, 200);
  assertEquals((await peer.fetch("http://192.0.2.1:8080/")).status, 200);
  assertEquals(await Promise.all([web.shutdown(), api.shutdown()]), [0, 0]);
  await host.assertRestored(before);
});

Deno.test("a VMM without privileges opens the TAP that was made for its user", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--tap-owner", "nobody");
  // udev lets everybody open the device; a machine without udev may not.
  await host.sh("mknod -m 666 /run/tun c 10 200 && busybox mount --bind /run/tun /dev/net/tun");
  const open = [
    ...["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all"],
    ...["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-S"],
    ...["-netdev", "tap,id=n0,ifname=vm_eth0,script=no,downscript=no,vhost=off"],
    ...["-monitor", "stdio"],
  ];
  const netns = "tapkit-web";
  const { code, stderr } = await host.run(open[0]!, open.slice(1), { netns, stdin: "quit\n" });
  assertEquals(code, 0, stderr);
  const other = open.map((word) => word === "65534" ? "12345" : word);
  const refused = await host.run(other[0]!, other.slice(1), { netns, stdin: "quit\n" });
  assertEquals(refused.code, 1);
  assertMatch(refused.stderr, /Operation not permitted/);
});
