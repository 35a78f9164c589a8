/**
 * attach-vm on networks without a default route, and on several with one: what the guest is told.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";

// deno-lint-ignore no-explicit-any -- the record's own shape.
type Json = any;

function bridge(name: string, subnet: string, conf: Json = {}): string {
  const pool = { type: "host-local", ranges: [[{ subnet }]], ...conf.ipam };
  const plugin = { type: "bridge", bridge: `br-${name}`, isGateway: true, ...conf, ipam: pool };
  return JSON.stringify({ cniVersion: "0.4.0", name, plugins: [plugin] });
}

/**
 * A plugin of the specification's 0.3.0, as Weave's: of the result it has an address and its gateway
 * alone, and makes the default route without naming it. ROUTE is whether it does.
 */
function plain(subnet: string, route: boolean): string {
  return `#!/bin/sh
cat >/dev/null
in_netns() { nsenter --net=$CNI_NETNS "$@"; }
case $CNI_COMMAND in
ADD)
  ip link add plain$CNI_IFNAME type veth peer name $CNI_IFNAME netns $CNI_NETNS
  ip link set plain$CNI_IFNAME up
  ip addr replace ${subnet}.1/24 dev plain$CNI_IFNAME
  in_netns ip addr add ${subnet}.2/24 dev $CNI_IFNAME
  in_netns ip link set $CNI_IFNAME up
  ${route ? `in_netns ip route add default via ${subnet}.1` : ":"}
  echo '{"cniVersion":"0.3.0","ips":[{"version":"4","address":"${subnet}.2/24","gateway":"${subnet}.1"}]}'
  ;;
DEL) ip link del plain$CNI_IFNAME 2>/dev/null || true ;;
VERSION) echo '{"cniVersion":"0.3.0","supportedVersions":["0.3.0"]}' ;;
esac
`;
}

async function hostWith(files: Record<string, string>): Promise<Host> {
  const host = await Host.create({ name: "routes" });
  await host.addLan();
  for (const [path, text] of Object.entries(files)) {
    const isPlugin = path.startsWith("/opt");
    await host.writeFile(
      isPlugin ? path : `/etc/cni/net.d/${path}`,
      text,
      isPlugin ? 0o755 : 0o644,
    );
  }
  return host;
}

/** What a guest's DHCP client gets on one interface, and what it makes of it. */
async function leaseOf(host: Host, record: Json, index: number) {
  const interfaces = [record.interfaces[index]];
  await using guest = await NetnsGuest.start(host, { ...record, interfaces });
  const { router, routes } = await guest.dhcp();
  return { router, routes, table: (await guest.must("ip", ["route"])).trim().split("\n").sort() };
}

const STORAGE = { router: [], routes: [] };

Deno.test("attach-vm: a network without a default route tells its guest no router", async () => {
  await using host = await hostWith({
    "10-lan.conflist": bridge("lan", "10.4.0.0/24", { isDefaultGateway: true, ipMasq: true }),
    "20-storage.conflist": bridge("storage", "10.5.0.0/24"),
  });
  const words = ["--network", "lan", "--network", "storage"];
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...words);
  const [lan, storage] = record.interfaces;
  assertEquals(lan.routes, [{ dst: "0.0.0.0/0", gw: "10.4.0.1" }]);
  assertEquals([storage.routes, storage.addresses], [[], [{ address: "10.5.0.2/24" }]]);
  const first = await leaseOf(host, record, 0);
  assertEquals([first.router, first.routes], [["10.4.0.1"], []]);
  assertEquals(await leaseOf(host, record, 1), {
    ...STORAGE,
    table: ["10.5.0.0/24 dev eth0 proto kernel scope link src 10.5.0.2"],
  });
  const { json: [only] } = await host.mustTapkit("attach-vm", "db", "--network", "storage");
  const { stdout } = await host.mustTapkit("attach-vm", "db", "--output", "cmdline");
  assertEquals(stdout.trim().split(":").slice(0, 4), ["ip=10.5.0.3", "", "", "255.255.255.0"]);
  const env = await host.mustTapkit("attach-vm", "db", "--output", "env");
  assertEquals(/^TAPKIT_ETH0_GATEWAY=(.*)$/m.exec(env.stdout)?.[1], "''");
  assertEquals(only.interfaces[0].routes, []);
  // The host is still the guest's way to elsewhere, if it wants: that can be closed.
  await host.mustTapkit("attach-vm", "db", "--deny-egress", "0.0.0.0/0");
  for (const name of ["web", "db"]) await host.mustTapkit("attach-vm", name, "--check");
});

Deno.test("attach-vm: routes that a network names go to the guest by its gateway", async () => {
  const ipam = { routes: [{ dst: "10.9.0.0/16" }, { dst: "10.8.0.0/16", gw: "10.5.0.7" }] };
  await using host = await hostWith({
    "20-storage.conflist": bridge("storage", "10.5.0.0/24", { ipam }),
  });
  const { json: [record] } = await host.mustTapkit("attach-vm", "web");
  const { router, routes, table } = await leaseOf(host, record, 0);
  assertEquals([router, routes], [[], ["10.9.0.0/16 10.5.0.1", "10.8.0.0/16 10.5.0.7"]]);
  assertEquals(table.filter((line) => line.startsWith("default")), []);
});

Deno.test("attach-vm: of two networks with a default route the first one's stays", async () => {
  for (const plugins of ["builtin", "exec"]) {
    await using host = await hostWith({
      "10-a.conflist": bridge("a", "10.4.0.0/24", { isDefaultGateway: true }),
      "20-b.conflist": bridge("b", "10.5.0.0/24", { isDefaultGateway: true }),
    });
    await firstStays(host, plugins);
  }
});

async function firstStays(host: Host, plugins: string): Promise<void> {
  const words = ["--network", "b", "--network", "a", "--plugins", plugins];
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...words);
  assertEquals(record.interfaces.map(({ routes }: Json) => routes), [
    [{ dst: "0.0.0.0/0", gw: "10.5.0.1" }],
    [],
  ]);
  assertEquals((await leaseOf(host, record, 0)).router, ["10.5.0.1"]);
  assertEquals((await leaseOf(host, record, 1)).router, []);
  await host.mustTapkit("attach-vm", "web", "--check");
  const { json: [again] } = await host.mustTapkit("attach-vm", "web");
  assertEquals(again.interfaces, record.interfaces);
  await host.sh("ip netns delete tapkit-web");
  const { json: [restored] } = await host.mustTapkit("attach-vm", "--restore");
  const told = restored.interfaces.map((
    { routes, addresses: [{ gateway }] }: Json,
  ) => [routes, gateway]);
  assertEquals(told, [[[{ dst: "0.0.0.0/0", gw: "10.5.0.1" }], "10.5.0.1"], [[], undefined]]);
}

Deno.test("attach-vm: an executed plugin's routes are those of the namespace", async () => {
  for (const route of [true, false]) {
    const conf = { cniVersion: "0.3.0", name: "net", plugins: [{ type: "plain" }] };
    await using host = await hostWith({
      "10-net.conflist": JSON.stringify(conf),
      "/opt/cni/bin/plain": plain("10.5.0", route),
    });
    const { json: [record] } = await host.mustTapkit("attach-vm", "web");
    const gateway = route ? { gateway: "10.5.0.1" } : {};
    assertEquals(record.interfaces[0].addresses, [{ address: "10.5.0.2/24", ...gateway }]);
    const { router, routes } = await leaseOf(host, record, 0);
    assertEquals([router, routes], [route ? ["10.5.0.1"] : [], []]);
    await host.mustTapkit("attach-vm", "web", "--remove");
  }
});
