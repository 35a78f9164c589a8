import { assertEquals } from "@std/assert";
import { formatRecord, placeholders, shellQuote } from "../../lib/vm/output.ts";
import type { VmInterface, VmRecord } from "../../lib/vm/types.ts";

const WEB: VmRecord = {
  version: 1,
  vm: "web",
  id: "3f0a",
  networkPlugin: "cni",
  netns: "/run/netns/tapkit-web",
  interfaces: [{
    name: "eth0",
    network: "ignite-cni-bridge",
    mode: "tc-redirect",
    tap: "vm_eth0",
    mac: "9a:3c:00:00:00:01",
    mtu: 1450,
    addresses: [{ address: "172.18.0.2/16", gateway: "172.18.0.1" }],
    routes: [{ dst: "0.0.0.0/0", gw: "172.18.0.1" }],
  }],
  dns: {
    nameservers: ["2001:db8::53", "192.0.2.53", "192.0.2.54", "192.0.2.55"],
    search: ["a", "b"],
  },
  ports: [{ hostIP: "", hostPort: 8080, vmPort: 80, protocol: "tcp" }],
};

const TWO: VmRecord = {
  ...WEB,
  dns: { nameservers: [], search: [] },
  interfaces: [
    ...WEB.interfaces,
    {
      name: "eth1",
      network: "six",
      mode: "tc-redirect",
      tap: "vm_eth1",
      mac: "9a:3c:00:00:00:02",
      mtu: 1500,
      addresses: [{ address: "2001:db8::2/64", gateway: "2001:db8::1" }, {
        address: "10.9.0.2/30",
      }],
      routes: [{ dst: "::/0" }, { dst: "2001:db8:9::/48", gw: "2001:db8::9" }, {
        dst: "10.1.0.0/16",
      }],
    },
  ],
};

Deno.test("formatRecord: json is the record on one line", () => {
  assertEquals(JSON.parse(formatRecord(WEB, "json")), JSON.parse(JSON.stringify(WEB)));
  assertEquals(formatRecord(WEB, "json").includes("\n"), false);
});

Deno.test("formatRecord: cmdline is the kernel's ip= with two IPv4 name servers", () => {
  assertEquals(
    formatRecord(WEB, "cmdline"),
    "ip=172.18.0.2::172.18.0.1:255.255.0.0:web:eth0:off:192.0.2.53:192.0.2.54",
  );
  // Of several words the kernel would take the last one.
  assertEquals(
    formatRecord({ ...TWO, vm: "my_web.x" }, "cmdline"),
    "ip=172.18.0.2::172.18.0.1:255.255.0.0:my-web.x:eth0:off",
  );
  const [web, six] = TWO.interfaces;
  const only = (...interfaces: VmInterface[]) => formatRecord({ ...TWO, interfaces }, "cmdline");
  assertEquals(only({ ...web!, routes: [] }), "ip=172.18.0.2:::255.255.0.0:web:eth0:off");
  assertEquals(only(six!, web!), "ip=10.9.0.2:::255.255.255.252:web:eth1:off");
  assertEquals(only({ ...six!, addresses: [{ address: "2001:db8::2/64" }] }), "");
  assertEquals(only(), "");
});

Deno.test("formatRecord: dracut has every interface, family, route and name server", () => {
  const { dns } = WEB;
  assertEquals(formatRecord({ ...TWO, dns }, "dracut").split(" "), [
    "ip=172.18.0.2::172.18.0.1:255.255.0.0:web:eth0:none:1450",
    "ip=10.9.0.2:::255.255.255.252:web:eth1:none:1500",
    "ip=[2001:db8::2]::[2001:db8::1]:64:web:eth1:none:1500",
    "rd.route=[2001:db8:9::/48]:[2001:db8::9]:eth1",
    "nameserver=[2001:db8::53]",
    ...["192.0.2.53", "192.0.2.54", "192.0.2.55"].map((server) => `nameserver=${server}`),
  ]);
});

Deno.test("formatRecord: qemu has a netdev and a device for each interface", () => {
  assertEquals(formatRecord(TWO, "qemu").split(" "), [
    "-netdev",
    "tap,id=eth0,ifname=vm_eth0,script=no,downscript=no",
    "-device",
    "virtio-net-pci,netdev=eth0,mac=9a:3c:00:00:00:01,host_mtu=1450",
    "-netdev",
    "tap,id=eth1,ifname=vm_eth1,script=no,downscript=no",
    "-device",
    "virtio-net-pci,netdev=eth1,mac=9a:3c:00:00:00:02,host_mtu=1500",
  ]);
});

Deno.test("formatRecord: env is read by a shell as it was written", () => {
  const odd = { ...TWO, dns: { nameservers: ["192.0.2.53"], search: ["it's", "$(b)"] } };
  const script = `${formatRecord(odd, "env")}
    printf '%s\\n' "$TAPKIT_NAME" "$TAPKIT_NETNS" "$TAPKIT_SEARCH" "$TAPKIT_INTERFACES" \\
      "$TAPKIT_ETH0_TAP" "$TAPKIT_ETH0_IP" "$TAPKIT_ETH0_NETMASK" "$TAPKIT_ETH0_GATEWAY" \\
      "$TAPKIT_ETH1_IP" "$TAPKIT_ETH1_ADDRESSES" "$TAPKIT_ETH1_GATEWAY" "$TAPKIT_ETH1_MTU"`;
  const { stdout } = new Deno.Command("sh", { args: ["-euc", script] }).outputSync();
  assertEquals(new TextDecoder().decode(stdout).trimEnd().split("\n"), [
    ...["web", "/run/netns/tapkit-web", "it's $(b)", "eth0 eth1"],
    ...["vm_eth0", "172.18.0.2", "255.255.0.0", "172.18.0.1"],
    ...["10.9.0.2", "2001:db8::2/64 10.9.0.2/30", "", "1500"],
  ]);
});

Deno.test("placeholders: are the first interface's values", () => {
  assertEquals(placeholders(WEB), {
    name: "web",
    netns: "/run/netns/tapkit-web",
    cmdline: formatRecord(WEB, "cmdline"),
    tap: "vm_eth0",
    mac: "9a:3c:00:00:00:01",
    mtu: "1450",
    ip: "172.18.0.2",
    netmask: "255.255.0.0",
    gateway: "172.18.0.1",
  });
});

Deno.test("shellQuote: leaves plain words and quotes the others", () => {
  assertEquals(["a/b:c=1", "", "a b", "it's"].map(shellQuote), [
    "a/b:c=1",
    "''",
    "'a b'",
    `'it'\\''s'`,
  ]);
});
