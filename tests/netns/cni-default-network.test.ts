import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { findNetwork } from "../../lib/cni/conflist.ts";
import { type DefaultCniOptions, installDefaultCni } from "../../lib/cni/default-network.ts";
import { recognizeDefaultNetwork, renderDefaultNetwork } from "../../lib/cni/default-network.ts";
import { findUnsupported } from "../../lib/cni/plan.ts";
import { assertNoOverlap } from "../../lib/cni/subnets.ts";
import { InputError, TapkitError } from "../../lib/errors.ts";
import { CniHost } from "../support/cni-reference.ts";
import { processorTime } from "../support/processor-time.ts";

/** A throwaway host with a directory for configurations. */
class Host extends CniHost {
  readonly confDir = `${this.dataDir}/cni/net.d`;
  readonly path = `${this.confDir}/10-ignite.conflist`;

  install(options: Partial<DefaultCniOptions> = {}) {
    return installDefaultCni({ confDir: this.confDir, nl: this.nl, ...options });
  }

  sh(script: string): void {
    const { success, stderr } = this.run(() =>
      new Deno.Command("sh", { args: ["-ec", script] }).outputSync()
    );
    assert(success, new TextDecoder().decode(stderr));
  }
}

Deno.test("installDefaultCni: writes the file once, whole and readable by all", () => {
  using host = new Host();
  host.sh("ip link add uplink type veth peer other; ip link set uplink up");
  const report = host.install({ subnet: "172.18.0.0/16" });
  assertEquals(report, {
    path: host.path,
    installed: true,
    network: "ignite-cni-bridge",
    bridge: "ignite0",
    subnet: "172.18.0.0/16",
  });
  assertEquals(Deno.statSync(host.path).mode! & 0o777, 0o644);
  assertEquals([...Deno.readDirSync(host.confDir)].map(({ name }) => name), ["10-ignite.conflist"]);
  assertEquals(JSON.parse(Deno.readTextFileSync(host.path)), {
    cniVersion: "0.4.0",
    name: "ignite-cni-bridge",
    plugins: [
      {
        type: "bridge",
        bridge: "ignite0",
        isGateway: true,
        isDefaultGateway: true,
        promiscMode: true,
        ipMasq: true,
        ipam: { type: "host-local", subnet: "172.18.0.0/16" },
      },
      { type: "portmap", capabilities: { portMappings: true } },
      { type: "firewall" },
    ],
  });
  const before = Deno.statSync(host.path);
  assertEquals(host.install(), {
    ...report,
    installed: false,
    reason: `${host.path} is already there`,
  });
  assertEquals(Deno.statSync(host.path).ino, before.ino);
  assertEquals(findUnsupported(findNetwork(host.confDir)!), undefined);
});

Deno.test("installDefaultCni: any other configuration is left to rule", () => {
  for (const name of ["99-x.conf", "10-weave.conflist", "a.json"]) {
    using host = new Host();
    Deno.mkdirSync(host.confDir, { recursive: true });
    Deno.writeTextFileSync(`${host.confDir}/${name}`, "{");
    assertEquals(host.install(), {
      path: host.path,
      installed: false,
      reason: `${host.confDir}/${name} is already there`,
    });
    assertEquals([...Deno.readDirSync(host.confDir)].length, 1);
  }
});

