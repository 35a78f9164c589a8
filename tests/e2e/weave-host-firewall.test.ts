/**
 * Weave Net's bridge beside firewalls that drop what is forwarded. Network namespaces on a bridge of
 * its name are what is there beside VMs: its containers, and the VMs of other hosts.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { LIST_IPTABLES } from "../support/coexist.ts";
import { DockerEngine } from "../support/docker.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { serveName } from "../support/http.ts";
import { callLibrary } from "../support/library.ts";
import type { Machine } from "../support/machine.ts";
import { WeaveRouter } from "../support/weave/router.ts";

const HOST = "192.0.2.1";
const PEER = "192.0.2.2";
const BRIDGE = "vm/verbs/bridge.ts";

/** Makes what Weave Net makes, with its rules in one variant of iptables. */
async function makeWeave(host: Host, variant: string): Promise<void> {
  await host.sh(`
    ip link add weave type bridge
    ip link set weave up
    ip address add 10.32.0.1/12 dev weave
    sysctl -qw net.bridge.bridge-nf-call-iptables=1
    mkdir -p /run/www; echo other >/run/www/index.html
    number=5
    for name in other third; do
      ip netns add $name
      ip link add vethwepl$number type veth peer name eth0 netns $name
      ip link set vethwepl$number master weave up
      ip -n $name link set lo up
      ip -n $name link set eth0 up
      ip -n $name address add 10.32.0.$number/12 dev eth0
      ip -n $name route add default via 10.32.0.1
      ip netns exec $name busybox httpd -p 80 -h /run/www
      number=$((number + 1))
    done
    iptables-${variant} -t nat -A POSTROUTING -s 10.32.0.0/12 ! -d 10.32.0.0/12 -j MASQUERADE
    iptables-${variant} -t nat -A PREROUTING -p tcp --dport 9090 -j DNAT --to 10.32.0.5:80`);
}

/** What gets through: out of the bridge, by a translated port into it, and across it. */
async function passing(host: Host, peer: Machine): Promise<string[]> {
  const fetch = async (from: Machine, url: string, netns?: string) => {
    const options = { timeoutSeconds: 1, ...netns === undefined ? {} : { netns } };
    return (await from.fetch(url, options)).status === 200;
  };
  const [out, into, across] = await Promise.all([
    fetch(host, `http://${PEER}:8000/`, "other"),
    fetch(peer, `http://${HOST}:9090/`),
    fetch(host, "http://10.32.0.5/", "third"),
  ]);
  return [...out ? ["out"] : [], ...into ? ["in"] : [], ...across ? ["across"] : []];
}

const ALL = ["out", "in", "across"];

async function allow(host: Host): Promise<void> {
  await callLibrary(host, BRIDGE, `await library.allowBridge("weave")`);
}

async function revoke(host: Host): Promise<void> {
  await callLibrary(host, BRIDGE, `await library.revokeBridge("weave")`);
}

async function problems(host: Host): Promise<string[]> {
  return await callLibrary(
    host,
    BRIDGE,
    `return (await library.checkBridge("weave")).map((one) => one.object + " " + one.problem)`,
  );
}

for (const [docker, weave] of [["nft", "legacy"], ["legacy", "nft"]] as const) {
  Deno.test(`allowBridge: what is on Weave Net's bridge passes Docker's DROP in iptables-${docker}`, async (t) => {
    await using host = await Host.create();
    const peer = await host.addLan();
    await serveName(peer, 8000);
    await using _engine = await DockerEngine.start(host, docker);
    await makeWeave(host, weave);
    const before = await host.sh(LIST_IPTABLES);
    assertEquals(await passing(host, peer), []);
    assertEquals(await problems(host), [
      'bridge "weave" is not let pass the host\'s other firewalls',
    ]);

    await t.step("it passes as a whole", async () => {
      await allow(host);
      assertEquals(await passing(host, peer), ALL);
      assertEquals(await problems(host), []);
      const rules = await host.sh(LIST_IPTABLES);
      await allow(host);
      assertEquals(await host.sh(LIST_IPTABLES), rules);
    });
    await t.step("after the last VM was removed, too", async () => {
      const mapped = ["attach-vm", "web", "--ports", "8080:80"] as const;
      await host.mustTapkit(...mapped);
      await host.mustTapkit("attach-vm", "web", "--remove");
      await host.mustTapkit("attach-vm", "--gc");
      assertEquals(await passing(host, peer), ALL);
      assertEquals(await problems(host), []);
    });
    await t.step("what others took away is named, and comes back with the VMs", async () => {
      await host.sh(`iptables-${docker} -F DOCKER-USER; iptables-${docker} -F TAPKIT-ACCEPT`);
      assertEquals(await passing(host, peer), []);
      assertMatch((await problems(host)).join("\n"), /drops what is forwarded, and lacks/);
      await host.sh(`iptables-${docker} -A DOCKER-USER -j RETURN`);
      await host.mustTapkit("attach-vm", "--restore");
      assertEquals(await passing(host, peer), ALL);
      assertEquals(await problems(host), []);
    });
    await t.step("it goes without a trace", async () => {
      await revoke(host);
      await revoke(host);
      assertEquals(await passing(host, peer), []);
      assertEquals(await host.sh(LIST_IPTABLES), before);
      await host.awaitGone("/var/lib/tapkit");
    });
  });
}

