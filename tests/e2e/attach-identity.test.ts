/**
 * Addresses and MACs that are asked for, and cannot be had.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import { REFERENCE_DIR, requireReference } from "../support/cni-reference.ts";
import { Host } from "../support/host.ts";

requireReference();

/** What comes after the first VM by itself. */
const BY_ITSELF = [/fe80:/, /ff00::/, /serve-dhcp/];

Deno.test("attach-vm --mac, --ip: what others have or the network has not is refused, nothing is touched", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const network = (name: string, bridge: string, ipam: unknown) =>
    host.writeFile(
      `/etc/cni/net.d/${name}.conflist`,
      JSON.stringify({
        cniVersion: "1.0.0",
        name,
        plugins: [{
          type: "bridge",
          bridge,
          isGateway: true,
          ipam,
          capabilities: { mac: true, ips: true },
        }],
      }),
    );
  await host.sh("mkdir -p /etc/cni/net.d");
  const pool = (subnet: string) => ({ type: "host-local", ranges: [[{ subnet }]] });
  await network("10-one", "br-one", pool("10.20.0.0/16"));
  await network("20-same-bridge", "br-one", pool("10.21.0.0/16"));
  await network("30-other", "br-other", pool("10.22.0.0/16"));
  await network("40-static", "br-static", {
    type: "static",
    addresses: [{ address: "10.23.0.2/24" }],
  });
  const mac = "02:00:00:00:00:07";
  await host.mustTapkit("attach-vm", "first", "--network", "10-one", "--mac", mac);
  const { mac: bridge } = JSON.parse(await host.sh("ip -j link show br-one"))
    .map(({ address }: { address: string }) => ({ mac: address }))[0];
  const [{ address: port }] = JSON.parse(await host.sh("ip -j link show master br-one"));
  const before = await host.snapshot();
  const cases: [args: string[], message: RegExp][] = [
    [["--network", "10-one", "--mac", mac.toUpperCase()], /VM "first" has it: choose another/],
    [["--network", "20-same-bridge", "--mac", mac], /VM "first" has it/],
    [["--network", "10-one", "--mac", bridge], /it is that of the bridge "br-one"/],
    [["--network", "10-one", "--mac", port], /it is that of the host's link "veth/],
    [
      ["--network", "10-one", "--ip", "10.20.0.9/24"],
      /have the prefix length 16, not 24: write --ip 10\.20\.0\.9, or 10\.20\.0\.9\/16/,
    ],
    [["--network", "40-static", "--ip", "10.23.0.9/16"], /have the prefix length 24, not 16/],
  ];
  for (const plugins of ["builtin", "exec"]) {
    for (const [args, message] of cases) {
      // tapkit has no static IPAM of its own.
      if (plugins === "builtin" && args.includes("40-static")) continue;
      await t.step(`${args.join(" ")} by ${plugins}`, async () => {
        const words = ["late", "--plugins", plugins, "--cni-bin-dir", REFERENCE_DIR, ...args];
        const { code, stderr } = await host.tapkit("attach-vm", ...words);
        assertEquals(code, 2, `${args.join(" ")}: ${stderr}`);
        assertMatch(stderr, message);
      });
    }
  }
  await host.assertRestored(before, { except: BY_ITSELF });

  await host.mustTapkit("attach-vm", "other", "--network", "30-other", "--mac", mac);
  await host.mustTapkit("attach-vm", "first", "--mac", mac);
  const { json } = await host.mustTapkit(
    ...["attach-vm", "late", "--network", "10-one", "--ip", "10.20.0.9/16"] as const,
  );
  assertEquals(json[0].interfaces[0].addresses[0].address, "10.20.0.9/16");
});

Deno.test("attach-vm, map-port: ports of an address that the host does not have are refused", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web");
  const before = await host.snapshot();
  const absent =
    /does not have the address 198\.51\.100\.9 to map ports of: .* set net\.ipv4\.ip_nonlocal_bind = 1/;
  for (
    const [script, ...args] of [
      ["attach-vm", "late", "--ports", "198.51.100.9:8080:80"],
      ["attach-vm", "late", "--ports", "198.51.100.9:0:80"],
      ["attach-vm", "web", "--ports", "8080:80", "--ports", "198.51.100.9:8081:80"],
      ["map-port", "web", "198.51.100.9:8080:80"],
      ["map-port", "--to", "192.0.2.2", "198.51.100.9:8080:80"],
      ["map-port", "web", "192.0.2.255:8080:80"],
    ] as [string, ...string[]][]
  ) {
    const { code, stderr } = await host.tapkit(script, ...args);
    assertEquals(code, 1, `${args.join(" ")}: ${stderr}`);
    if (!args.join().includes("192.0.2.255")) assertMatch(stderr, absent);
  }
  await host.assertRestored(before, { except: BY_ITSELF });
  // Addresses that a route makes local, and 127.0.0.0/8, are the host's.
  await host.sh("ip route add local 203.0.113.0/24 dev lo");
  await host.mustTapkit("map-port", "web", "203.0.113.5:8080:80", "127.0.0.9:8080:80");

  // What is recorded waits for its address.
  await host.sh("ip address add 198.51.100.9/32 dev lo");
  await host.mustTapkit("map-port", "web", "198.51.100.9:8080:80");
  await host.sh("ip address del 198.51.100.9/32 dev lo; ip netns delete tapkit-web");
  await host.mustTapkit("attach-vm", "--restore");
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
  // So does what is to come.
  await host.sh("echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind");
  await host.mustTapkit("map-port", "web", "198.51.100.10:8080:80");
});

Deno.test("attach-vm --ports 0:80, map-port: ports that are reserved are not chosen", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh(
    `echo 40000 40009 >/proc/sys/net/ipv4/ip_local_port_range
     echo 40000-40003,40005,40007-40009 >/proc/sys/net/ipv4/ip_local_reserved_ports`,
  );
  const { json } = await host.mustTapkit("attach-vm", "one", "two", "--ports", "0:80");
  assertEquals(json.map(({ ports: [port] }) => port.hostPort).sort(), [40004, 40006]);
  const { code, stderr } = await host.tapkit("map-port", "one", "0:81");
  assertEquals(code, 1);
  assertMatch(stderr, /no host port is free for "0:81".*ip_local_reserved_ports/);
  // Whoever asks for one gets it.
  await host.mustTapkit("map-port", "one", "40005:81");
});
