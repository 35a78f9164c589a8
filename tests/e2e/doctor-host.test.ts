/** doctor where all is well, and where the process, the kernel or a network lacks something. */

import { assertEquals, assertMatch } from "@std/assert";
import { assertFound, type Broken, examine, SETTLING } from "../support/doctor.ts";
import { Host } from "../support/host.ts";
import { scriptWords } from "../support/bundle.ts";

Deno.test("doctor: all checks pass on a host that has all, before a VM is attached and with VMs", async () => {
  await using host = await Host.create();
  await host.addLan();
  const bare = await host.snapshot();
  const first = await examine(host);
  assertMatch(
    first.of("kernel: iptables").detail,
    /^nft works, and nothing needs it; legacy works, and nothing needs it$/,
  );
  assertEquals([first.failed, first.code, first.stderr], [[], 0, ""]);
  assertEquals(new Set(first.checks.map(({ name }) => name)).size, first.checks.length);
  for (const { name, detail, mend } of first.checks) {
    assertMatch(detail, /\S/, name);
    assertEquals(mend, "", name);
  }
  await host.assertRestored(bare, { strict: true });

  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80", "--deny-egress", "10.0.0.0/8");
  // Else the second starts a server too, which ends when it finds the first.
  await host.awaitDhcp();
  await host.mustTapkit("attach-vm", "db", "--isolated");
  const attached = await host.snapshot();
  const second = await examine(host, { args: ["--fix"] });
  assertEquals([second.failed, second.code], [[], 0], JSON.stringify(second.checks));
  assertEquals(second.checks.filter((check) => "fixed" in check), []);
  await host.assertRestored(attached, { strict: true, except: SETTLING });
});

Deno.test("doctor: a table for people, one object of JSON for programs", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.writeFile("/etc/resolv.conf", "nameserver 127.0.0.53\n");
  const { stdout, code } = await host.tapkit("doctor", "--output", "table");
  assertEquals(code, 3);
  assertMatch(stdout, /^ok {4}capabilities {2,}this process has CAP_NET_ADMIN/m);
  assertMatch(stdout, /^FAIL {2}name servers {2,}the host has no name server/m);
  assertMatch(stdout, /^ {36}mend: name one in \/etc\/resolv.conf/m);
  assertMatch(stdout, /\n1 of \d+ checks failed\n$/);
  assertEquals(stdout.split("\n").filter((line) => line.length > 100), []);

  const { json: [{ checks }] } = await host.tapkit("doctor");
  assertEquals(Object.keys(checks[0]), ["name", "ok", "detail", "mend"]);
  // script(1) gives it a terminal.
  const words = [Deno.execPath(), ...scriptWords("doctor")].map((word) => `'${word}'`).join(" ");
  const shown = await host.run("script", ["-qec", words, "/dev/null"]);
  assertEquals([shown.code, /^FAIL {2}name servers/m.test(shown.stdout)], [3, true]);
});

/** What is broken, and by what. */
interface Case extends Broken {
  readonly name: string;
  readonly arrange?: string;
}

