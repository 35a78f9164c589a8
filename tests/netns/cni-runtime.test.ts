import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { parseConfig } from "../../lib/cni/conflist.ts";
import { renderDefaultNetwork } from "../../lib/cni/default-network.ts";
import { type NetworkAttachment, planNetwork } from "../../lib/cni/plan.ts";
import {
  type AddEnvironment,
  addNetwork,
  checkNetwork,
  delNetwork,
} from "../../lib/cni/runtime.ts";
import { CniError, type NetworkConfigList } from "../../lib/cni/types.ts";
import { UndoStack } from "../../lib/undo.ts";
import {
  CniGuest,
  CniHost,
  NO_PLUGINS,
  requireReference,
  runReference,
} from "../support/cni-reference.ts";

requireReference();

/** The default network, with its pool in the host's directory. */
function defaultNetwork(host: CniHost): NetworkConfigList {
  const text = renderDefaultNetwork({ subnet: "10.7.0.0/24", bridge: "ignite0" });
  const raw = JSON.parse(text);
  raw.plugins[0].ipam.dataDir = host.dataDir;
  return parseConfig(JSON.stringify(raw), "f");
}

function chain(...plugins: Record<string, unknown>[]): NetworkConfigList {
  return parseConfig(JSON.stringify({ cniVersion: "1.0.0", name: "net", plugins }), "f");
}

function environment(host: CniHost, guest: CniGuest): AddEnvironment {
  return {
    netns: guest.netns,
    netnsPath: guest.path,
    ownNetns: true,
    hostNl: host.nl,
    vmNl: guest.nl,
    undo: new UndoStack(),
    owner: "web/eth0",
    plugins: NO_PLUGINS,
    note: () => {},
  };
}

Deno.test("addNetwork: a chain asks one thing of the firewall", async () => {
  using host = new CniHost();
  using guest = new CniGuest();
  const list = defaultNetwork(host);
  const portMappings = [
    { hostPort: 8080, containerPort: 80 },
    { hostPort: 53, containerPort: 5353, protocol: "UDP", hostIP: "192.0.2.1" },
  ];
  const plan = planNetwork({
    list,
    containerId: "c",
    ifName: "eth0",
    runtimeConfig: { portMappings },
  });
  const { guest: rules, attachment } = await host.run(() =>
    addNetwork(plan, environment(host, guest))
  );
  assertEquals(rules, {
    owner: "web/eth0",
    link: "ignite0",
    addresses: ["10.7.0.2"],
    masquerade: true,
    forward: true,
    ports: [
      { hostIP: "", hostPort: 8080, vmPort: 80, protocol: "tcp" },
      { hostIP: "192.0.2.1", hostPort: 53, vmPort: 5353, protocol: "udp" },
    ],
  });
  // What is recorded survives being written as JSON.
  const recorded: NetworkAttachment = JSON.parse(JSON.stringify(attachment));
  assertEquals(recorded, attachment);
  assertEquals(await host.run(() => checkNetwork(recorded, environment(host, guest))), []);
  assertEquals(await host.run(() => delNetwork(recorded, environment(host, guest))), []);
  assertEquals([host.ip("link").length, host.reserved("ignite-cni-bridge")], [1, []]);
});

Deno.test("addNetwork: a network that asks nothing of the firewall gives no rules", async () => {
  using host = new CniHost();
  using guest = new CniGuest();
  const plan = planNetwork({
    list: chain({ type: "bridge", bridge: "br0" }),
    containerId: "c",
    ifName: "eth0",
  });
  const { guest: rules, result } = await host.run(() => addNetwork(plan, environment(host, guest)));
  assertEquals([rules, result.ips], [undefined, []]);
});

