/** What docs/security.md says to do, done. */

import { assert, assertEquals } from "@std/assert";
import { startFirewalld } from "../support/coexist.ts";
import { GATEWAY, GATEWAY6, PUBLISHING_NETWORK, startDualGuest } from "../support/dual-network.ts";
import type { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { type Machine, ROOT } from "../support/machine.ts";

/** A block of the document, about the links and addresses of the tests. */
async function recipe(language: string): Promise<string> {
  const text = await Deno.readTextFile(`${ROOT}/docs/security.md`);
  const block = text.replaceAll(/^ {2}(?=```|.*\n)/gm, "").split(`\`\`\`${language}\n`)[1]
    ?.split("```")[0];
  assert(block !== undefined, `docs/security.md has no block of ${language}`);
  return block.replaceAll("ignite0", "cni0").replaceAll('"eth0"', '"eth-lan"');
}

// deno-lint-ignore no-explicit-any -- attach-vm's record.
type Json = any;

async function hostWithNetwork(): Promise<{ host: Host; peer: Machine }> {
  const host = await Host.create();
  await host.writeFile("/etc/cni/net.d/10-dual.conflist", JSON.stringify(PUBLISHING_NETWORK));
  await host.must("sysctl", ["-qw", "net.ipv6.conf.all.forwarding=1"]);
  const peer = await host.addLan();
  await peer.serveHttp(80, "lan");
  await host.serveHttp(22, "host");
  return { host, peer };
}

async function attachGuest(host: Host): Promise<NetnsGuest> {
  const flags = ["--ports", "8080:80", "--open-firewall", "--plugins", "builtin"];
  const { json: [record] } = await host.mustTapkit("attach-vm", "a", ...flags);
  const guest = await startDualGuest(host, record);
  await guest.serveHttp(80, "a");
  return guest;
}

/** Which of the host's addresses the guest reaches a service by; all else has to work. */
async function reached(host: Host, peer: Machine, guest: NetnsGuest): Promise<string[]> {
  const shown = await host.must("ip", ["-j", "-6", "addr", "show", "dev", "cni0", "scope", "link"]);
  const { local } = JSON.parse(shown)[0].addr_info.find(({ local }: Json) => local);
  const status = async (from: Machine, url: string) =>
    (await from.fetch(url, { timeoutSeconds: 2 })).status;
  const others = await Promise.all([
    status(guest, "http://192.0.2.2/"),
    status(guest, "http://[2001:db8::2]/"),
    status(peer, "http://192.0.2.1:8080/"),
    status(peer, "http://[2001:db8::1]:8080/"),
    status(guest, `http://${GATEWAY}:8080/`),
    status(host, "http://127.0.0.1:8080/"),
  ]);
  assertEquals(others, [200, 200, 200, 200, 200, 200], "the LAN and published ports");
  const names = [GATEWAY, "192.0.2.1", `[${GATEWAY6}]`, "[2001:db8::1]", `[${local}%eth0]`];
  const replies = await Promise.all(names.map((name) => status(guest, `http://${name}:22/`)));
  return names.filter((_, index) => replies[index]! > 0);
}

Deno.test("docs/security.md: nftables keeps guests from the host's services", async () => {
  const { host, peer } = await hostWithNetwork();
  await using _ = host;
  const guest = await attachGuest(host);
  assertEquals((await reached(host, peer, guest)).length, 5, "without");
  await host.must("nft", ["-f", "-"], { stdin: await recipe("nft") });
  assertEquals(await reached(host, peer, guest), []);
  assertEquals((await guest.dhcp()).ip, "10.5.0.2");
});

Deno.test("docs/security.md: ufw keeps guests from the host's services", async () => {
  const { host, peer } = await hostWithNetwork();
  await using _ = host;
  await host.sh("ufw allow 22/tcp; ufw --force enable");
  const guest = await attachGuest(host);
  assert((await reached(host, peer, guest)).length > 0, "without");
  await host.sh(await recipe("ufw"));
  assertEquals(await reached(host, peer, guest), []);
  assertEquals((await guest.dhcp()).ip, "10.5.0.2");
});

Deno.test("docs/security.md: firewalld keeps guests from the host's services", async () => {
  const { host, peer } = await hostWithNetwork();
  await using _ = host;
  await startFirewalld(host);
  const guest = await attachGuest(host);
  assert((await reached(host, peer, guest)).length > 0, "without");
  await host.sh(await recipe("firewalld"));
  // A reload takes others' rules away; attaching again brings them back.
  await host.mustTapkit("attach-vm", "a");
  assertEquals(await reached(host, peer, guest), []);
  assertEquals((await guest.dhcp()).ip, "10.5.0.2");
});

Deno.test("docs/security.md: a port that is bound to an address is closed to other links", async () => {
  const { host, peer } = await hostWithNetwork();
  await using _ = host;
  await attachGuest(host);
  await host.sh(`
    ip netns add other
    ip link add side type veth peer name eth0 netns other
    ip addr add 198.51.100.1/24 dev side; ip link set side up
    ip netns exec other ip link set eth0 up
    ip netns exec other ip addr add 198.51.100.2/24 dev eth0
    ip netns exec other ip route add default via 198.51.100.1`);
  await host.mustTapkit("map-port", "a", "192.0.2.1:8082:80");
  const bySide = async () =>
    (await host.fetch("http://192.0.2.1:8082/", { netns: "other", timeoutSeconds: 2 })).body;
  assertEquals(await bySide(), "a", "without");
  await host.must("nft", ["-f", "-"], { stdin: await recipe("nft-link") });
  assertEquals(await bySide(), "");
  assertEquals((await peer.fetch("http://192.0.2.1:8082/")).body, "a");
});