const CASES: readonly Case[] = [
  {
    name: "a library that is missing",
    arrange:
      `mount --bind /dev/null "$(ldconfig -p | sed -n 's/.*libnftables.so.1.*=> //p' | head -1)"`,
    failed: ["libraries", "kernel: isolation and egress"],
    detail: /libnftables.so.1: the library libnftables.so.1 cannot be opened/,
    mend: /install libnftables1/,
  },
  {
    name: "few descriptors",
    under: ["bash", "-c", 'ulimit -n 120; exec "$@"', "few"],
    failed: ["descriptors"],
    detail: /this process may open 120 files .* needs 256/,
    mend: /LimitNOFILE=512/,
  },
  {
    name: "a state directory that is read-only",
    arrange: "mkdir /var/lib/tapkit; mount -t tmpfs -o ro tmpfs /var/lib/tapkit",
    failed: ["state directory"],
    detail: /\/var\/lib\/tapkit cannot be written: .*EROFS/,
    mend: /make its file system writable/,
  },
  {
    name: "a state directory that is full",
    arrange: "mkdir /var/lib/tapkit; mount -t tmpfs -o size=64k tmpfs /var/lib/tapkit; " +
      "! cat /dev/zero >/var/lib/tapkit/zero",
    failed: ["state directory"],
    detail: /the file system of \/var\/lib\/tapkit is full/,
    mend: /free space/,
  },
  {
    name: "no TUN/TAP device",
    arrange: "mount -t tmpfs tmpfs /dev/net",
    failed: ["kernel: TAP"],
    detail: /the kernel cannot give a VMM frames: \/dev\/net\/tun cannot be opened: ENOENT/,
    mend: /modprobe tun/,
  },
  {
    name: "rules of iptables-legacy without its programs",
    arrange: `iptables-legacy -P FORWARD DROP
      mount --bind /dev/null "$(realpath "$(command -v iptables-legacy)")"`,
    failed: ["kernel: iptables"],
    detail: /rules in the old tables of iptables, and iptables-legacy is not installed/,
    mend: /install the package iptables/,
  },
  {
    name: "rules of iptables, whose program does not work",
    arrange: `iptables -A FORWARD -p icmp -j ACCEPT
      printf '#!/bin/sh\\necho it is broken >&2; exit 1\\n' >/run/broken; chmod 755 /run/broken
      mount --bind /run/broken "$(realpath "$(command -v iptables-nft)")"`,
    failed: ["kernel: iptables", "other firewalls", "stale mappings"],
    detail: /iptables-nft cannot publish ports and translate addresses: .*it is broken/,
    mend: /load nft_compat/,
  },
  {
    name: "no IPv6, and a network that wants it",
    arrange: `mkdir -p /run/sys /etc/cni/net.d
      mount -t tmpfs tmpfs /run/sys
      for name in $(cd /proc/sys/net; ls | grep -v ipv6); do
        mkdir /run/sys/$name; mount --bind /proc/sys/net/$name /run/sys/$name
      done
      mount --rbind /run/sys /proc/sys/net
      echo '{"cniVersion":"1.0.0","name":"six","plugins":[{"type":"bridge","bridge":"six0",
        "ipam":{"type":"host-local","subnet":"fd00:6::/64"}}]}' >/etc/cni/net.d/six.conflist`,
    failed: ["kernel: IPv6"],
    detail: /six.conflist has an IPv6 subnet, and the kernel has no IPv6/,
    mend: /ipv6.disable=1/,
  },
  {
    name: "a configuration that is no JSON, and two of one name",
    arrange: `mkdir -p /etc/cni/net.d; cd /etc/cni/net.d; echo '{"name": ' >05-torn.conflist
      for name in 10 20; do
        echo '{"cniVersion":"1.0.0","name":"twice","plugins":[{"type":"bridge"}]}' >$name.conflist
      done`,
    failed: ["network configurations"],
    detail:
      /05-torn.conflist.*; .*10.conflist and .*20.conflist both configure the network "twice"/,
    mend: /05-torn.conflist.*; remove one of them/,
  },
  {
    name: "a plugin that is not installed",
    arrange: `mkdir -p /etc/cni/net.d
      echo '{"cniVersion":"1.0.0","name":"mac","plugins":[{"type":"macvlan","ipam":{"type":"dhcp"}}]}' \
        >/etc/cni/net.d/mac.conflist`,
    args: ["--cni-bin-dir", "/nowhere"],
    failed: ["plugins"],
    detail: /network "mac" needs the plugin "macvlan", which is in none of \/nowhere/,
    mend: /--cni-bin-dir/,
  },
  {
    name: "subnets that overlap an address of the host, and each other",
    arrange: `ip address add 10.61.7.1/24 dev eth-lan; mkdir -p /etc/cni/net.d
      for name in one two; do
        echo '{"cniVersion":"1.0.0","name":"'$name'","plugins":[{"type":"bridge","bridge":"'$name'0",
          "ipam":{"type":"host-local","subnet":"10.61.0.0/16"}}]}' >/etc/cni/net.d/$name.conflist
      done`,
    failed: ["subnets"],
    detail:
      /10.61.0.0\/16 of network "one" overlaps the address 10.61.7.1\/24 of "eth-lan".*"two" overlaps the subnet/,
    mend: /change the subnet in \/etc\/cni\/net.d\/one.conflist/,
  },
  {
    name: "a network whose MTU the way out does not carry",
    arrange: `ip link set eth-lan mtu 1400; mkdir -p /etc/cni/net.d
      echo '{"cniVersion":"1.0.0","name":"large","plugins":[{"type":"bridge","bridge":"large0","mtu":9000,
        "isGateway":true,"ipam":{"type":"host-local","subnet":"10.61.0.0/16"}}]}' \
        >/etc/cni/net.d/large.conflist`,
    failed: ["MTU"],
    detail: /network "large" .* has an MTU of 9000 bytes, and the host's way out carries 1400/,
    mend: /--mtu 1400/,
  },
  {
    name: "a pool without a free address",
    arrange: `mkdir -p /etc/cni/net.d /var/lib/cni/networks/small
      echo '{"cniVersion":"1.0.0","name":"small","plugins":[{"type":"bridge","bridge":"small0",
        "ipam":{"type":"host-local","subnet":"10.61.0.0/30"}}]}' >/etc/cni/net.d/small.conflist
      printf 'somebody\\r\\neth0' >/var/lib/cni/networks/small/10.61.0.2`,
    failed: ["address pools"],
    detail: /network "small" has no free address/,
    mend: /widen the subnet in \/etc\/cni\/net.d\/small.conflist/,
  },
  {
    name: "no name server for guests",
    arrange: "echo nameserver 127.0.0.53 >/etc/resolv.conf",
    failed: ["name servers"],
    detail: /no name server that a guest can reach/,
    mend: /\/etc\/resolv.conf/,
  },
  {
    name: "a unit that does not start at boot",
    arrange: `cd /etc/systemd/system; mkdir -p /run/systemd/system multi-user.target.wants
      touch tapkit.service tapkit-restore.service
      ln -s ../tapkit.service multi-user.target.wants/tapkit.service`,
    failed: ["start at boot"],
    detail: /^tapkit-restore.service is installed, and does not start at boot$/,
    mend: /systemctl enable --now tapkit-restore.service/,
  },
  {
    name: "too little room for neighbours",
    arrange: `mount -t tmpfs tmpfs /proc/sys/net/ipv4/neigh; cd /proc/sys/net/ipv4/neigh
      mkdir default; echo 128 >default/gc_thresh3`,
    failed: ["neighbours"],
    detail: /net.ipv4.neigh.default.gc_thresh3 is 128, and no interface of VMs may need 256/,
    mend: /sysctl -w net.ipv4.neigh.default.gc_thresh3=256/,
    fixed: { neighbours: /set net.ipv4.neigh.default.gc_thresh3=256 until the next boot/ },
  },
];

