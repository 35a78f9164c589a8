/**
 * attach-vm on networks of the reference plugins when their world is gone: the namespace, or the
 * rules. What the plugins do not find is taken away all the same, and nothing of a container's that
 * the plugins themselves made.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { LIST_IPTABLES } from "../support/coexist.ts";
import {
  REFERENCE_BRIDGE,
  REFERENCE_PORTMAP,
  requireReference,
  runOnMachine,
} from "../support/cni-reference.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { eventually, ROOT } from "../support/machine.ts";

requireReference();

// deno-lint-ignore no-explicit-any -- CNI's own shapes.
type Json = any;

const POOL = {
  type: "host-local",
  ranges: [[{ subnet: "10.20.0.0/24" }], [{ subnet: "fd00:20::/64" }]],
  routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
};
const BRIDGE = { ...REFERENCE_BRIDGE, ipam: POOL };

interface Chain {
  readonly plugins: readonly Json[];
  readonly args?: readonly string[];
}

const CHAINS: readonly Chain[] = [
  { plugins: [{ ...BRIDGE, macspoofchk: true }] },
  {
    plugins: [
      BRIDGE,
      REFERENCE_PORTMAP,
      { type: "firewall" },
    ],
    args: ["--ports", "8080:80"],
  },
  { plugins: [{ type: "ptp", ipMasq: true, ipam: POOL }] },
];

function nameOf({ plugins }: Chain): string {
  return plugins.map(({ type }) => type).join(", ");
}

/** A host with a chain's network, and beside it a container that the plugins made. */
async function hostWithPod({ plugins }: Chain, variant = "nft"): Promise<Host> {
  const host = await Host.create();
  await host.addLan();
  // That directory is the real machine's own, but for what is mounted on it.
  await host.sh(`mount -t tmpfs tmpfs /usr/local/sbin
  for name in ip{,6}tables{,-save,-restore}; do
    ln -sf /usr/sbin/xtables-${variant}-multi /usr/local/sbin/$name
  done; ip netns add pod`);
  const list = { cniVersion: "0.4.0", name: "net", plugins };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", JSON.stringify(list));
  let prevResult: Json;
  for (const plugin of plugins) {
    const runtimeConfig = {
      portMappings: [{ hostPort: 9090, containerPort: 90, protocol: "tcp" }],
    };
    const config = { ...plugin, ...list, plugins: undefined, runtimeConfig, prevResult };
    prevResult = await runOnMachine(host, "ADD", { id: "pod", netns: "/run/netns/pod" }, config);
  }
  return host;
}

/** The rules of iptables; where both families of a port are asked for by name it comes twice. */
async function listRules(host: Host): Promise<string> {
  return (await host.sh(LIST_IPTABLES)).replace(/--dports (\d+),\1/g, "--dports $1");
}

/** All that an attachment leaves in the host, and what of it others have. */
async function holdings(host: Host): Promise<string[]> {
  const text = await host.sh(`set +e
    nft list table bridge nat 2>/dev/null | grep -E 'chain cni|comment'
    ls /var/lib/cni/networks/net | grep -v last_reserved
    ip -o link | sed -E 's/^[0-9]+: ([^ ]+).*/link \\1/'
    ip -o addr show scope global | sed -E 's/^[0-9]+: //; s/ (tentative|\\\\).*//'
    ip route; ip -6 route | grep fd00; ls /run/netns`);
  // The kernel's own chains and tables come into being when they are first looked at.
  return `${await listRules(host)}\n${text}`.split("\n").filter((line) =>
    !/^(\*|COMMIT|:[A-Z]+ (ACCEPT|DROP)$)/.test(line)
  )
    .sort();
}

async function assertHoldings(host: Host, before: readonly string[]): Promise<void> {
  let now: readonly string[] = [];
  // The links of a namespace that is gone go by and by.
  await eventually(5000, "nothing is left", async () => {
    now = await holdings(host);
    return now.join() === before.join();
  }).catch(() => assertEquals(now, before));
}

/** The reference ptp cannot be asked for a MAC. */
function assertSame(now: Json, before: Json): void {
  const withoutMac = ({ interfaces, ...record }: Json) => ({
    ...record,
    interfaces: interfaces.map((link: Json) => ({ ...link, mac: "" })),
  });
  assertEquals(withoutMac(now), withoutMac(before));
}

async function loseNamespace(host: Host): Promise<void> {
  await host.sh("ip netns delete tapkit-web");
}

