/**
 * What people read: what is typed, the exit code, and the whole line. A command that is refused has
 * changed nothing.
 */

import { assert, assertEquals } from "@std/assert";
import { Host } from "../support/host.ts";

type Case = readonly [typed: string, code: number, said: string];

/** Runs each command line; arguments are parted by spaces. */
async function says(t: Deno.TestContext, host: Host, cases: readonly Case[]): Promise<void> {
  for (const [typed, code, said] of cases) {
    await t.step(typed, async () => {
      const [script = "", ...args] = typed.split(" ");
      const outcome = await host.tapkit(script, ...args);
      const line = outcome.stderr.trimEnd().split("\n").at(-1);
      assertEquals([outcome.code, line, outcome.stdout], [code, `${script}: ${said}`, ""], typed);
    });
  }
}

const network = (conf: object) =>
  JSON.stringify({
    cniVersion: "1.0.0",
    name: "x",
    type: "bridge",
    bridge: "br-x",
    ipam: { type: "host-local", subnet: "10.7.0.0/24" },
    ...conf,
  });

Deno.test("attach-vm, map-port: what is typed wrong, and what was meant", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const cannot = 'cannot attach "web": ';
  await says(t, host, [
    ["attach-vm -p 8080:80", 2, "unknown flag -p: did you mean --ports?"],
    [
      "attach-vm web --ports -1:80",
      2,
      `${cannot}port "-1:80": the host port "-1" is not a number from 1 to 65535: write it as ` +
      "[HOST_ADDRESS:]HOST_PORT:VM_PORT[/tcp|udp|sctp], as in 8080:80",
    ],
    [
      "attach-vm web --ports 8080:80:tcp",
      2,
      `${cannot}port "8080:80:tcp": the protocol follows a slash: write 8080:80/tcp`,
    ],
    [
      "attach-vm web --ports 8080:80,8081:81",
      2,
      `${cannot}port "8080:80,8081:81": it is 2 mappings: give each by itself: --ports 8080:80 ` +
      "--ports 8081:81, or map-port VM 8080:80 8081:81",
    ],
    [
      "attach-vm web --ports 8080",
      2,
      `${cannot}port "8080": it names one side only: did you mean 8080:8080?`,
    ],
    [
      "attach-vm web --allow-egress 10.0.0.0/8",
      2,
      `${cannot}egress is allowed, but none is denied: name with --deny-egress what it is an ` +
      "exception of: 0.0.0.0/0, ::/0",
    ],
    [
      "attach-vm web --netns /run/netns/nowhere",
      2,
      `${cannot}there is no network namespace /run/netns/nowhere: name one that exists: ` +
      "ip netns add NAME creates /run/netns/NAME",
    ],
    [
      "attach-vm web api --remove --check",
      2,
      "--check and --remove do not go together: use one of them",
    ],
    ["attach-vm typo --list", 1, 'cannot list "typo": it is not attached: see attach-vm --list'],
    [
      "map-port typo 80:80",
      2,
      'cannot map ports of "typo": VM "typo" is not attached: see attach-vm --list',
    ],
    [
      "install-default-cni --bridge br*",
      2,
      'interface name "br*" stands for several links in firewalls\' rules: choose another name',
    ],
    [
      "install-default-cni --bridge all",
      2,
      'interface name "all" stands for every link in /proc/sys/net: choose another name',
    ],
    [
      "install-default-cni --subnet 127.0.0.0/16",
      2,
      "subnet 127.0.0.0/16 has addresses of 127.0.0.0/8 (loopback), where guests cannot be: " +
      "choose one as 10.61.0.0/16",
    ],
  ]);
  // Of several VMs it is said of which.
  const stdin = '{"name":"a"}\n{"name":"b","ports":["8080"]}\n';
  const lines = await host.tapkit("attach-vm", "--from", "-", { stdin });
  assertEquals([lines.code, lines.stderr], [
    2,
    'attach-vm: cannot attach "b": port "8080": it names one side only: did you mean 8080:8080?\n',
  ]);
  await host.assertRestored(before, { strict: true });

  await host.mustTapkit("attach-vm", "ma", "--ip", "172.18.0.7");
  await says(t, host, [
    [
      "attach-vm web --ip 172.18.0.7",
      1,
      `${cannot}host-local: address 172.18.0.7 of network "ignite-cni-bridge" is held by VM "ma" ` +
      "(eth0): ask for another address, or run attach-vm ma --remove",
    ],
    [
      "attach-vm web --network nosuch",
      2,
      `${cannot}/etc/cni/net.d configures no network "nosuch": choose one of ignite-cni-bridge`,
    ],
  ]);
});

