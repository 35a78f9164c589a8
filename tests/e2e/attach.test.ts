import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { Host } from "../support/host.ts";

/** `ip -j` in the VM's namespace. */
// deno-lint-ignore no-explicit-any
async function ipJson(host: Host, netns: string | undefined, ...args: string[]): Promise<any> {
  const prefix = netns === undefined ? [] : ["-n", netns];
  return JSON.parse(await host.must("ip", [...prefix, "-j", ...args]));
}

/** What comes by itself soon after an attachment: the DHCP server, the bridge's IPv6 address. */
const SETTLING = [/serve-dhcp/, /fe80::/];

async function assertUntouched(host: Host, before: string): Promise<void> {
  await host.assertRestored(before, { strict: true, except: SETTLING });
}

Deno.test("attach-vm: a bare host gets the default network, the VM its TAP and address", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();

  const { json: [record], stderr } = await host.mustTapkit(
    "attach-vm",
    "web",
    "--ports",
    "8080:80",
  );
  assertMatch(stderr, /installed \/etc\/cni\/net\.d\/10-ignite\.conflist/);
  const [link] = record.interfaces;
  assertEquals(record, {
    version: 1,
    vm: "web",
    id: "4b5e57f6eb2f42b9039b3d1e13929295f231749c510cbe341cd68036d9af97e2",
    networkPlugin: "cni",
    netns: "/run/netns/tapkit-web",
    interfaces: [{
      name: "eth0",
      network: "ignite-cni-bridge",
      mode: "tc-redirect",
      tap: "vm_eth0",
      mac: link.mac,
      mtu: 1500,
      addresses: [{ address: "172.18.0.2/16", gateway: "172.18.0.1" }],
      routes: [{ dst: "0.0.0.0/0", gw: "172.18.0.1" }],
    }],
    dns: { nameservers: ["192.0.2.53"], search: ["example.test"] },
    ports: [{ hostIP: "0.0.0.0", hostPort: 8080, vmPort: 80, protocol: "tcp" }],
  });

  const [eth0] = await ipJson(host, "tapkit-web", "addr", "show", "eth0");
  assertEquals([eth0.address, eth0.addr_info[0].local], [link.mac, "172.18.0.2"]);
  const [tap] = await ipJson(host, "tapkit-web", "-d", "link", "show", "vm_eth0");
  assertEquals([tap.linkinfo.info_data.type, tap.linkinfo.info_data.persist], ["tap", true]);
  assert(tap.flags.includes("UP"));
  const [bridge] = await ipJson(host, undefined, "addr", "show", "ignite0");
  assertEquals(bridge.addr_info[0].local, "172.18.0.1");

  assertEquals((await host.tapkit("attach-vm", "web", "--check")).json, [
    { vm: "web", problems: [] },
  ]);
  assertEquals((await host.mustTapkit("attach-vm", "--list")).json, [record]);

  const removed = await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals([removed.json, removed.stderr], [[{ vm: "web", removed: true }], ""]);
  await host.assertRestored(before);
  const again = await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals([again.json, again.stderr], [[{ vm: "web", removed: false }], ""]);
  await host.assertRestored(before);
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 3);
});

Deno.test("attach-vm: twice is the same as once", async () => {
  await using host = await Host.create();
  await host.addLan();
  const first = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80", "--ports", "0:22");
  const before = await host.snapshot();
  for (const args of [["web"], ["web", "--ports", "8080:80", "--ports", "0:22"]]) {
    const again = await host.mustTapkit("attach-vm", ...args);
    assertEquals([again.json, again.stderr], [first.json, ""]);
    await assertUntouched(host, before);
  }
});

Deno.test("attach-vm: absent flags keep what is there, --ports replaces, --ports none clears", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80", "--ports", "53:53/udp");
  const { json: [changed] } = await host.mustTapkit("attach-vm", "web", "--ports", "8081:80");
  assertEquals(changed.ports.map((port: { hostPort: number }) => port.hostPort), [8081]);
  const elements = await host.must("nft", ["list", "map", "inet", "tapkit", "ports4"]);
  assertMatch(elements, /elements = \{ tcp \. 8081 comment "web\/eth0" : 172\.18\.0\.2 \. 80 \}/);
  const { json: [cleared] } = await host.mustTapkit("attach-vm", "web", "--ports", "none");
  assertEquals(cleared.ports, []);
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
});