Deno.test("addNetwork: an attachment comes back with the address and MAC it asks for", async () => {
  using host = new CniHost();
  const list = defaultNetwork(host);
  const attach = async (runtimeConfig = {}) => {
    using guest = new CniGuest();
    const plan = planNetwork({ list, containerId: "c", ifName: "eth0", runtimeConfig });
    const { result, attachment } = await host.run(() => addNetwork(plan, environment(host, guest)));
    assertEquals(guest.ip("link", "show", "dev", "eth0")[0].address, result.interfaces[2]!.mac);
    return { ip: result.ips[0]!.address, mac: result.interfaces[2]!.mac!, attachment };
  };
  const before = await attach();
  // As after a reboot: the namespace is gone, the pool's file is not.
  const gone = { netnsPath: "/gone", hostNl: host.nl, plugins: NO_PLUGINS, note: () => {} };
  assertEquals(await host.run(() => delNetwork(before.attachment, gone)), []);
  const other = await attach();
  assert(other.ip !== before.ip && other.mac !== before.mac);
  assertEquals(await host.run(() => delNetwork(other.attachment, gone)), []);
  const after = await attach({ ips: [before.ip], mac: before.mac });
  assertEquals([after.ip, after.mac], [before.ip, before.mac]);
});

Deno.test("addNetwork: a plugin that needs one before it says so", async () => {
  using host = new CniHost();
  using guest = new CniGuest();
  for (const type of ["firewall", "portmap"]) {
    const plan = planNetwork({ list: chain({ type }), containerId: "c", ifName: "eth0" });
    const run = () => host.run(() => addNetwork(plan, environment(host, guest)));
    await assertRejects(run, CniError, "no plugin before it");
  }
});

Deno.test("delNetwork: goes on past what fails, backward, and returns it", async () => {
  using host = new CniHost();
  using guest = new CniGuest();
  const plan = planNetwork({ list: defaultNetwork(host), containerId: "c", ifName: "eth0" });
  const { attachment } = await host.run(() => addNetwork(plan, environment(host, guest)));
  const unknown = { type: "later", implementation: "builtin", config: { type: "later" } } as const;
  const mixed = { ...attachment, plugins: [...attachment.plugins, unknown] };
  const failures = await host.run(() => delNetwork(mixed, environment(host, guest)));
  assertEquals(failures.length, 1);
  assertStringIncludes(failures[0]!.message, `"later"`);
  assertEquals([host.ip("link").length, host.reserved("ignite-cni-bridge")], [1, []]);
});

Deno.test("checkNetwork: an attachment that was never completed is a difference", async () => {
  using host = new CniHost();
  using guest = new CniGuest();
  const plan = planNetwork({ list: defaultNetwork(host), containerId: "c", ifName: "eth0" });
  const [found] = await host.run(() => checkNetwork(plan, environment(host, guest)));
  assertEquals(found, {
    object: `"eth0"`,
    problem: `was never completely attached to "ignite-cni-bridge"`,
  });
});

Deno.test("loopback: gives the reference plugin's result, alone and after another", async () => {
  using host = new CniHost();
  using theirs = new CniGuest();
  using ours = new CniGuest();
  const list = chain({ type: "loopback" });
  const conf = { cniVersion: "1.0.0", name: "net", type: "loopback" };
  const call = { command: "ADD", containerId: "c", netns: theirs.path, ifName: "lo" } as const;
  const expected = await runReference("loopback", call, conf, host.netns);
  const plan = planNetwork({ list, containerId: "c", ifName: "lo" });
  const { result, attachment } = await host.run(() => addNetwork(plan, environment(host, ours)));
  const { dns, routes, ...rest } = JSON.parse(
    JSON.stringify(result).replaceAll(ours.path, theirs.path),
  );
  assertEquals([rest.interfaces, rest.ips, routes, dns], [
    expected.interfaces,
    expected.ips,
    [],
    {},
  ]);
  const flags = () => ours.ip("link", "show", "dev", "lo")[0].flags.includes("UP");
  assertEquals([flags(), await host.run(() => checkNetwork(attachment, environment(host, ours)))], [
    true,
    [],
  ]);
  assertEquals(await host.run(() => delNetwork(attachment, environment(host, ours))), []);
  assertEquals([flags(), await host.run(() => checkNetwork(attachment, environment(host, ours)))], [
    false,
    [{
      object: `link "lo" of the namespace`,
      problem: "is down",
    }],
  ]);

  using third = new CniGuest();
  const both = planNetwork({
    list: chain({ type: "bridge", bridge: "br0" }, { type: "loopback" }),
    containerId: "d",
    ifName: "eth0",
  });
  const added = await host.run(() => addNetwork(both, environment(host, third)));
  assertEquals(added.result.interfaces.map(({ name }) => name)[2], "eth0");
});