Deno.test("attach-vm: a CNI directory that has no network for it", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const loopback = network({ type: "loopback", name: "lo" });
  const place = "/etc/cni/net.d";
  const link = (path: string) => `ln -s /nowhere ${path}`;
  const away = "remove the link, or bring back what it leads to";
  const cases: readonly (readonly [made: string, said: string])[] = [
    [
      `mkdir ${place}; echo '${loopback}' >${place}/99-loopback.conf`,
      `${place}/99-loopback.conf configures nothing but loopback: configure a network beside it, ` +
      "or move it away: then the default network is installed",
    ],
    [
      `mkdir ${place}; ${link(`${place}/10-x.conf`)}`,
      `CNI configuration ${place}/10-x.conf is a link to /nowhere, which is not there: ${away}`,
    ],
    [link(place), `CNI directory ${place} is a link to /nowhere, which is not there: ${away}`],
    [
      `touch ${place}`,
      `CNI directory ${place} cannot be read: readdir '${place}': Not a directory: name a directory`,
    ],
    ...["br*", "br+"].map((bridge) =>
      [
        `mkdir ${place}; echo '${network({ bridge })}' >${place}/10-x.conf`,
        `bridge: network "x" has the bridge "${bridge}", a name that stands for several links in ` +
        "firewalls' rules: correct the network's configuration file",
      ] as const
    ),
    ...["all", "default"].map((bridge) =>
      [
        `mkdir ${place}; echo '${network({ bridge })}' >${place}/10-x.conf`,
        `bridge: network "x" has the bridge "${bridge}", a name that stands for every link in ` +
        "/proc/sys/net: correct the network's configuration file",
      ] as const
    ),
    ...[
      ["0.0.0.0/0", "0.0.0.0/8 (this network)"],
      ["127.0.0.0/8", "127.0.0.0/8 (loopback)"],
      ["224.0.0.0/8", "224.0.0.0/4 (multicast)"],
      ["::/0", "::/96 (loopback)"],
      ["ff02::/64", "ff00::/8 (multicast)"],
    ].map(([subnet, special]) =>
      [
        `mkdir ${place}; echo '${network({ ipam: { type: "host-local", subnet } })}' ` +
        `>${place}/10-x.conf`,
        `bridge: network "x" has the subnet ${subnet}, which has ${special}: correct the ` +
        "network's configuration file",
      ] as const
    ),
  ];
  for (const [made, said] of cases) {
    await t.step(made, async (t) => {
      await host.sh(`mkdir -p /etc/cni; rm -rf ${place}; ${made}`);
      const before = await host.snapshot();
      await says(t, host, [["attach-vm web --plugins builtin", 1, `cannot attach "web": ${said}`]]);
      await host.assertRestored(before, { strict: true });
    });
  }
  // Beside a network loopback is none to be on, wherever it sorts.
  await host.sh(`rm -rf ${place}; mkdir ${place}; echo '${loopback}' >${place}/00-lo.conf`);
  await host.writeFile(`${place}/10-x.conf`, network({}));
  const { json: [{ interfaces: [eth0] }] } = await host.mustTapkit(
    ...["attach-vm", "web", "--plugins", "builtin"] as const,
  );
  assertEquals(eth0.network, "x");
});

Deno.test("attach-vm: directories and devices that are something else", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("mkdir -p /run/full; touch /run/file; busybox mount -t tmpfs -o ro t /run/full");
  const before = await host.snapshot();
  const unusable = "the state directory cannot be used: ";
  const mend = "name another one with --state-dir or TAPKIT_STATE_DIR";
  await says(t, host, [
    [
      "attach-vm web --state-dir /run/file",
      1,
      `cannot attach "web": ${unusable}readdir '/run/file/vms': Not a directory (ENOTDIR): ${mend}`,
    ],
    [
      "attach-vm --list --state-dir /run/file",
      1,
      `${unusable}readdir '/run/file/vms': Not a directory (ENOTDIR): ${mend}`,
    ],
    [
      "attach-vm web --state-dir /run/full/x",
      1,
      `cannot attach "web": ${unusable}mkdir '/run/full/x': Read-only file system (EROFS): ${mend}`,
    ],
    [
      "attach-vm web --remove --state-dir /run/full",
      1,
      `cannot remove "web": ${unusable}open /run/full/lock: EROFS: ${mend}`,
    ],
    [
      "serve-dhcp --state-dir /run/file",
      1,
      `${unusable}readdir '/run/file/vms': Not a directory (ENOTDIR): ${mend}`,
    ],
    [
      "attach-vm web --cni-conf-dir /run/full/x",
      1,
      "cannot attach \"web\": cannot write /run/full/x/10-ignite.conflist: mkdir '/run/full/x': " +
      "Read-only file system: run as root, and check the directory and its free space",
    ],
  ]);
  await host.assertRestored(before, { strict: true });
  await host.mustTapkit("attach-vm", "other");
  for (
    const [made, code] of [["--bind /dev/null /dev/net/tun", "ENOTTY"], [
      "-t tmpfs t /dev/net; mkdir /dev/net/tun",
      "EISDIR",
    ]]
  ) {
    await host.sh(`busybox mount ${made}`);
    await says(t, host, [[
      "attach-vm web",
      1,
      `cannot attach "web": /dev/net/tun is not the kernel's TUN/TAP device: ${code}: delete ` +
      "/dev/net/tun, and create it: mknod /dev/net/tun c 10 200",
    ]]);
    assertEquals((await host.mustTapkit("attach-vm", "--list")).json.length, 1);
  }
});