Deno.test("attach-vm: what cannot change live is refused, and named", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--mtu", "1400");
  await host.must("ip", ["netns", "add", "other"]);
  const before = await host.snapshot();
  const cases = [
    [["--ip", "172.18.0.9"], "address"],
    [["--mac", "02:00:00:00:00:09"], "MAC address"],
    [["--mtu", "1300"], "MTU"],
    [["--netns", "/run/netns/other"], "network namespace"],
    [["--tap-owner", "1000"], "TAP owner"],
    [["--queues", "2"], "number of queues"],
  ] as const;
  for (const [flags, what] of cases) {
    await t.step(what, async () => {
      const { code, stderr } = await host.tapkit("attach-vm", "web", ...flags);
      assertEquals(code, 1);
      assertEquals(
        stderr,
        `attach-vm: cannot attach "web": its ${what} cannot be changed while it is attached: ` +
          `run attach-vm web --remove first\n`,
      );
    });
  }
  await assertUntouched(host, before);
  // The same as it has is no change.
  await host.mustTapkit("attach-vm", "web", "--mtu", "1400", "--ip", "172.18.0.2", "--queues", "1");
});

Deno.test("attach-vm: mends what differs, and says what it was", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  const damages = [
    ["nft flush ruleset", /nftables table "inet tapkit" is missing/],
    ["nft delete element inet tapkit ports4 '{ tcp . 8080 }'", /mapping of 0\.0\.0\.0:8080\/tcp/],
    ["sysctl -qw net.ipv4.conf.ignite0.route_localnet=0", /route_localnet=1 is not set/],
    ["ip -n tapkit-web link delete vm_eth0", /TAP "vm_eth0" is missing/],
    ["ip netns exec tapkit-web tc qdisc delete dev eth0 ingress", /from "eth0" are not redirected/],
    ["ip -n tapkit-web addr flush dev eth0", /"eth0" lacks the address 172\.18\.0\.2\/16/],
    ["ip -n tapkit-web link delete eth0", /link "eth0" .*is gone/],
    ["ip link delete ignite0", /bridge "ignite0" is gone/],
    ["ip netns delete tapkit-web", /network namespace \/run\/netns\/tapkit-web is missing/],
    ["rm /var/lib/cni/networks/ignite-cni-bridge/172.18.0.2", /address 172\.18\.0\.2 is not res/],
  ] as const;
  for (const [damage, problem] of damages) {
    await t.step(damage, async () => {
      await host.sh(damage);
      const check = await host.tapkit("attach-vm", "web", "--check");
      assertEquals(check.code, 3, damage);
      assertMatch(check.json[0].problems.join("\n"), problem);
      const mended = await host.mustTapkit("attach-vm", "web", { env: { TAPKIT_DEBUG: "1" } });
      assertMatch(mended.stderr, problem);
      assertEquals(mended.json, [record], damage);
      const after = await host.tapkit("attach-vm", "web", "--check");
      assertEquals([after.code, after.json[0].problems], [0, []], damage);
    });
  }
});

Deno.test("attach-vm --mode dhcp-bridge: mended, kept and removed, in a given namespace too", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  await host.must("ip", ["netns", "add", "mine"]);
  const before = await host.snapshot();
  const flags = ["--mode", "dhcp-bridge", "--netns", "/run/netns/mine"];
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...flags);
  const [link] = record.interfaces;
  assertEquals([link.mode, link.bridge], ["dhcp-bridge", "br_eth0"]);
  const refused = await host.tapkit("attach-vm", "web", "--mode", "tc-redirect");
  assertMatch(refused.stderr, /its mode cannot be changed while it is attached/);
  const damages = [
    ["ip -n mine link delete br_eth0", /inner bridge "br_eth0" is missing/],
    [`ip -n mine link set eth0 address ${link.mac}`, /"eth0" has the guest's MAC/],
    ["ip -n mine link delete eth0", /"eth0" .*is gone/],
  ] as const;
  for (const [damage, problem] of damages) {
    await t.step(damage, async () => {
      await host.sh(damage);
      const mended = await host.mustTapkit("attach-vm", "web", { env: { TAPKIT_DEBUG: "1" } });
      assertMatch(mended.stderr, problem);
      assertEquals(mended.json, [record], damage);
    });
  }
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).json[0].problems, []);
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm: the requested address and MAC are honoured, or refused naming the holder", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const mac = "02:00:00:00:00:77";
  const { json: [record] } = await host.mustTapkit(
    "attach-vm",
    "web",
    ...["--ip", "172.18.7.7", "--mac", mac],
  );
  assertEquals(record.interfaces[0].addresses[0].address, "172.18.7.7/16");
  assertEquals(record.interfaces[0].mac, mac);
  const before = await host.snapshot();
  const cases = [
    ["172.18.7.7", /172\.18\.7\.7 .*is held by VM "web"/],
    ["172.18.0.1", /172\.18\.0\.1/],
    ["192.0.2.9", /192\.0\.2\.9/],
    ["172.18.255.255", /172\.18\.255\.255/],
  ] as const;
  for (const [ip, message] of cases) {
    await t.step(ip, async () => {
      const { code, stderr } = await host.tapkit("attach-vm", "api", "--ip", ip);
      assertNotEquals(code, 0, ip);
      assertMatch(stderr, message);
      await assertUntouched(host, before);
    });
  }
});