for (const { name, arrange, ...broken } of CASES) {
  Deno.test(`doctor: ${name}`, async () => {
    await using host = await Host.create();
    await host.addLan();
    if (arrange !== undefined) await host.sh(arrange);
    await assertFound(host, broken);
  });
}

Deno.test("doctor: too little room for tracked connections", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web");
  await host.awaitDhcp();
  await host.sh(
    "echo 100 >/run/max; mount --bind /run/max /proc/sys/net/netfilter/nf_conntrack_max",
  );
  await assertFound(host, {
    failed: ["tracked connections"],
    detail: /nf_conntrack_max is 100, and \d+ are in use, and 1 VM may need 512/,
    mend: /sysctl -w net.netfilter.nf_conntrack_max=512.*\/etc\/sysctl.d/,
    fixed: { "tracked connections": /set net.netfilter.nf_conntrack_max=512/ },
  });
});

Deno.test("doctor: a process without one capability, and one without any", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const under = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw", "--"];
  const { of, code } = await examine(host, { under });
  assertEquals(code, 3);
  assertMatch(of("capabilities").detail, /lacks CAP_NET_RAW, which is needed to answer DHCP/);
  assertEquals(of("capabilities").mend, "run it as root");
  assertEquals(of("kernel: network namespaces").mend, "mend capabilities first");
  assertMatch(of("kernel: veth").detail, /was not looked at/);

  const nobody = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--"];
  const unprivileged = await examine(host, { under: nobody });
  assertMatch(unprivileged.of("capabilities").detail, /CAP_NET_ADMIN.*CAP_NET_RAW.*CAP_SYS_ADMIN/);
  assertEquals(unprivileged.of("name servers").ok, true);
  await host.assertRestored(before, { strict: true });
});

