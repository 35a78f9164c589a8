/** What of a host keeps Weave Net from working there: told before it starts, with what to do. */

import { assertEquals, assertMatch } from "@std/assert";
import { findCollision } from "../../lib/weave/host.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { fetchName, serveName } from "../support/http.ts";
import { callLibrary } from "../support/library.ts";
import { eventually } from "../support/machine.ts";
import { weaveHosts } from "../support/weave/host.ts";

const PORTMAP = { type: "portmap", capabilities: { portMappings: true } };
const IPAM = (subnet: string) => ({
  type: "host-local",
  ranges: [[{ subnet }]],
  routes: [{ dst: "0.0.0.0/0" }],
});
const BRIDGE = {
  type: "bridge",
  bridge: "cni0",
  isGateway: true,
  ipMasq: true,
  hairpinMode: true,
  ipam: IPAM("10.244.1.0/24"),
};

/** A distribution of Kubernetes, as it lays out its network on a host. */
interface Layout {
  readonly name: string;
  /** Files beside the network's configuration, empty unless they are said. */
  readonly files?: Readonly<Record<string, string>>;
  readonly confDir: string;
  readonly binDir: string;
  readonly file: string;
  readonly network: string;
  readonly plugins: readonly Record<string, unknown>[];
  /** What the refusal says is there. */
  readonly says: RegExp;
}

const ETC = "/etc/cni/net.d";
const OPT = "/opt/cni/bin";
const LAYOUTS: readonly Layout[] = [
  {
    name: "a kubelet",
    files: { "/var/lib/kubelet/config.yaml": "" },
    confDir: ETC,
    binDir: OPT,
    file: "10-pods.conflist",
    network: "pods",
    plugins: [BRIDGE, PORTMAP],
    says: /a kubelet \(\/var\/lib\/kubelet\)/,
  },
  {
    name: "a kubelet whose containerd has other directories",
    files: {
      "/etc/kubernetes/kubelet.conf": "",
      "/etc/containerd/config.toml":
        '[plugins."cri".cni]\n  bin_dir = "/opt/other/bin"\n  conf_dir = "/etc/other/net.d"\n',
    },
    confDir: "/etc/other/net.d",
    binDir: "/opt/other/bin",
    file: "10-pods.conflist",
    network: "pods",
    plugins: [BRIDGE, PORTMAP],
    says: /a kubelet \(\/etc\/kubernetes\/kubelet\.conf\)/,
  },
  {
    name: "kind",
    files: {
      "/etc/systemd/system/kubelet.service.d/11-kind.conf": "",
      "/var/lib/kubelet/config.yaml": "",
    },
    confDir: ETC,
    binDir: OPT,
    file: "10-kindnet.conflist",
    network: "kindnet",
    plugins: [{ type: "ptp", ipMasq: false, ipam: IPAM("10.244.0.0/24"), mtu: 1500 }, PORTMAP],
    says: /kind \(\/etc\/systemd\/system\/kubelet\.service\.d\/11-kind\.conf\)/,
  },
  {
    name: "k3s",
    confDir: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    binDir: "/var/lib/rancher/k3s/data/current/bin",
    file: "10-flannel.conflist",
    network: "cbr0",
    // Its flannel runs the plugin bridge with this.
    plugins: [BRIDGE, PORTMAP],
    says: /k3s \(\/var\/lib\/rancher\/k3s\/agent\/etc\/cni\/net\.d\)/,
  },
  {
    name: "MicroK8s",
    files: { "/var/snap/microk8s/current/args/kubelet": "" },
    confDir: "/var/snap/microk8s/current/args/cni-network",
    binDir: "/var/snap/microk8s/current/opt/cni/bin",
    file: "10-pods.conflist",
    network: "pods",
    plugins: [BRIDGE, PORTMAP],
    says: /MicroK8s \(\/var\/snap\/microk8s\/current\/args\)/,
  },
];