Deno.test("removePolicyRules: the rules of network policies that an earlier start left go, in either variant", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await serveName(peer, 8000);
  await makeWeave(host, "nft");
  await host.sh("sysctl -qw net.ipv4.ip_forward=1");
  assertEquals(await passing(host, peer), ALL);
  // As weave-kube 2.5.2 makes them; the controller, which would fill the chains, is of Kubernetes.
  const note = `-m comment --comment "NOTE: this must go before '-j KUBE-FORWARD'"`;
  const policies = (iptables: string) => `
    ${iptables} -N WEAVE-NPC
    ${iptables} -N WEAVE-NPC-DEFAULT
    ${iptables} -N WEAVE-NPC-EGRESS
    ${iptables} -A WEAVE-NPC -m state --state NEW -j WEAVE-NPC-DEFAULT
    ${iptables} -A INPUT -i weave -j WEAVE-NPC-EGRESS
    ${iptables} -A FORWARD -i weave ${note} -j WEAVE-NPC-EGRESS
    ${iptables} -A FORWARD -o weave ${note} -j WEAVE-NPC
    ${iptables} -A FORWARD -o weave -m state --state NEW -j NFLOG --nflog-group 86
    ${iptables} -A FORWARD -o weave -j DROP`;
  // Others' rules stay.
  const others = "iptables-nft -A FORWARD -o weave -s 198.51.100.7 -j DROP";
  await host.sh(others);
  const own = await host.sh(LIST_IPTABLES);
  for (const variant of ["nft", "legacy"]) {
    await host.sh(policies(`iptables-${variant}`));
    assertEquals(await passing(host, peer), []);
    const found = await callLibrary<{ object: string; problem: string }[]>(
      host,
      "weave/policy-rules.ts",
      "return [library.findPolicyRules(), library.removePolicyRules(), library.findPolicyRules()]",
    );
    const drop = {
      object: `iptables (${variant})`,
      problem: 'has the rule "-A FORWARD -o weave -j DROP", by which no packet reaches a guest',
    };
    assertEquals(found, [[drop], [drop], []] as unknown);
    assertEquals(await passing(host, peer), ALL);
    if (variant === "nft") assertEquals(await host.sh(LIST_IPTABLES), own);
  }
  assertEquals((await host.sh(LIST_IPTABLES)).includes("WEAVE-NPC"), false);
});

Deno.test("allowBridge: turns forwarding on without joining LANs, until nobody needs it; passes a chain of nftables", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await serveName(peer, 8000);
  await host.sh(`
    nft add table inet mine
    nft add chain inet mine forward '{ type filter hook forward priority 0; policy drop; }'
    sysctl -qw net.bridge.bridge-nf-call-iptables=1`);
  const before = await host.snapshot();
  await makeWeave(host, "nft");
  const forwards = async () => (await host.sh("sysctl -n net.ipv4.ip_forward")).trim();
  assertEquals([await forwards(), await passing(host, peer)], ["0", []]);
  await allow(host);
  assertEquals([await forwards(), await passing(host, peer)], ["1", ALL]);
  const apart = async () => (await host.sh("nft list set inet tapkit apart4")).includes("eth-lan");
  assert(await apart());
  for (const state of ["/var/lib/tapkit", "/var/lib/other"]) {
    const options = { env: { TAPKIT_STATE_DIR: state } };
    await host.mustTapkit("attach-vm", "web", options);
    await host.mustTapkit("attach-vm", "web", "--remove", options);
    assertEquals([await forwards(), await passing(host, peer), await apart()], ["1", ALL, true]);
  }
  await host.sh("sysctl -qw net.ipv4.ip_forward=0");
  assertMatch((await problems(host)).join(), /the sysctl net\.ipv4\.ip_forward=1 is not set/);
  await allow(host);
  // While it is there, forwarding is its own, too.
  await host.sh(`
    ip link delete weave
    for name in other third; do ip netns pids $name | xargs kill; ip netns delete $name; done
    nft delete table ip nat`);
  await revoke(host);
  await host.assertRestored(before, { except: [/net\.d/, /\/run\/www/] });
});

