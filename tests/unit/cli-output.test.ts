import { assertEquals, assertThrows } from "@std/assert";
import { InputError } from "../../lib/errors.ts";
import { fillIn, formatRecord, placeholders, shellQuote } from "../../lib/vm/output.ts";
import type { VmInterface, VmRecord } from "../../lib/vm/types.ts";
import { netConfig, published } from "../support/published.ts";

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

Deno.test("formatRecord: cloud-hypervisor has a value of --net for each interface, as its API has it", async () => {
  assertEquals(formatRecord(TWO, "cloud-hypervisor").split(" "), [
    "--net",
    "tap=vm_eth0,mac=9a:3c:00:00:00:01,id=eth0",
    "tap=vm_eth1,mac=9a:3c:00:00:00:02,id=eth1",
  ]);
  assertEquals(formatRecord({ ...TWO, interfaces: [] }, "cloud-hypervisor"), "");
  const accepts = await published("cloud-hypervisor");
  for (const value of formatRecord(TWO, "cloud-hypervisor").split(" ").slice(1)) {
    accepts(netConfig(value));
  }
});

Deno.test("formatRecord: libvirt has an element for each interface, with its queues", () => {
  const [web, six] = TWO.interfaces;
  const interfaces = [web!, { ...six!, queues: 4 }];
  assertEquals(formatRecord({ ...TWO, interfaces }, "libvirt").split("\n"), [
    "<interface type='ethernet'><mac address='9a:3c:00:00:00:01'/>" +
    "<target dev='vm_eth0' managed='no'/><model type='virtio'/></interface>",
    "<interface type='ethernet'><mac address='9a:3c:00:00:00:02'/>" +
    "<target dev='vm_eth1' managed='no'/><model type='virtio'/><driver queues='4'/></interface>",
  ]);
});

Deno.test("formatRecord: firecracker completes a configuration file, as its API has it", async () => {
  const part = JSON.parse(formatRecord(TWO, "firecracker"));
  assertEquals(part, {
    "boot-source": {
      boot_args: `console=ttyS0 reboot=k panic=1 ${formatRecord(TWO, "cmdline")}`,
    },
    "network-interfaces": [
      { iface_id: "eth0", host_dev_name: "vm_eth0", guest_mac: "9a:3c:00:00:00:01", mtu: 1450 },
      // Every version of Firecracker knows these keys.
      { iface_id: "eth1", host_dev_name: "vm_eth1", guest_mac: "9a:3c:00:00:00:02" },
    ],
    "mmds-config": { version: "V2", network_interfaces: ["eth0"] },
  });
  const accepts = await published("firecracker");
  const whole = (added: { readonly "boot-source": Record<string, string> }) => ({
    drives: [],
    "machine-config": { vcpu_count: 1, mem_size_mib: 128 },
    ...added,
    "boot-source": { ...added["boot-source"], kernel_image_path: "vmlinux" },
  });
  accepts(whole(part));
  const none = JSON.parse(formatRecord({ ...TWO, interfaces: [] }, "firecracker"));
  assertEquals(none["boot-source"], { boot_args: "console=ttyS0 reboot=k panic=1" });
  accepts(whole(none));
});

Deno.test("formatRecord: several queues are in the arguments that go with them; Firecracker has none", async () => {
  const record = {
    ...TWO,
    interfaces: TWO.interfaces.map((link) => ({ ...link, queues: 4 })),
  };
  assertEquals(formatRecord(record, "qemu").split(" ").slice(0, 4), [
    "-netdev",
    "tap,id=eth0,ifname=vm_eth0,script=no,downscript=no,queues=4",
    "-device",
    "virtio-net-pci,netdev=eth0,mac=9a:3c:00:00:00:01,host_mtu=1450,mq=on,vectors=10",
  ]);
  const [, value = ""] = formatRecord(record, "cloud-hypervisor").split(" ");
  assertEquals(value, "tap=vm_eth0,mac=9a:3c:00:00:00:01,id=eth0,num_queues=8");
  (await published("cloud-hypervisor"))(netConfig(value));
  assertEquals(fillIn(record, ["{queues}", "{eth1.queues}"]), ["4", "4"]);
  assertThrows(
    () => formatRecord(record, "firecracker"),
    InputError,
    'Firecracker cannot open the TAP of "web", which has several queues',
  );
});

Deno.test("formatRecord: mmds has the form of EC2's metadata, all text", () => {
  assertEquals(JSON.parse(formatRecord({ ...TWO, vm: "my_web" }, "mmds")), {
    latest: {
      "meta-data": {
        "instance-id": "3f0a",
        "local-hostname": "my-web",
        mac: "9a:3c:00:00:00:01",
        "local-ipv4": "172.18.0.2",
        network: {
          interfaces: {
            macs: {
              "9a:3c:00:00:00:01": {
                "device-number": "0",
                "local-ipv4s": "172.18.0.2",
                "subnet-ipv4-cidr-block": "172.18.0.0/16",
              },
              "9a:3c:00:00:00:02": {
                "device-number": "1",
                "local-ipv4s": "10.9.0.2",
                "subnet-ipv4-cidr-block": "10.9.0.0/30",
                ipv6s: "2001:db8::2",
              },
            },
          },
        },
      },
    },
  });
});