for (const layout of LAYOUTS) {
  Deno.test(`setup-weave: ${layout.name} is refused, and attach-vm works with its network as it is`, async () => {
    await using host = await Host.create();
    const peer = await host.addLan();
    await serveName(peer, 8000);
    const { confDir, binDir, file, files = {}, network, plugins } = layout;
    await host.sh("rm -f /etc/containerd/config.toml");
    for (const [path, text] of Object.entries(files)) await host.writeFile(path, text);
    await host.writeFile(
      `${confDir}/${file}`,
      JSON.stringify({ cniVersion: "0.4.0", name: network, plugins }),
    );
    await host.sh(`mkdir -p ${binDir} && cp -n /usr/lib/cni/* ${binDir}/`);

    const refused = await refusal(host) ?? "";
    assertMatch(refused, layout.says);
    assertMatch(refused, new RegExp(`its network is "${network}"`));
    const flags = ["--cni-conf-dir", confDir, "--cni-bin-dir", binDir];
    const mend = `: attach-vm works with it as it is: run attach-vm NAME ${flags.join(" ")}`;
    assertMatch(
      refused.slice(refused.indexOf(mend)),
      /; if Kubernetes is gone from here, remove \/\S+$/,
    );

    const { json: [record] } = await host.mustTapkit(
      ...["attach-vm", "web", "--ports", "8080:80", "--plugins", "exec"] as const,
      ...flags,
    );
    assertEquals(record.interfaces[0].network, network);
    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    await serveName(guest);
    assertEquals(await fetchName(peer, "192.0.2.1", 8080), "web");
    await host.mustTapkit("attach-vm", "web", "--remove", ...flags);
  });
}

/** What setup-weave says where it refuses a host because of Kubernetes. */
async function refusal(host: Host): Promise<string | undefined> {
  const { code, stderr } = await host.tapkit("setup-weave");
  assertEquals(code, 1);
  return stderr.includes("Kubernetes") ? stderr.trim() : undefined;
}

Deno.test("setup-weave: what runs here of Kubernetes, and an overlay's configuration alone, are refused; Weave Net's is none", async () => {
  await using host = await Host.create();
  await host.sh("rm -f /etc/containerd/config.toml");
  assertEquals(await refusal(host), undefined);
  const write = async (name: string, type: string) =>
    await host.writeFile(
      `/etc/cni/net.d/10-${name}.conflist`,
      JSON.stringify({ cniVersion: "0.3.0", name, plugins: [{ type }] }),
    );
  await write("weave", "weave-net");
  // A directory that is left empty, as by kubeadm reset.
  await host.sh("mkdir -p /var/lib/kubelet");
  assertEquals(await refusal(host), undefined);
  await write("k8s-pod-network", "calico");
  const overlay = await refusal(host) ?? "";
  assertMatch(
    overlay,
    /Kubernetes already: \/etc\/cni\/net\.d\/10-k8s-pod-network\.conflist/,
  );
  assertMatch(overlay, /--cni-conf-dir \/etc\/cni\/net\.d --cni-bin-dir \/opt\/cni\/bin; if /);
  await host.sh("rm /etc/cni/net.d/*; cp $(command -v sleep) /opt/kubelet");
  await using _kubelet = host.spawn("/opt/kubelet", ["60"]);
  await eventually(5000, "a kubelet runs", async () => await refusal(host) !== undefined);
  assertMatch(await refusal(host) ?? "", /kubelet runs here, process \d+: attach-vm works/);
});