Deno.test("setup-weave: the router's control API and metrics are reached neither from guests nor from the LAN", async (t) => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const router = await WeaveRouter.start(host);
  const published = ["--ports", "8080:80"] as const;
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...published);
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  const answers = async (from: Machine, address: string, port: number) =>
    (await from.fetch(`http://${address}:${port}/`, { timeoutSeconds: 1 })).status > 0;
  const METRICS = 6782;
  const CONTROL = 6784;
  const gateway = "10.32.0.1";
  const closed = async (metrics: boolean) => {
    assertEquals(await answers(guest, gateway, METRICS), metrics, "metrics, from a guest");
    assertEquals(await answers(peer, HOST, METRICS), metrics, "metrics, from the LAN");
    for (const port of [METRICS, CONTROL]) assert(await answers(host, "127.0.0.1", port));
    assertEquals(await answers(guest, gateway, CONTROL), false, "control, from a guest");
    assertEquals(await answers(peer, HOST, CONTROL), false, "control, from the LAN");
  };
  await closed(false);
  await t.step("by 127.0.0.1, which published ports open the bridge to, either", async () => {
    assertEquals(await host.sh("sysctl -n net.ipv4.conf.weave.route_localnet"), "1\n");
    // A container of Weave Net's, which has no guard of its own.
    await host.sh(`
      ip netns add other
      ip link add vethwepl5 type veth peer name eth0 netns other
      ip link set vethwepl5 master weave up
      ip -n other link set eth0 up
      ip -n other address add 10.32.0.99/12 dev eth0
      ip netns exec other sysctl -qw net.ipv4.conf.eth0.route_localnet=1
      ip -n other route add 127.0.0.1 via ${gateway} src 10.32.0.99`);
    const reached = async () => {
      const options = { netns: "other", timeoutSeconds: 1 };
      return (await host.fetch(`http://127.0.0.1:${CONTROL}/`, options)).status > 0;
    };
    assertEquals(await reached(), false);
    // It would be, but for what tapkit drops.
    await host.sh("nft delete table inet tapkit; tc qdisc delete dev weave clsact");
    assertEquals(await reached(), true);
    await host.sh("ip netns delete other");
  });
  await t.step("as the documentation's command has them, the metrics are", async () => {
    await host.mustTapkit("attach-vm", "web", "--remove");
    await host.sh("docker rm -f weave; ip link delete weave; ip link delete vethwe-bridge");
    await router.run({ env: { WEAVE_METRICS_ADDR: "" } });
    await router.ready();
    assertEquals(await answers(peer, HOST, METRICS), true);
  });
});

Deno.test("setup-weave --check: names what lets the bridge pass, and setup-weave puts it back; --remove takes it away", async () => {
  await using host = await Host.create();
  await host.addLan();
  await WeaveRouter.setUp(host);
  const check = async () => {
    const { code, json } = await host.tapkit("setup-weave", "--check");
    return [code, json[0].problems.join("\n")] as const;
  };
  assertEquals(await check(), [0, ""]);
  await host.sh("iptables-nft -F TAPKIT-ACCEPT; sysctl -qw net.ipv4.ip_forward=0");
  const [code, problems] = await check();
  assertEquals(code, 3);
  assertMatch(problems, /drops what is forwarded, and lacks the rule "-A TAPKIT-ACCEPT -i weave /);
  assertMatch(problems, /net\.ipv4\.ip_forward=1 is not set/);
  const { done } = await host.mustTapkit("setup-weave");
  assertMatch(JSON.stringify(done), /pass other firewalls/);
  assertEquals(await check(), [0, ""]);
  await host.mustTapkit("setup-weave", "--remove");
  assertEquals((await host.sh(LIST_IPTABLES)).includes("TAPKIT"), false);
  await host.awaitGone("/var/lib/tapkit");
});
