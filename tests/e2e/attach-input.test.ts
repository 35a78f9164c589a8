import { assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";

const LIST = (plugins: unknown[], rest = {}) =>
  JSON.stringify({ cniVersion: "0.4.0", name: "net", plugins, ...rest });

Deno.test("attach-vm: bad input is refused before anything is touched", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const cases: [args: string[], message: RegExp][] = [
    [[""], /VM name "" is malformed/],
    [["-web"], /unknown flag|-w/],
    [["../web"], /VM name "\.\.\/web" is malformed/],
    [["a".repeat(64)], /is malformed: use 1 to 63 of/],
    [["wéb"], /is malformed/],
    [["web", "web"], /named twice/],
    [["web", "--ports", "0"], /does not read as a port mapping/],
    [["web", "--ports", "8080:0"], /VM port 0 has no meaning/],
    [["web", "--ports", "65536:80"], /not a number from 1 to 65535/],
    [["web", "--ports", "-1:80"], /the host port "-1" is not a number from 1 to 65535/],
    [["web", "--ports", "8080:80/"], /the protocol is empty/],
    [["web", "--ports", "8080:80/icmp"], /"icmp" is not a protocol/],
    [["web", "--ports", "9-1:1-9"], /reversed/],
    [["web", "--ports", "1-9:1-8"], /9 and 8 ports/],
    [["web", "--ports", "[::1]:8080:80"], /loopback/],
    [["web", "--ports", "[fe80::1%eth0]:8080:80"], /zone|not an/],
    [["web", "--ports", "80:80", "--ports", "0.0.0.0:80:81"], /overlap/],
    [["web", "--ip", "10.0.0.300"], /is not an IP address/],
    [["web", "--ip", "10.0.0.2/33"], /10\.0\.0\.2\/33/],
    [["web", "--mac", "01:00:5e:00:00:01"], /group address/],
    [["web", "--mac", "00:00:00:00:00:00"], /all zero/],
    [["web", "--mac", "zz"], /malformed/],
    [["web", "--mtu", "12e4"], /not a whole number/],
    [["web", "--mtu", "67"], /not a number from 68 to 65535/],
    [["web", "--mtu", "65536"], /not a number from 68 to 65535/],
    [["web", "--netns", "/etc/passwd"], /not a network namespace/],
    [
      ["web", "--netns", "/run/netns/nowhere"],
      /there is no network namespace \/run\/netns\/nowhere: name one that exists/,
    ],
    [["web", "--capability", "aliases"], /aliases has no value: write NAME=VALUE/],
    [["web", "--capability", "aliases=web"], /is not JSON/],
    [["web", "--capability", "mac=1"], /has a flag of its own: use --mac/],
    [["web", "--cni-arg", "a=1", "--cni-arg", "a=2"], /a=2 is given twice/],
    [["web", "--cni-arg", "IP=1"], /use --ip/],
    [["web", "--cni-arg", "a=1;b=2"], /"a=1;b=2" is malformed/],
    [["web", "--network", "a/b"], /network name "a\/b" is malformed/],
    [["web", "--mode", "bridge"], /mode/],
    [["web", "--prots", "80:80"], /--ports/],
    [["web", "--remove", "--ip", "172.18.0.9"], /--ip does not go with --remove/],
    [["a", "b", "--ip", "172.18.0.9"], /--ip is for one VM/],
    [["a", "b", "--ports", "80:80"], /cannot be shared by several VMs/],
    [["web", "--ports", "80:80", "81:81"], /VM name "81:81" is malformed/],
    [["--from", "/nowhere"], /\/nowhere/],
    [[], /no VM is named/],
  ];
  for (const [args, message] of cases) {
    const call = `attach-vm ${args.join(" ")}`;
    await t.step(call, async () => {
      const { code, stdout, stderr } = await host.tapkit("attach-vm", ...args);
      assertEquals([code, stdout], [2, ""], `${call}: ${stderr}`);
      assertMatch(stderr, /^attach-vm: [^\n]+\n$/, call);
      assertMatch(stderr, message, call);
    });
  }
  await host.assertRestored(before, { strict: true });
});