Deno.test("installDefaultCni: takes the first candidate that no route, address or configuration uses", () => {
  const docker = ["/var/lib/docker", "/usr/bin/dockerd", "/usr/local/bin/dockerd"].some((path) => {
    try {
      Deno.lstatSync(path);
      return true;
    } catch {
      return false;
    }
  });
  const cases: [script: string, subnet: string][] = [
    ["true", docker ? "10.61.0.0/16" : "172.18.0.0/16"],
    ["ip link add docker0 type bridge", "10.61.0.0/16"],
    ["ip addr add 172.18.5.1/24 dev lo; ip addr add 10.61.200.1/32 dev lo", "10.62.0.0/16"],
    ["ip route add 172.16.0.0/12 dev lo; ip route add 10.61.7.0/24 dev lo", "10.62.0.0/16"],
    [
      "ip route add 172.16.0.0/12 dev lo; ip route add 10.60.0.0/14 dev lo table 77",
      "10.64.0.0/16",
    ],
    // A default route in another dress, as VPNs make it.
    ...["0.0.0.0/1 128.0.0.0/1", "0.0.0.0/2 64.0.0.0/2 128.0.0.0/2 192.0.0.0/2", "0.0.0.0/5"]
      .map((wide): [string, string] => [
        `for to in ${wide}; do ip route add $to dev lo; done; ip link add docker0 type bridge`,
        "10.61.0.0/16",
      ]),
    // They say that nothing is there.
    ...["unreachable", "blackhole", "prohibit", "throw"].map((type): [string, string] => [
      `for to in 10.0.0.0/8 172.16.0.0/12; do ip route add ${type} $to; done; ` +
      "ip link add docker0 type bridge",
      "10.61.0.0/16",
    ]),
    ["ip route add 10.0.0.0/8 dev lo; ip link add docker0 type bridge", "172.31.0.0/16"],
    [
      "ip route add 10.0.0.0/8 dev lo; ip route add 172.16.0.0/12 dev lo;" +
      "ip route add 192.168.240.0/24 dev lo",
      "192.168.224.0/20",
    ],
    [
      "for to in 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16; do ip route add $to dev lo; done",
      "100.127.0.0/16",
    ],
    ["ip route add default dev lo; ip link add docker0 type bridge", "10.61.0.0/16"],
    // What the bridge of an earlier installation carries is kept.
    ["ip link add ignite0 type bridge; ip addr add 10.99.0.1/16 dev ignite0", "10.99.0.0/16"],
  ];
  for (const [script, subnet] of cases) {
    using host = new Host();
    host.sh(`ip link set lo up; ${script}`);
    assertEquals(host.install().subnet, subnet, script);
    assertNoOverlap(findNetwork(host.confDir)!, host.nl);
  }
  using host = new Host();
  host.sh(
    "ip link set lo up; for to in 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10;" +
      "do ip route add $to dev lo; done",
  );
  const error = assertThrows(() => host.install(), TapkitError, "every candidate");
  assertStringIncludes(error.mend ?? "", "--subnet");
});

Deno.test("installDefaultCni: an explicit overlap is refused by name, or accepted for good", () => {
  const cases: [script: string, words: string][] = [
    ["ip addr add 10.5.0.1/24 dev lo", `address 10.5.0.1/24 of "lo"`],
    ["ip route add 10.0.0.0/8 dev lo", `route 10.0.0.0/8 through "lo"`],
    ["ip route add 10.5.9.0/24 dev lo table 9", `route 10.5.9.0/24 through "lo"`],
  ];
  for (const [script, words] of cases) {
    using host = new Host();
    host.sh(`ip link set lo up; ${script}`);
    const subnet = "10.5.0.0/16";
    assertThrows(() => host.install({ subnet }), InputError, words);
    assertThrows(() => Deno.statSync(host.confDir), Deno.errors.NotFound);
    assertEquals(host.install({ subnet, force: true }).subnet, subnet);
    assertNoOverlap(findNetwork(host.confDir)!, host.nl);
    assertEquals(host.install({ check: true }).problems, []);
    assertEquals(host.install({ remove: true }).removed, true);
  }
});

Deno.test("assertNoOverlap: refuses what came in between, until the bridge is there", () => {
  using host = new Host();
  host.install({ subnet: "10.5.0.0/16" });
  const list = findNetwork(host.confDir)!;
  assertNoOverlap(list, host.nl);
  host.sh("ip link set lo up; ip addr add 10.5.7.1/24 dev lo");
  const error = assertThrows(() => assertNoOverlap(list, host.nl), TapkitError, "10.5.7.1/24");
  assertStringIncludes(error.message, "10.5.0.0/16");
  assertStringIncludes(host.install({ check: true }).problems!.join(), "10.5.7.1/24");
  host.sh("ip link add ignite0 type bridge");
  assertNoOverlap(list, host.nl);
});