for (const [variant, chains] of [["nft", CHAINS], ["legacy", CHAINS.slice(1, 2)]] as const) {
  Deno.test(`attach-vm: the namespace is gone before --remove, --gc and --restore, iptables-${variant}`, async (t) => {
    for (const chain of chains) {
      await t.step(nameOf(chain), async () => {
        await using host = await hostWithPod(chain, variant);
        const before = await holdings(host);
        const attach = async (): Promise<Json> =>
          (await host.mustTapkit("attach-vm", "web", ...chain.args ?? [])).json[0];

        await attach();
        assert((await holdings(host)).join() !== before.join());
        await loseNamespace(host);
        const removed = await host.mustTapkit("attach-vm", "web", "--remove");
        assertEquals([removed.json, removed.stderr], [[{ vm: "web", removed: true }], ""]);
        await assertHoldings(host, before);
        await host.mustTapkit("attach-vm", "web", "--remove");

        await attach();
        await loseNamespace(host);
        const collected = await host.mustTapkit("attach-vm", "--gc");
        assertEquals(collected.json, [{ vm: "web", removed: true }]);
        await assertHoldings(host, before);

        const record = await attach();
        const attached = (await holdings(host)).filter((line) => /CNI-|10\.20/.test(line));
        await loseNamespace(host);
        assertSame((await host.mustTapkit("attach-vm", "--restore")).json[0], record);
        const restored = (await holdings(host)).filter((line) => /CNI-|10\.20/.test(line));
        // The host's end of a ptp has another name.
        const bare = (lines: string[]) =>
          lines.map((line) => line.replace(/veth\S+/g, "veth")).sort();
        assertEquals(bare(restored), bare(attached));
        await host.mustTapkit("attach-vm", "web", "--remove");
        await assertHoldings(host, before);
      });
    }
  });
}

Deno.test("attach-vm --remove: takes links and rules of a namespace that lives on without a name", async () => {
  const [, , ptp] = CHAINS;
  await using host = await hostWithPod(ptp!);
  const before = await holdings(host);
  await host.mustTapkit("attach-vm", "web");
  host.spawn("ip", ["netns", "exec", "tapkit-web", "sleep", "1000"]);
  await host.sh("until ip netns pids tapkit-web | grep -q .; do sleep 0.05; done");
  await loseNamespace(host);
  await host.mustTapkit("attach-vm", "web", "--remove");
  await assertHoldings(host, before);
});

for (const variant of ["nft", "legacy"]) {
  Deno.test(`attach-vm --remove: all that tapkit knew is gone, the namespace is not, iptables-${variant}`, async () => {
    const [, chain] = CHAINS;
    await using host = await hostWithPod(chain!, variant);
    const before = await holdings(host);
    await host.mustTapkit("attach-vm", "web", ...chain!.args!);
    await host.sh("rm -r /var/lib/tapkit");
    const removed = await host.mustTapkit("attach-vm", "web", "--remove");
    assertEquals(removed.json, [{ vm: "web", removed: true }]);
    await assertHoldings(host, before);
  });
}

Deno.test("attach-vm --remove: takes the rules for addresses that are not on the interface any more", async (t) => {
  for (const chain of [CHAINS[0]!, CHAINS[2]!]) {
    await using host = await hostWithPod(chain);
    const before = await holdings(host);
    for (
      const [mode, command] of [
        ["dhcp-bridge", "true"],
        ["tc-redirect", "ip -n tapkit-web link delete eth0"],
        ["tc-redirect", "ip -n tapkit-web -6 address flush dev eth0"],
      ] as const
    ) {
      await t.step(`${nameOf(chain)}, mode ${mode}: ${command}`, async () => {
        await host.mustTapkit("attach-vm", "web", "--mode", mode);
        await host.sh(command);
        await host.mustTapkit("attach-vm", "web", "--remove");
        await assertHoldings(host, before);
      });
    }
  }
});