Deno.test("attach-vm: one bad line of --from stops all before anything is touched", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  for (const bad of ['{"name":"b","mtu":"x"}', '{"name":"b","prots":[]}', "{", '{"name":"a"}']) {
    const stdin = `{"name":"a"}\n${bad}\n`;
    const { code, stdout, stderr } = await host.tapkit("attach-vm", "--from", "-", { stdin });
    assertEquals([code, stdout], [2, ""], stderr);
  }
  await host.assertRestored(before, { strict: true });
});

Deno.test("attach-vm: a configuration that cannot be used is named, and nothing is touched", async () => {
  await using host = await Host.create();
  await host.addLan();
  const path = "/etc/cni/net.d/05-net.conflist";
  const bridge = { type: "bridge", bridge: "br9", ipam: { type: "host-local" } };
  const cases: [text: string, message: RegExp][] = [
    ["{", /05-net\.conflist is not valid JSON: line 1, column 2/],
    [LIST([]), /05-net\.conflist/],
    [LIST([{ bridge: "x" }]), /05-net\.conflist, plugin 0, .*"type"/],
    [LIST([{ type: "bridge" }], { cniVersion: "9.9.9" }), /05-net\.conflist .*9\.9\.9/],
    [LIST([{ type: "macvlan" }]), /network "net" .*"macvlan"/],
    [
      LIST([{ ...bridge, ipam: { type: "host-local", subnet: "10.5.0.0/24" }, vlan: 7 }]),
      /"vlan"/,
    ],
    [LIST([bridge]), /range|subnet/],
  ];
  for (const [text, message] of cases) {
    await host.writeFile(path, text);
    const before = await host.snapshot();
    const { code, stdout, stderr } = await host.tapkit("attach-vm", "web", "--plugins", "builtin");
    assertEquals([code, stdout], [1, ""], stderr);
    assertMatch(stderr, /^attach-vm: cannot attach "web": [^\n]+\n$/);
    assertMatch(stderr, message);
    await host.assertRestored(before, { strict: true });
  }
});

Deno.test("attach-vm: the network that is named, or the first in lexical order", async () => {
  await using host = await Host.create();
  await host.addLan();
  for (const [file, name, subnet] of [["20-b", "b", "10.7.0.0/24"], ["10-a", "a", "10.6.0.0/24"]]) {
    const ipam = { type: "host-local", subnet };
    await host.writeFile(
      `/etc/cni/net.d/${file}.conf`,
      JSON.stringify({ cniVersion: "0.4.0", name, type: "bridge", bridge: `br-${name}`, ipam }),
    );
  }
  const { json: [first] } = await host.mustTapkit("attach-vm", "web");
  assertEquals(first.interfaces[0].network, "a");
  const { json: [named] } = await host.mustTapkit("attach-vm", "api", "--network", "b");
  assertEquals(named.interfaces[0].addresses[0].address, "10.7.0.2/24");
  const unknown = await host.tapkit("attach-vm", "db", "--network", "c");
  assertEquals(unknown.code, 2);
  assertMatch(unknown.stderr, /configures no network "c": choose one of a, b/);
});

Deno.test("attach-vm: without root, or without the means of any firewall, the mend is named", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const script = `${Deno.cwd()}/scripts/attach-vm.ts`;
  const unprivileged = await host.run("setpriv", [
    ...["--bounding-set", "-net_admin,-sys_admin", "--inh-caps", "-all", "--ambient-caps", "-all"],
    ...[Deno.execPath(), "run", "-A", script, "web"],
  ]);
  assertEquals(unprivileged.code, 1);
  assertMatch(unprivileged.stderr, /lacks CAP_NET_ADMIN and CAP_SYS_ADMIN: run it as root/);
  await host.assertRestored(before, { strict: true });

  const library = (await host.sh("ls /usr/lib/*/libnftables.so.1")).trim();
  // Where the programs of iptables are.
  await host.sh(`busybox mount --bind /dev/null ${library}; busybox mount -t tmpfs t /usr/sbin`);
  const without = await host.snapshot();
  const missing = await host.tapkit("attach-vm", "web", "--isolated");
  assertEquals(missing.code, 1, missing.stderr);
  assertMatch(missing.stderr, /libnftables\.so\.1 cannot be opened: install libnftables1/);
  await host.assertRestored(without);
  // Without a policy it is not missed.
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(without);
});