Deno.test("assertNoOverlap: a default route in another dress, or a route to nowhere, is no obstacle", () => {
  using host = new Host();
  host.install({ subnet: "10.5.0.0/16", ipv6: "fd00:5::/64" });
  const list = findNetwork(host.confDir)!;
  host.sh(
    "ip link set lo up; for to in 0.0.0.0/1 128.0.0.0/1; do ip route add $to dev lo; done;" +
      "for to in ::/1 8000::/1 ::/3 2000::/4 3000::/4 fc00::/7; do ip -6 route add $to dev lo; done;" +
      "ip route add unreachable 10.0.0.0/8; ip route add blackhole 10.5.0.0/16 table 7;" +
      "ip -6 route add unreachable fd00::/8; ip -6 route add prohibit fd00:5::/48",
  );
  assertNoOverlap(list, host.nl);
  assertEquals(host.install({ check: true }).problems, []);
  host.sh("ip -6 route add fd00:5::8/125 dev lo");
  assertThrows(() => assertNoOverlap(list, host.nl), TapkitError, "route fd00:5::8/125");
});

Deno.test("assertNoOverlap: a hundred thousand routes are looked at, and no object made of them", () => {
  using host = new Host();
  host.install({ subnet: "10.255.0.0/16" });
  const list = findNetwork(host.confDir)!;
  const routes = Array.from(
    { length: 100_000 },
    (_, index) =>
      `route add ${20 + (index >> 16)}.${(index >> 8) & 255}.${index & 255}.0/24 dev lo`,
  );
  Deno.writeTextFileSync(`${host.dataDir}/batch`, routes.join("\n"));
  host.sh(`ip link set lo up; ip -batch ${host.dataDir}/batch`);
  let before = processorTime();
  const all = host.run(() => new Deno.Command("ip", { args: ["route"] }).outputSync());
  const listing = processorTime().children - before.children;
  assert(all.stdout.length > 1_000_000);
  before = processorTime();
  assertNoOverlap(list, host.nl);
  const looking = processorTime().own - before.own;
  // What `ip` takes for the same is the kernel's time, mostly.
  assert(looking < 2 * listing, `${looking} ms, where ip route takes ${listing} ms`);
  host.sh("ip route add 10.255.255.252/30 dev lo");
  assertThrows(() => assertNoOverlap(list, host.nl), TapkitError, "route 10.255.255.252/30");
});

Deno.test("installDefaultCni: malformed options are refused before anything is touched", () => {
  using host = new Host();
  const cases: [options: Partial<DefaultCniOptions>, words: string][] = [
    [{ subnet: "10.5.0.0" }, "10.5.0.0"],
    [{ subnet: "10.5.0.0/33" }, "10.5.0.0/33"],
    [{ subnet: "10.5.0.1/16" }, "host bits"],
    [{ subnet: "10.5.0.0/31" }, "no room"],
    [{ subnet: "fd00::/64" }, "not IPv4"],
    [{ subnet: "127.0.0.0/16" }, "127.0.0.0/8"],
    [{ subnet: "224.1.0.0/16" }, "where guests cannot be"],
    [{ subnet: "169.254.0.0/16" }, "169.254.0.0/16"],
    [{ subnet: "0.0.0.0/0" }, "where guests cannot be"],
    [{ ipv6: "10.0.0.0/8" }, "not IPv6"],
    [{ ipv6: "fe80::/64" }, "fe80::/10"],
    [{ ipv6: "fd00::/127" }, "no room"],
    [{ bridge: "a/b" }, "a/b"],
    [{ bridge: "sixteen-letters-" }, "15"],
    [{ mtu: 67 }, "MTU 67"],
    [{ mtu: 65536 }, "MTU 65536"],
    [{ mtu: 1279, ipv6: "auto" }, "MTU 1279"],
    [{ print: true, remove: true }, "exclude"],
    [{ bridge: "lo" }, "not a bridge"],
  ];
  for (const [options, words] of cases) {
    const error = assertThrows(() => host.install(options), InputError, words);
    assert(error.mend !== undefined, words);
  }
  assertThrows(() => Deno.statSync(host.confDir), Deno.errors.NotFound);
});

