import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { parseConfig } from "../../lib/cni/conflist.ts";
import {
  findUnsupported,
  type NetworkAttachment,
  planNetwork,
  publisherOf,
  withPorts,
} from "../../lib/cni/plan.ts";
import { CniError, type PluginConfig } from "../../lib/cni/types.ts";
import { InputError, TapkitError } from "../../lib/errors.ts";
import { parsePorts } from "../../lib/inet/ports.ts";

type Conf = Record<string, unknown>;

const BRIDGE = {
  type: "bridge",
  bridge: "br0",
  ipam: { type: "host-local", subnet: "10.7.0.0/24" },
};
const PORTMAP = { type: "portmap", capabilities: { portMappings: true } };

function list(...plugins: Conf[]) {
  const text = JSON.stringify({ cniVersion: "1.0.0", name: "net", plugins });
  return parseConfig(text, "/etc/cni/net.d/1.conflist");
}

function plan(plugins: Conf[], runtimeConfig: Conf = {}, extra: Conf = {}) {
  const request = { list: list(...plugins), containerId: "c", ifName: "eth0", runtimeConfig };
  return planNetwork({ ...request, ...extra });
}

Deno.test("planNetwork: injects name, version and the capabilities a plugin declares", () => {
  const portMappings = [{ hostPort: 80, containerPort: 8080 }];
  const { plugins, network } = plan([BRIDGE, PORTMAP, { type: "firewall" }], {
    portMappings,
    ips: ["10.7.0.9"],
    mac: "02:00:00:00:00:01",
    bandwidth: { ingressRate: 1 },
  });
  assertEquals(network, "net");
  assertEquals(plugins.map(({ type, implementation }) => [type, implementation]), [
    ["bridge", "builtin"],
    ["portmap", "builtin"],
    ["firewall", "builtin"],
  ]);
  const common = { name: "net", cniVersion: "1.0.0" };
  // The bridge declares nothing: what is wanted of it comes by the args convention.
  const cni = { ips: ["10.7.0.9"], mac: "02:00:00:00:00:01" };
  assertEquals(plugins[0]!.config, { ...BRIDGE, ...common, args: { cni } });
  assertEquals(plugins[1]!.config, { ...PORTMAP, ...common, runtimeConfig: { portMappings } });
  assertEquals(plugins[2]!.config, { type: "firewall", ...common });
});

Deno.test("planNetwork: declared capabilities are passed as such", () => {
  const bridge = { ...BRIDGE, capabilities: { ips: true, mac: true, aliases: false } };
  const wanted = { ips: ["10.7.0.9/24"], mac: "02:00:00:00:00:01", aliases: ["x"] };
  const { config } = plan([bridge], wanted).plugins[0]!;
  assertEquals(config.runtimeConfig, { ips: ["10.7.0.9/24"], mac: "02:00:00:00:00:01" });
  assertEquals(config.args, undefined);
});

Deno.test("planNetwork: refuses a request that cannot be honoured, before anything is touched", () => {
  const ports = (mapping: Conf) => ({
    portMappings: [{ hostPort: 80, containerPort: 80, ...mapping }],
  });
  const cases: [plugins: Conf[], runtimeConfig: Conf, words: string][] = [
    [[BRIDGE], ports({}), "cannot publish ports"],
    [[BRIDGE, PORTMAP], ports({ hostPort: 0 }), "host port 0"],
    [[BRIDGE, PORTMAP], ports({ hostPort: 65536 }), "host port 65536"],
    [[BRIDGE, PORTMAP], ports({ containerPort: -1 }), "guest port -1"],
    [[BRIDGE, PORTMAP], ports({ containerPort: 1.5 }), "guest port 1.5"],
    [[BRIDGE, PORTMAP], ports({ protocol: "" }), `protocol ""`],
    [[BRIDGE, PORTMAP], ports({ protocol: "icmp" }), `protocol "icmp"`],
    [[BRIDGE, PORTMAP], ports({ hostIP: "x" }), `"x" is not a host address`],
    [[BRIDGE], { ips: ["10.8.0.1"] }, "10.8.0.1 is outside network"],
    [[BRIDGE], { ips: ["10.7.0.1"] }, "10.7.0.1 is the gateway"],
    [[BRIDGE], { mac: "01:00:00:00:00:01" }, "group address"],
  ];
  for (const [plugins, runtimeConfig, words] of cases) {
    const error = assertThrows(() => plan(plugins, runtimeConfig), InputError, words);
    assertEquals(typeof error.mend, "string", words);
  }
  assertThrows(() => plan([BRIDGE], {}, { containerId: "a/b" }), InputError);
  assertThrows(() => plan([BRIDGE], {}, { ifName: "a/b" }), InputError);
});

Deno.test("planNetwork: refuses a misconfigured plugin, naming network and key", () => {
  const cases: [bridge: Conf, words: string][] = [
    [{ hairpinMode: true, promiscMode: true }, `"hairpinMode" and "promiscMode"`],
    [{ mtu: -1 }, `"mtu" -1`],
    [{ mtu: "1500" }, `"mtu"`],
    [{ isGateway: "yes" }, `"isGateway"`],
    [{ bridge: 3 }, `"bridge"`],
    [{ disableContainerInterface: true }, `"disableContainerInterface"`],
    [{ ipam: { type: "host-local" } }, `no "subnet"`],
  ];
  for (const [conf, words] of cases) {
    const error = assertThrows(() => plan([{ ...BRIDGE, ...conf }]), CniError, words);
    assertStringIncludes(error.message, `"net"`);
  }
  for (const bridge of ["a/b", "all", "br+"]) {
    assertThrows(() => plan([{ ...BRIDGE, bridge }]), CniError, `the bridge "${bridge}", a name`);
  }
  for (const subnet of ["0.0.0.0/0", "127.0.0.0/8", "239.0.0.0/8", "::/0", "fe80::/64"]) {
    const ipam = { type: "host-local", subnet };
    assertThrows(() => plan([{ ...BRIDGE, ipam }]), CniError, `the subnet ${subnet}, which has`);
  }
});