Deno.test("attach-vm: a bridge that is full says how many it holds", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  await host.writeFile("/etc/cni/net.d/10-x.conf", network({}));
  await host.sh("ip link add br-x type bridge; ip link set br-x up promisc on");
  // Both ends of a pair are ports; the last one has the bridge's last number.
  const pairs = Array.from({ length: 512 }, (_, i) => [
    `link add a${i} master br-x type veth peer name b${i}`,
    ...i < 511 ? [`link set b${i} master br-x`] : [],
  ]);
  await host.must("ip", ["-batch", "-"], { stdin: pairs.flat().join("\n") });
  const before = await host.snapshot();
  await says(t, host, [[
    "attach-vm web --plugins builtin",
    1,
    'cannot attach "web": bridge: bridge "br-x" is full: it has 1023 ports, the kernel\'s limit: ' +
    "remove a VM of it, or use a network with another bridge: --network NET",
  ]]);
  // A bridge that is up gets these by itself.
  await host.assertRestored(before, { except: [/fe80:/, /ff00::/] });
  await host.must("ip", ["link", "delete", "a7"]);
  await host.mustTapkit("attach-vm", "web", "--plugins", "builtin");
});

Deno.test("attach-vm: two interfaces on one network", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const net = ["--network", "ignite-cni-bridge"];
  await host.mustTapkit("install-default-cni");
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...net, ...net);
  const [eth0, eth1] = record.interfaces;
  assert(eth0.addresses[0].address !== eth1.addresses[0].address);
  assert(eth0.mac !== eth1.mac);
  await host.mustTapkit("attach-vm", "web", "--check");
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm: names and messages of others do not steer the terminal", async () => {
  await using host = await Host.create();
  await host.addLan();
  const evil = "\x1b[2J\u202e";
  const shown = "\\u001b[2J\\u202e";
  // deno-lint-ignore no-control-regex -- those are what it is about.
  const controls = /[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]/;
  const says = async (said: string, ...args: string[]) => {
    const { code, stdout, stderr } = await host.tapkit("attach-vm", "web", ...args);
    assert(code !== 0 && stderr.includes(said), stderr);
    assertEquals([controls.exec(stdout + stderr), stderr.split("\n").length], [null, 2], stderr);
  };
  // A process that listens is called as its program is.
  await host.sh(`cp $(command -v busybox) '/run/e${evil}'`);
  host.spawn("bash", ["-c", `exec -a nc '/run/e${evil}' -l -p 8080`]);
  await host.listening(8080, "tcp");
  await host.mustTapkit("install-default-cni");
  await says(`e${shown}`, "--ports", "8080:80");
  await host.sh("rm -r /etc/cni/net.d");

  const refusal = JSON.stringify({ code: 7, msg: `${evil}no\nattach-vm: all is well` });
  await host.writeFile("/opt/plugins/evil", `#!/bin/sh\necho '${refusal}'; exit 1\n`, 0o755);
  const list = { cniVersion: "0.4.0", name: "x", plugins: [{ type: "evil" }] };
  await host.writeFile("/etc/cni/net.d/10-x.conflist", JSON.stringify(list));
  await says(`${shown}no attach-vm: all is well`, "--cni-bin-dir", "/opt/plugins");
  await host.writeFile(`/etc/cni/net.d/05-${evil}.conf`, "{");
  await says(`05-${shown}.conf is not valid JSON`);
});