/**
 * A call of each trial, by what strace prints of it: bytes, text among them. Each trial begins with a
 * namespace.
 */
const CALLS: Readonly<Record<string, readonly [call: string, text: RegExp]>> = {
  "kernel: conntrack": ["sendto", /^/],
  "kernel: network namespaces": ["unshare", /CLONE_NEWNET/],
  "kernel: veth": ["sendto", /veth0/],
  "kernel: bridge": ["sendto", /bridge0/],
  "kernel: tc redirect": ["sendto", /u32/],
  "kernel: tc BPF": ["sendto", /bpf/],
  "kernel: packet sockets": ["socket", /AF_PACKET/],
  "kernel: nf_tables": ["sendto", /published/],
  "kernel: connection limits": ["sendto", /tapkit_limits[^]*seek/],
  "kernel: isolation and egress": ["sendmsg", /tapkit_policy/],
};

/** strace prints what is no text in hexadecimal digits. */
function readable(line: string): string {
  return line.replaceAll(
    /\\x([0-9a-f]{2})/g,
    (_, digits) => String.fromCharCode(parseInt(digits, 16)),
  );
}

Deno.test("doctor: a kernel that refuses what a trial asks of it", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const strace = (...flags: string[]) => [
    ...[
      "strace",
      "-f",
      "-qq",
      "-o",
      "/run/trace",
      "-e",
      "trace=unshare,socket,sendto,sendmsg",
      ...flags,
    ],
  ];
  const { checks } = await examine(host, { under: strace("-s", "2000") });
  const names = checks.map(({ name }) => name).filter((name) => name.startsWith("kernel: "));
  const lines = (await host.readFile("/run/trace")).split("\n").map(readable);
  const trials = lines.flatMap((line, index) => line.includes(" unshare(") ? [index] : []);
  for (const [name, [call, text]] of Object.entries(CALLS)) {
    await t.step(name, async () => {
      const from = trials[names.indexOf(name)]!;
      const at = lines.findIndex((line, index) =>
        index >= from && line.includes(` ${call}(`) && text.test(line)
      );
      const thread = lines[at]!.split(" ")[0]!;
      const number = lines.slice(0, at + 1)
        .filter((line) => line.startsWith(`${thread} `) && line.includes(` ${call}(`)).length;
      const inject = `inject=${call}:error=EOPNOTSUPP:when=${number}`;
      const { of, failed } = await examine(host, { under: strace("-e", inject) });
      assertEquals(of(name).ok, false, lines[at]);
      assertMatch(of(name).detail, /EOPNOTSUPP|Operation not supported/);
      assertMatch(of(name).mend, /CONFIG_|modprobe|load nf_tables/);
      const other = failed.filter((one) =>
        one !== name && !/was not looked at/.test(of(one).detail)
      );
      assertEquals(other, []);
    });
  }
  await host.sh("rm /run/trace");
});
