/** doctor beside firewalls of others, Docker and Weave Net. */

import { assertEquals, assertMatch } from "@std/assert";
import { startFirewalld } from "../support/coexist.ts";
import { DockerEngine } from "../support/docker.ts";
import { assertFound, examine } from "../support/doctor.ts";
import { Host } from "../support/host.ts";

const PASSES = { "other firewalls": /repaired VM "web"/ };

Deno.test("doctor: ufw, whose reload takes tapkit's rules away", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("ufw allow 22/tcp; ufw --force enable");
  const bare = await examine(host);
  assertEquals(bare.failed, []);
  assertMatch(bare.of("other firewalls").detail, /^ufw drops what is forwarded; tapkit lets/);
  assertMatch(
    bare.of("kernel: iptables").detail,
    /^nft works; legacy works, and nothing needs it$/,
  );

  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  await host.awaitDhcp();
  await assertFound(host, {
    failed: ["published ports"],
    detail: /ufw keeps the published ports of "web" closed to other machines/,
    mend: /attach-vm web --open-firewall, or publish them on 127.0.0.1/,
  });
  await host.mustTapkit("attach-vm", "web", "--open-firewall");
  assertEquals((await examine(host)).failed, []);
  await host.sh("iptables -D FORWARD -m comment --comment tapkit -j TAPKIT-ACCEPT");
  await assertFound(host, {
    failed: ["other firewalls"],
    detail: /iptables \(nft\) drops what is forwarded, and lacks a jump to TAPKIT-ACCEPT/,
    mend: /run attach-vm web/,
    fixed: PASSES,
  });
});

Deno.test("doctor: firewalld, whose reload takes tapkit's rules away", async () => {
  await using host = await Host.create();
  await host.addLan();
  await startFirewalld(host);
  await host.mustTapkit("attach-vm", "web", "--ports", "127.0.0.1:8080:80");
  await host.awaitDhcp();
  const well = await examine(host);
  assertEquals(well.failed, []);
  assertMatch(well.of("other firewalls").detail, /^firewalld drops what is forwarded/);
  await host.sh("firewall-cmd --reload");
  await assertFound(host, {
    failed: ["other firewalls"],
    detail: /"inet firewalld filter_FORWARD" lacks the rule "web\/eth0 out 172.18.0.2"/,
    mend: /run attach-vm web/,
    fixed: PASSES,
  });
});