Deno.test("formatRecord: cloud-init has each interface by its MAC, with routes, name servers and MTU", () => {
  const [web, six] = TWO.interfaces;
  const record = {
    ...TWO,
    dns: WEB.dns,
    interfaces: [web!, {
      ...six!,
      // The gateway of 10.2.0.0/16 is in none of the guest's prefixes, fe80::1 is on every link.
      routes: [
        ...six!.routes,
        { dst: "10.2.0.0/16", gw: "169.254.1.1" },
        { dst: "2001:db8:a::/48", gw: "fe80::1" },
      ],
    }],
  };
  assertEquals(JSON.parse(formatRecord(record, "cloud-init")), {
    version: 2,
    ethernets: {
      eth0: {
        match: { macaddress: "9a:3c:00:00:00:01" },
        "set-name": "eth0",
        mtu: 1450,
        dhcp4: false,
        dhcp6: false,
        addresses: ["172.18.0.2/16"],
        routes: [{ to: "0.0.0.0/0", via: "172.18.0.1" }],
        nameservers: { addresses: WEB.dns.nameservers, search: ["a", "b"] },
      },
      eth1: {
        match: { macaddress: "9a:3c:00:00:00:02" },
        "set-name": "eth1",
        mtu: 1500,
        dhcp4: false,
        dhcp6: false,
        addresses: ["2001:db8::2/64", "10.9.0.2/30"],
        gateway6: "2001:db8::1",
        routes: [
          { to: "169.254.1.1/32", scope: "link" },
          { to: "2001:db8:9::/48", via: "2001:db8::9" },
          { to: "10.1.0.0/16", scope: "link" },
          { to: "10.2.0.0/16", via: "169.254.1.1", "on-link": true },
          { to: "2001:db8:a::/48", via: "fe80::1" },
        ],
      },
    },
  });
  const bare = { ...TWO, interfaces: [{ ...web!, addresses: [], routes: [] }] };
  assertEquals(JSON.parse(formatRecord(bare, "cloud-init")).ethernets.eth0, {
    match: { macaddress: "9a:3c:00:00:00:01" },
    "set-name": "eth0",
    mtu: 1450,
    dhcp4: false,
    dhcp6: false,
  });
});

Deno.test("formatRecord: a route without a gateway uses the network's, unless it leads to it", () => {
  const [web] = TWO.interfaces;
  const routes = [{ dst: "10.7.0.0/16" }, { dst: "172.18.0.0/24" }];
  const record = { ...TWO, interfaces: [{ ...web!, routes }] };
  assertEquals(JSON.parse(formatRecord(record, "cloud-init")).ethernets.eth0.routes, [
    { to: "10.7.0.0/16", via: "172.18.0.1" },
    { to: "172.18.0.0/24", scope: "link" },
  ]);
  assertEquals(
    formatRecord(record, "dracut").split(" ").filter((word) => word.startsWith("rd.route")),
    ["rd.route=10.7.0.0/16:172.18.0.1:eth0"],
  );
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

Deno.test("placeholders: are those of the VM, of its first interface, and of each", () => {
  assertEquals(placeholders(WEB), {
    name: "web",
    netns: "/run/netns/tapkit-web",
    cmdline: formatRecord(WEB, "cmdline"),
    tap: "vm_eth0",
    mac: "9a:3c:00:00:00:01",
    mtu: "1450",
    queues: "1",
    ip: "172.18.0.2",
    netmask: "255.255.0.0",
    gateway: "172.18.0.1",
    "eth0.tap": "vm_eth0",
    "eth0.mac": "9a:3c:00:00:00:01",
    "eth0.mtu": "1450",
    "eth0.queues": "1",
    "eth0.ip": "172.18.0.2",
    "eth0.netmask": "255.255.0.0",
    "eth0.gateway": "172.18.0.1",
  });
});

Deno.test("fillIn: replaces placeholders of each interface, and leaves other text in braces", () => {
  const filled = fillIn(TWO, [
    "{tap},{eth0.tap}",
    "{eth1.tap}-{eth1.ip}/{eth1.netmask}",
    "{eth1.mac}",
  ]);
  assertEquals(filled, [
    "vm_eth0,vm_eth0",
    "vm_eth1-10.9.0.2/255.255.255.252",
    "9a:3c:00:00:00:02",
  ]);
  const kept = ["{other}", "{eth1.other}", '{"tap":1}', "{}", "{eth1.}", "{constructor}", "{eth0}"];
  assertEquals(fillIn(TWO, kept), kept);
  assertEquals(fillIn({ ...TWO, interfaces: [] }, ["<{tap}>"]), ["<>"]);
  assertThrows(
    () => fillIn(WEB, ["{eth1.tap}"]),
    InputError,
    '{eth1.tap} is of an interface "eth1" that "web" does not have',
  );
});

Deno.test("shellQuote: leaves plain words and quotes the others", () => {
  assertEquals(["a/b:c=1", "", "a b", "it's"].map(shellQuote), [
    "a/b:c=1",
    "''",
    "'a b'",
    `'it'\\''s'`,
  ]);
});