Deno.test("attach-vm: the MTU is the default route's, --mtu wins, and the TAP has it", async () => {
  await using host = await Host.create();
  await host.addLan({ mtu: 1450 });
  const mtuOf = async (...args: string[]) => {
    const { json: [record] } = await host.mustTapkit("attach-vm", ...args);
    const [tap] = await ipJson(host, `tapkit-${args[0]}`, "link", "show", "vm_eth0");
    assertEquals(tap.mtu, record.interfaces[0].mtu);
    return tap.mtu;
  };
  assertEquals(await mtuOf("web"), 1450);
  assertEquals(await mtuOf("api", "--mtu", "1300"), 1300);
});

Deno.test("attach-vm: several VMs in one call, each a transaction of its own", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const lines = [
    { name: "a", ports: ["8080:80"] },
    { name: "b", ports: ["8080:80"] },
    { name: "c", ports: ["8081:80"], mtu: 1400 },
  ].map((line) => JSON.stringify(line)).join("\n");
  const { code, json, stderr } = await host.tapkit("attach-vm", "--from", "-", { stdin: lines });
  assertEquals(code, 1);
  assertEquals(json.map(({ vm }) => vm), ["a", "c"]);
  assertMatch(stderr, /cannot attach "b": host port 8080\/tcp is already mapped to VM "a": /);
  const { json: pair } = await host.mustTapkit("attach-vm", "d", "e", "--ports", "0:80");
  const ports = pair.map(({ ports }) => ports[0].hostPort);
  assertNotEquals(ports[0], ports[1]);
  await host.mustTapkit("attach-vm", "a", "b", "c", "d", "e", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm --ports: a wildcard meets every address, another protocol or address none", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "a", "--ports", "127.0.0.1:9000:80", "--ports", "9001:80");
  const cases: [ports: string, taken: boolean][] = [
    ["9000:80", true],
    ["0.0.0.0:9000:80", true],
    ["127.0.0.1:9000:81", true],
    ["192.0.2.1:9001:80", true],
    ["8999-9000:80-81", true],
    ["192.0.2.1:9000:80", false],
    ["9000:80/udp", false],
    ["9002:80", false],
  ];
  for (const [ports, taken] of cases) {
    const { code, stderr } = await host.tapkit("attach-vm", "b", "--ports", ports);
    assertEquals(code, taken ? 1 : 0, `${ports}: ${stderr}`);
    if (taken) assertMatch(stderr, /is already mapped to VM "a": choose another host port/);
  }
  // With the kernel's table gone, the records still know.
  await host.sh("nft delete table inet tapkit");
  const { stderr } = await host.tapkit("attach-vm", "c", "--ports", "9001:80");
  assertMatch(stderr, /host port 9001\/tcp is already mapped to VM "a"/);
});

Deno.test("attach-vm: the bridge and its MAC stay as VMs come and go, and go with the last", async () => {
  await using host = await Host.create();
  await host.addLan();
  const bridgeMac = async () =>
    (await ipJson(host, undefined, "link", "show", "ignite0"))[0].address;
  const { json } = await host.mustTapkit("attach-vm", "a", "b");
  const mac = await bridgeMac();
  assertNotEquals(json[0].interfaces[0].mac, json[1].interfaces[0].mac);
  await host.mustTapkit("attach-vm", "a", "--remove");
  assertEquals(await bridgeMac(), mac);
  await host.mustTapkit("attach-vm", "c");
  assertEquals(await bridgeMac(), mac);
  await host.mustTapkit("attach-vm", "b", "c", "--remove");
  assertEquals((await host.run("ip", ["link", "show", "ignite0"])).code, 1);
});

Deno.test("attach-vm: a namespace that was given is used, and never deleted", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.must("ip", ["netns", "add", "mine"]);
  const before = await host.snapshot();
  const path = "/run/netns/mine";
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--netns", path);
  assertEquals(record.netns, path);
  await ipJson(host, "mine", "link", "show", "vm_eth0");
  const disabled = "ip netns exec mine sysctl -n net.ipv6.conf.all.disable_ipv6";
  assertEquals(await host.sh(disabled), "0\n");
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm --tap-owner: that user opens the TAP, another does not", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--tap-owner", "nobody:nogroup");
  const [tap] = await ipJson(host, "tapkit-web", "-d", "link", "show", "vm_eth0");
  const { user, group } = tap.linkinfo.info_data;
  assertEquals([user, group], ["nobody", "nogroup"]);
  // The same two by their numbers.
  await host.mustTapkit("attach-vm", "web", "--tap-owner", "65534:65534");
  const { code, stderr } = await host.tapkit("attach-vm", "api", "--tap-owner", "no-such-user");
  assertEquals(code, 2);
  assertMatch(stderr, /user "no-such-user" is not in \/etc\/passwd/);
});