Deno.test("attach-vm: nft flush ruleset, then --remove, or attaching again", async (t) => {
  for (const chain of CHAINS) {
    await t.step(nameOf(chain), async () => {
      await using host = await hostWithPod(chain);
      await host.sh("nft flush ruleset");
      const before = await holdings(host);
      const attach = ["web", ...chain.args ?? []];
      await host.mustTapkit("attach-vm", ...attach);
      await host.sh("nft flush ruleset");
      const removed = await host.mustTapkit("attach-vm", "web", "--remove");
      assertEquals([removed.json, removed.stderr], [[{ vm: "web", removed: true }], ""]);
      await assertHoldings(host, before);

      const { json: [record] } = await host.mustTapkit("attach-vm", ...attach);
      const rules = () => listRules(host);
      const wanted = await rules();
      await host.sh("nft flush ruleset");
      const { code, json } = await host.tapkit("attach-vm", "web", "--check");
      assertEquals(code, 3);
      assertMatch(json[0].problems.join("\n"), /lacks the chain CNI-.* which masquerades/);
      const { json: [now] } = await host.mustTapkit("attach-vm", ...attach);
      assertSame(now, record);
      assertEquals(await rules(), wanted);
      const checked = await host.mustTapkit("attach-vm", "web", "--check");
      assertEquals(checked.json[0].problems, []);
      {
        await using guest = await NetnsGuest.start(host, now);
        await guest.dhcp();
        await guest.serveHttp(80, "guest");
        const address = record.interfaces[0].addresses[0].address.split("/")[0];
        assertEquals((await host.fetch(`http://${address}/`)).body, "guest");
      }
      await host.mustTapkit("attach-vm", "web", "--remove");
      const left = (await holdings(host)).filter((line) =>
        !/-j CNI-|:?CNI-(HOST|FORW|ADMIN)/.test(line)
      );
      assertEquals(left, before);
    });
  }
});

Deno.test("attach-vm: a plugin that fails last leaves nothing of those before it", async () => {
  const chain = { plugins: [{ ...BRIDGE, macspoofchk: true }, ...CHAINS[1]!.plugins.slice(1)] };
  await using host = await hostWithPod(chain);
  await host.writeFile(
    "/opt/cni/bin/broken",
    `#!/bin/sh\n[ $CNI_COMMAND != ADD ] || { echo '{"code":7,"msg":"no"}'; exit 1; }\n`,
    0o755,
  );
  const list = {
    cniVersion: "0.4.0",
    name: "net",
    plugins: [...chain.plugins, { type: "broken" }],
  };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", JSON.stringify(list));
  const before = await holdings(host);
  const failed = await host.tapkit("attach-vm", "web", "--ports", "8080:80");
  assertEquals(failed.code, 1);
  assertMatch(failed.stderr, /cannot attach "web": broken: ADD failed with code 7: no/);
  await assertHoldings(host, before);
});

Deno.test("attach-vm: killed while a plugin runs, then --remove, or attaching again", async () => {
  const chain = { plugins: [{ ...BRIDGE, macspoofchk: true }, ...CHAINS[1]!.plugins.slice(1)] };
  await using host = await hostWithPod(chain);
  await host.writeFile(
    "/opt/cni/bin/slow",
    `#!/bin/sh
[ $CNI_COMMAND = ADD ] || exit 0
touch /run/reached
while [ -e /run/hold ]; do sleep 0.1; done
sed 's/.*"prevResult"://; s/}$//'
`,
    0o755,
  );
  const list = { cniVersion: "0.4.0", name: "net", plugins: [...chain.plugins, { type: "slow" }] };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", JSON.stringify(list));
  const before = await holdings(host);
  const attach = `${Deno.execPath()} run -A ${ROOT}/scripts/attach-vm.ts web --ports 8080:80`;
  const kill = () =>
    host.sh(`touch /run/hold; rm -f /run/reached; ${attach} >/dev/null 2>&1 & pid=$!
      until [ -e /run/reached ]; do sleep 0.05; done; kill -9 $pid; rm /run/hold`);
  await kill();
  assertEquals((await host.mustTapkit("attach-vm", "web", "--remove")).json, [
    { vm: "web", removed: true },
  ]);
  await assertHoldings(host, before);
  await kill();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  await host.mustTapkit("attach-vm", "web", "--remove");
  await assertHoldings(host, before);
});

Deno.test("attach-vm --remove: a plugin that refuses twice keeps the record", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.writeFile(
    "/opt/cni/bin/remote-ipam",
    `#!/bin/sh
[ -e /run/daemon ] && echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.9.0.2/24"}]}' && exit
echo '{"cniVersion":"0.4.0","code":11,"msg":"daemon is down"}'; exit 1
`,
    0o755,
  );
  const plugins = [{ ...BRIDGE, ipam: { type: "remote-ipam" } }];
  await host.writeFile(
    "/etc/cni/net.d/10-net.conflist",
    JSON.stringify({ cniVersion: "0.4.0", name: "net", plugins }),
  );
  await host.sh("touch /run/daemon");
  await host.mustTapkit("attach-vm", "web");
  await host.sh("rm /run/daemon");
  for (let time = 0; time < 2; time++) {
    const refused = await host.tapkit("attach-vm", "web", "--remove");
    assertEquals(refused.code, 1);
    assertMatch(refused.stderr, /bridge: DEL failed with code 11: .*daemon is down/);
  }
  await host.sh("touch /run/daemon");
  await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals(await host.sh(LIST_IPTABLES).then((text) => text.match(/CNI-/g)), null);
});