Deno.test("installDefaultCni: IPv6 by prefix, or a random unique local one", () => {
  using host = new Host();
  const chosen = host.install({ ipv6: "auto", mtu: 1400, bridge: "br9", print: true });
  assertMatch(chosen.ipv6!, /^fd[0-9a-f]{2}:.*::\/64$/);
  assertEquals([chosen.mtu, chosen.bridge, chosen.installed], [1400, "br9", false]);
  assertEquals(recognizeDefaultNetwork(chosen.text!)?.ipv6, chosen.ipv6);
  assert(chosen.ipv6 !== host.install({ ipv6: "auto", print: true }).ipv6);
  assertThrows(() => Deno.statSync(host.confDir), Deno.errors.NotFound);
  assertEquals(host.install({ ipv6: "fd00:5::/64" }).ipv6, "fd00:5::/64");
  const { plugins } = findNetwork(host.confDir)!;
  assertEquals((plugins[0]!.ipam!.ranges as unknown[][])[1], [{ subnet: "fd00:5::/64" }]);
});

Deno.test("recognizeDefaultNetwork: knows its own text, and nothing else", () => {
  const networks = [
    { subnet: "10.61.0.0/16", bridge: "ignite0" },
    { subnet: "10.61.0.0/16", bridge: "br1", mtu: 1400, ipv6: "fd00::/64", allowOverlap: true },
  ];
  for (const network of networks) {
    const text = renderDefaultNetwork(network);
    assertEquals(recognizeDefaultNetwork(text), network);
    for (const other of ["", "{", `${text} `, text.replace("true", "false"), "{}"]) {
      assertEquals(recognizeDefaultNetwork(other), undefined);
    }
  }
});

Deno.test("installDefaultCni: check says what is missing, edited, or in front", () => {
  using host = new Host();
  assertEquals(host.install({ check: true }).problems, [`${host.path} is not there`]);
  host.install({ subnet: "10.5.0.0/16" });
  assertEquals(host.install({ check: true }).problems, []);
  assertStringIncludes(
    host.install({ check: true, subnet: "10.6.0.0/16", mtu: 1400 }).problems!.join(),
    "subnet 10.5.0.0/16, not 10.6.0.0/16",
  );
  Deno.writeTextFileSync(`${host.confDir}/05.conf`, "{}");
  assertStringIncludes(host.install({ check: true }).problems![0]!, "05.conf sorts first");
  Deno.removeSync(`${host.confDir}/05.conf`);
  Deno.writeTextFileSync(host.path, `${Deno.readTextFileSync(host.path)}\n`);
  assertStringIncludes(host.install({ check: true }).problems![0]!, "differs");
});

Deno.test("installDefaultCni: remove takes tapkit's own file, while no VM needs it", () => {
  using host = new Host();
  assertEquals(host.install({ remove: true }).removed, false);
  host.install({ subnet: "10.5.0.0/16" });
  const error = assertThrows(() => host.install({ remove: true, inUse: ["web"] }), TapkitError);
  assertStringIncludes(error.message, `VM "web"`);
  assertEquals(host.install({ remove: true }).removed, true);
  assertEquals(host.install({ remove: true }).removed, false);
  Deno.writeTextFileSync(host.path, "{}");
  assertThrows(() => host.install({ remove: true }), TapkitError, "edited");
  assertEquals(Deno.readTextFileSync(host.path), "{}");
});

Deno.test("installDefaultCni: sweeps what a killed process left, and nothing of a live one", () => {
  using host = new Host();
  Deno.mkdirSync(host.confDir, { recursive: true });
  const dead = `${host.confDir}/.10-ignite.conflist.999999999`;
  const live = `${host.confDir}/.10-ignite.conflist.1`;
  Deno.writeTextFileSync(dead, "{");
  Deno.writeTextFileSync(live, "{");
  host.install();
  assertEquals([...Deno.readDirSync(host.confDir)].map(({ name }) => name).sort(), [
    ".10-ignite.conflist.1",
    "10-ignite.conflist",
  ]);
});

Deno.test("installDefaultCni: a directory that cannot be made is an error that names it", () => {
  using host = new Host();
  Deno.writeTextFileSync(`${host.dataDir}/cni`, "");
  const error = assertThrows(() => host.install(), TapkitError);
  assertStringIncludes(error.message, host.confDir);
});