Deno.test("findUnsupported: names the plugin and the key that is not built in", () => {
  const cases: [conf: Conf, key: string | undefined][] = [
    [BRIDGE, undefined],
    [{ ...BRIDGE, vlan: 0, vlanTrunk: [], macspoofchk: false, enabledad: true }, undefined],
    [{ ...BRIDGE, vlan: 7 }, "vlan"],
    [{ ...BRIDGE, vlanTrunk: [{ id: 1 }] }, "vlanTrunk"],
    [{ ...BRIDGE, macspoofchk: true }, "macspoofchk"],
    [{ ...BRIDGE, ipMasqBackend: "iptables" }, "ipMasqBackend"],
    [{ ...BRIDGE, shape: 1 }, "shape"],
    [{ ...BRIDGE, ipam: { type: "dhcp" } }, "ipam.type"],
    [{ ...BRIDGE, ipam: { type: "host-local", shape: 1 } }, "ipam.shape"],
    [{ type: "bridge", ipam: {} }, undefined],
    [{ ...PORTMAP, snat: true, markMasqBit: 5, conditionsV4: [], backend: "nftables" }, undefined],
    [{ ...PORTMAP, snat: false }, "snat"],
    [{ ...PORTMAP, masqAll: true }, "masqAll"],
    [{ ...PORTMAP, conditionsV4: ["-s", "10.0.0.0/8"] }, "conditionsV4"],
    [{ ...PORTMAP, conditionsV6: ["!"] }, "conditionsV6"],
    [{ ...PORTMAP, externalSetMarkChain: "X" }, "externalSetMarkChain"],
    [{ ...PORTMAP, backend: "iptables" }, "backend"],
    [{ type: "firewall", backend: "", ingressPolicy: "open" }, undefined],
    [{ type: "firewall", backend: "iptables" }, "backend"],
    [{ type: "firewall", backend: "firewalld", firewalldZone: "z" }, "backend"],
    [{ type: "firewall", firewalldZone: "z" }, "firewalldZone"],
    [{ type: "firewall", ingressPolicy: "same-bridge" }, "ingressPolicy"],
    [{ type: "firewall", iptablesAdminChainName: "X" }, "iptablesAdminChainName"],
    [{ type: "loopback" }, undefined],
    [{ type: "loopback", x: 1 }, "x"],
  ];
  for (const [conf, key] of cases) {
    const expected = key === undefined ? undefined : { type: String(conf.type), key };
    assertEquals(findUnsupported(list(conf)), expected, JSON.stringify(conf));
  }
  for (const type of ["weave-net", "toString", "constructor"]) {
    assertEquals(findUnsupported(list(BRIDGE, { type })), { type });
  }
  const error = assertThrows(() => plan([BRIDGE, { type: "weave-net" }]), TapkitError, "weave-net");
  assertStringIncludes(error.mend ?? "", "/etc/cni/net.d/1.conflist");
});

Deno.test("publisherOf: a plugin only where one is executed that declares portMappings", () => {
  const executed = (conf: PluginConfig) => ({ implementation: "exec" as const, ...recorded(conf) });
  const builtin = (conf: PluginConfig) => ({
    implementation: "builtin" as const,
    ...recorded(conf),
  });
  assertEquals(publisherOf({ plugins: [executed(BRIDGE), executed(PORTMAP)] }), "plugin");
  assertEquals(publisherOf({ plugins: [executed(BRIDGE), builtin(PORTMAP)] }), "tapkit");
  assertEquals(
    publisherOf({ plugins: [executed(BRIDGE), executed({ type: "portmap" })] }),
    "tapkit",
  );
  assertEquals(publisherOf({ plugins: [] }), "tapkit");
});

Deno.test("withPorts: replaces the ports of executed publishers, and nothing else", () => {
  const executed = (runtimeConfig?: Conf): NetworkAttachment => ({
    network: "net",
    containerId: "c",
    ifName: "eth0",
    cniArgs: {},
    plugins: [BRIDGE, { ...PORTMAP, ...runtimeConfig === undefined ? {} : { runtimeConfig } }]
      .map((conf) => ({ implementation: "exec", ...recorded(conf) })),
  });
  const portMappings = [
    { hostPort: 8080, containerPort: 80, protocol: "tcp" },
    { hostPort: 8081, containerPort: 81, protocol: "tcp" },
    { hostPort: 53, containerPort: 53, protocol: "udp", hostIP: "10.0.0.1" },
  ];
  const ports = parsePorts(["8080-8081:80-81", "10.0.0.1:53:53/udp"]);
  const bandwidth = { ingressRate: 1 };
  assertEquals(withPorts(executed(), ports), executed({ portMappings }));
  assertEquals(withPorts(executed({ portMappings }), []), executed());
  const before = executed({ portMappings: portMappings.slice(1), bandwidth });
  assertEquals(withPorts(before, ports), executed({ portMappings, bandwidth }));
  assertEquals(withPorts(before, []), executed({ bandwidth }));
  const builtin = plan([BRIDGE, PORTMAP], { portMappings });
  assertEquals(withPorts(builtin, []), builtin);
});

function recorded(conf: PluginConfig) {
  return { type: conf.type, config: conf };
}