Deno.test("refuseOverlap: names the route or address that Weave Net's router would stop at, but for its own bridge's", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const overlap = async (range = "10.32.0.0/12") =>
    await callLibrary<string>(
      host,
      "weave/host.ts",
      `const { NetlinkConnection } = await import(root + "/lib/netlink/connection.ts");
       using nl = NetlinkConnection.open();
       try { library.refuseOverlap(nl, ${JSON.stringify(range)}); return ""; }
       catch ({ name, message, mend }) { return name + ": " + message + ": " + mend; }`,
    );
  assertEquals(await overlap(), "");
  await host.sh(`
    ip link add weave type bridge
    ip link set weave up
    ip address add 10.32.0.1/12 dev weave`);
  assertEquals(await overlap(), "");
  const uses: [command: string, says: RegExp][] = [
    ["route add 10.0.0.0/8 via 192.0.2.2", /overlaps the route 10\.0\.0\.0\/8 through "eth-lan"/],
    ["route add 0.0.0.0/1 via 192.0.2.2", /overlaps the route 0\.0\.0\.0\/1 through "eth-lan"/],
    ["route add 10.40.0.0/24 via 192.0.2.2 table 77", /overlaps the route 10\.40\.0\.0\/24/],
    ["address add 10.33.0.1/32 dev eth-lan", /overlaps the address 10\.33\.0\.1\/32/],
  ];
  for (const [command, says] of uses) {
    await t.step(command, async () => {
      await host.sh(`ip ${command}`);
      assertMatch(await overlap(), says);
      assertMatch(await overlap(), /^TapkitError: .* as --ipalloc-range /);
      await host.sh(`ip ${command.replace(" add ", " del ")}`);
      assertEquals(await overlap(), "");
    });
  }
  assertMatch(
    await overlap("10.32.0.1/12"),
    /^InputError: .* has host bits: write 10\.32\.0\.0\/12/,
  );
  assertMatch(await overlap("fd00::/64"), /^InputError: .* is not an IPv4 range/);
});

Deno.test("machineIdFault: a host without a machine id of its own is told; findCollision: so are clones that meet", async () => {
  await using host = await Host.create();
  const fault = async () =>
    await callLibrary<string>(
      host,
      "weave/host.ts",
      `const { NetlinkConnection } = await import(root + "/lib/netlink/connection.ts");
       using nl = NetlinkConnection.open();
       return library.machineIdFault(nl) ?? "";`,
    );
  await host.writeFile("/etc/machine-id", "0123456789abcdef0123456789abcdef\n");
  assertEquals(await fault(), "");
  await host.writeFile("/etc/machine-id", "");
  assertMatch(
    await fault(),
    /^\/etc\/machine-id is empty: the host.*run systemd-machine-id-setup$/,
  );
  await host.sh("rm /etc/machine-id; rm -f /var/lib/dbus/machine-id");
  assertMatch(await fault(), /^\/etc\/machine-id is missing: /);
  // Its MAC is the host's name from then on.
  await host.sh("ip link add weave type bridge");
  assertEquals(await fault(), "");

  const info = "peer names collision: 7a:f1:0b:00:00:01(one) and this host";
  const tried = [{ peer: "192.0.2.2", info }, { peer: "192.0.2.3", info: "sleeve" }];
  assertMatch(
    findCollision(tried) ?? "",
    /^192\.0\.2\.2 has the same name .* systemd-machine-id-setup/,
  );
  assertEquals(findCollision(tried.slice(1)), undefined);
});

Deno.test("setup-weave: of two hosts one of which is a clone of the other it says so, with what to do", async () => {
  const [one, two] = await weaveHosts();
  await using _one = one;
  await using _two = two;
  await two.writeFile("/etc/machine-id", await one.readFile("/etc/machine-id"));
  const peers = ["--peers", "192.0.2.10,192.0.2.11", "--wait", "4"] as const;
  const joined = () => Promise.all([one, two].map((host) => host.tapkit("setup-weave", ...peers)));
  assertEquals((await joined()).map(({ code }) => code), [1, 1]);
  const { code, json: [{ problems }] } = await one.tapkit("setup-weave", "--check");
  assertEquals(code, 3);
  assertMatch(problems.join("\n"), /192\.0\.2\.11 has the same name .* systemd-machine-id-setup/);
  // As it says.
  await two.mustTapkit("setup-weave", "--remove", "--purge");
  await two.writeFile("/etc/machine-id", `${"f".repeat(32)}\n`);
  await two.mustTapkit("setup-weave", ...peers);
  await one.mustTapkit("setup-weave", ...peers);
  await eventually(10_000, "both are connected", async () => {
    return (await one.tapkit("setup-weave", "--check")).code === 0;
  });
});