Deno.test("doctor: a policy of DROP in iptables-legacy and in nftables", async (t) => {
  const cases: Readonly<Record<string, [arrange: string, flush: string]>> = {
    "iptables-legacy": ["iptables-legacy -P FORWARD DROP", "iptables-legacy -F"],
    nftables: [
      "nft 'table inet mine { chain forward { type filter hook forward priority 0; policy drop; }; }'",
      "nft flush chain inet mine forward",
    ],
  };
  for (const [name, [arrange, flush]] of Object.entries(cases)) {
    await t.step(name, async () => {
      await using host = await Host.create();
      await host.addLan();
      await host.sh(arrange);
      await host.mustTapkit("attach-vm", "web");
      await host.awaitDhcp();
      assertEquals((await examine(host)).failed, []);
      await host.sh(flush);
      await assertFound(host, {
        failed: ["other firewalls"],
        detail: /lacks (a jump to TAPKIT-ACCEPT|the rule "web\/eth0 out)/,
        mend: /run attach-vm web/,
        fixed: PASSES,
      });
    });
  }
});

Deno.test("doctor: chains that drop guests' packets, and what it says to do is right", async (t) => {
  const chain = (type: string, rules: string) => `nft '${type} { chain c { ${rules}; }; }'`;
  const forward = "type filter hook forward priority 10; policy accept;";
  const cases: Readonly<Record<string, string>> = {
    "a last rule that drops": chain("table inet mine", `${forward} tcp dport 22 accept; drop`),
    "a last rule that rejects": chain("table ip mine", `${forward} counter reject`),
    "a jump to one that drops": "nft 'table inet mine { chain last { counter drop; }; " +
      `chain c { ${forward} ct state new jump last; jump last; }; }'`,
    "a policy at prerouting": chain(
      "table inet mine",
      "type filter hook prerouting priority -300; policy drop; iifname lo accept; " +
        'iifname "eth-lan" accept',
    ),
    "a policy of a bridge": chain(
      "table bridge mine",
      "type filter hook forward priority 0; policy drop;",
    ),
  };
  for (const [name, arrange] of Object.entries(cases)) {
    await t.step(name, async () => {
      await using host = await Host.create();
      await host.addLan();
      await host.mustTapkit("attach-vm", "web");
      await host.awaitDhcp();
      await host.sh(arrange);
      await assertFound(host, {
        failed: ["chains that drop"],
        detail: /the nftables chain ".* mine c" drops what .*, guests' packets too/,
        mend: /nft insert rule \S+ mine c iifname "ignite0" accept/,
      });
      const { mend } = (await examine(host)).of("chains that drop");
      for (const [command] of mend.matchAll(/nft insert rule .*? accept/g)) await host.sh(command);
      assertEquals((await examine(host)).failed, []);
    });
  }
  await t.step("one that drops only some packets is well", async () => {
    await using host = await Host.create();
    await host.sh(chain("table inet mine", `${forward} tcp dport 25 drop`));
    assertEquals((await examine(host)).failed, []);
  });
});

Deno.test("doctor: Docker's policy, Docker that ended, and Weave Net that is not there", async () => {
  await using host = await Host.create();
  await host.addLan();
  await using engine = await DockerEngine.start(host, "nft");
  await host.mustTapkit("attach-vm", "web");
  await host.mustTapkit("bridge-legacy", "old");
  await host.awaitDhcp();
  const well = await examine(host);
  assertEquals(well.failed, [], JSON.stringify(well.checks.filter(({ ok }) => !ok)));
  assertMatch(well.of("Docker").detail, /^version \S+ answers; 1 VM on it$/);
  assertMatch(well.of("other firewalls").detail, /Docker's.* drops what is forwarded/);

  await host.writeFile(
    "/etc/cni/net.d/20-weave.conflist",
    '{"cniVersion":"1.0.0","name":"weave","plugins":[{"type":"weave-net"}]}',
  );
  const weave = await examine(host);
  assertEquals(weave.failed, ["plugins", "Weave Net"]);
  assertMatch(weave.of("Weave Net").detail, /no container runs Weave Net on this host/);
  assertMatch(weave.of("Weave Net").mend, /run setup-weave/);
  await host.sh("rm /etc/cni/net.d/20-weave.conflist");

  await host.sh("mv /var/lib/tapkit/vms/old.json /tmp");
  const lost = await examine(host);
  assertMatch(lost.of("Docker").detail, /the container tapkit-old is of a VM that has no record/);
  assertEquals(lost.of("Docker").mend, "run attach-vm old --remove");
  assertEquals(lost.of("stale namespaces").mend, "run attach-vm old --remove");
  await host.sh("mv /tmp/old.json /var/lib/tapkit/vms; docker stop -t 0 tapkit-old");
  const stopped = await examine(host);
  assertMatch(stopped.of("Docker").detail, /the container of VM "old" is exited/);

  await engine.stop();
  const ended = await examine(host);
  assertEquals(ended.of("Docker").ok, false);
  assertMatch(ended.of("Docker").detail, /docker/i);
  assertMatch(ended.of("Docker").mend, /start/);
  assertEquals(ended.of("Weave Net").detail, "was not looked at: Docker failed");
  await engine.resume();
  await host.mustTapkit("bridge-legacy", "old", "--remove");
  await host.mustTapkit("attach-vm", "web", "--remove");
});

Deno.test("doctor: a bridge that a firewall takes what it passes for forwarded", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.writeFile(
    "/etc/cni/net.d/lan.conflist",
    JSON.stringify({
      cniVersion: "1.0.0",
      name: "lan",
      plugins: [{
        ...{ type: "bridge", bridge: "lan0", isGateway: false },
        ipam: { type: "host-local", subnet: "10.61.0.0/24" },
      }],
    }),
  );
  await host.mustTapkit("attach-vm", "web", "--plugins", "builtin");
  await host.awaitDhcp();
  await host.sh("iptables -P FORWARD DROP; sysctl -qw net.bridge.bridge-nf-call-iptables=1");
  await assertFound(host, {
    failed: ["other firewalls"],
    detail: /drops what the bridge "lan0" passes, because net.bridge.bridge-nf-call-iptables is 1/,
    mend: /set that to 0, or let it pass: iptables -I FORWARD -i lan0 -o lan0 -j ACCEPT/,
  });
  await host.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
  assertEquals((await examine(host)).failed, []);
});
