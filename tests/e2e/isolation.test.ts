/** Isolated guests, with real packets: what reaches them and whom they reach. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { requireReference, runOnMachine } from "../support/cni-reference.ts";
import {
  DUAL_BRIDGE,
  GATEWAY,
  GATEWAY6,
  PUBLISHING_NETWORK,
  startDualGuest,
} from "../support/dual-network.ts";
import { arp, bytes, ethernet, ipv4, udp } from "../support/frames.ts";
import type { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import type { Machine } from "../support/machine.ts";

const [IP, ARP] = [0x0800, 0x0806];

/** Whatever other plugins the machine has. */
const BUILTIN = ["--plugins", "builtin"] as const;

// deno-lint-ignore no-explicit-any -- attach-vm's record.
type Json = any;

/** A neighbour or a guest, and where it is. */
interface Party {
  readonly machine: Machine;
  readonly netns?: string;
  readonly ip: string;
  readonly ip6: string;
}

async function startGuest(host: Host, record: Json): Promise<Party & { machine: NetnsGuest }> {
  const [ip, ip6] = record.interfaces[0].addresses
    .map(({ address }: { address: string }) => address.split("/")[0]);
  const machine = await startDualGuest(host, record);
  await machine.serveHttp(80, record.vm);
  return { machine, ip, ip6 };
}

/** A container of the reference plugin on the same bridge and from the same pool. */
async function startContainer(host: Host): Promise<Party & { stop(): Promise<void> }> {
  await host.must("ip", ["netns", "add", "box"]);
  const { cniVersion, name } = PUBLISHING_NETWORK;
  // The ruleset is flushed on the way, which masquerading would not bear.
  const config = { cniVersion, name, ...DUAL_BRIDGE, ipMasq: false };
  const run = (command: "ADD" | "DEL") =>
    runOnMachine(host, command, { id: "box", netns: "/run/netns/box" }, config);
  const [ip, ip6] = (await run("ADD")).ips
    .map(({ address }: { address: string }) => address.split("/")[0]);
  const args = ["httpd", "-f", "-p", "80", "-h", "/etc/cni/net.d"];
  const server = host.spawn("busybox", args, { netns: "box" });
  const stop = async () => {
    await server[Symbol.asyncDispose]();
    await run("DEL");
    await host.must("ip", ["netns", "delete", "box"]);
  };
  return { machine: host, netns: "box", ip, ip6, stop };
}

type Client = Pick<Party, "machine" | "netns">;

async function reaches({ machine, netns }: Client, url: string): Promise<boolean> {
  const where = netns === undefined ? {} : { netns };
  return (await machine.fetch(url, { timeoutSeconds: 1, ...where })).status > 0;
}

/** Those of the ways on which a page is had, all tried at once. */
async function reached(
  ways: readonly (readonly [name: string, from: Client, url: string])[],
): Promise<string[]> {
  const answers = await Promise.all(ways.map(([, from, url]) => reaches(from, url)));
  return ways.filter((_, index) => answers[index]).map(([name]) => name);
}

async function withNetwork(host: Host): Promise<void> {
  await host.writeFile(
    "/etc/cni/net.d/10-dual.conflist",
    JSON.stringify(PUBLISHING_NETWORK),
  );
}

async function callBridge(host: Host, value: 0 | 1): Promise<void> {
  for (const table of ["iptables", "ip6tables"]) {
    await host.must("sysctl", ["-qw", `net.bridge.bridge-nf-call-${table}=${value}`]);
  }
}

Deno.test("attach-vm --isolated: nothing to or from others of the network, by any way", async (t) => {
  requireReference();
  await using host = await Host.create();
  const peer = await host.addLan();
  await withNetwork(host);
  // Which stays, with routes of its own.
  await host.must("sysctl", ["-qw", "net.ipv6.conf.all.forwarding=1"]);
  const before = await host.snapshot();
  const { json: [record] } = await host.mustTapkit(
    ...["attach-vm", "a", "--isolated", "--ports", "8080:80", ...BUILTIN] as const,
  );
  const { json: [other] } = await host.mustTapkit("attach-vm", "b", "--no-antispoof", ...BUILTIN);
  assertEquals([record.isolated, other.isolated], [true, undefined]);
  {
    const a = await startGuest(host, record);
    const b = await startGuest(host, other);
    const box = await startContainer(host);
    await peer.serveHttp(80, "lan");
    const mac = record.interfaces[0].mac;
    const linkLocal = async ({ machine, netns }: Party) => {
      const where = netns === undefined ? {} : { netns };
      const shown = await machine.must("ip", ["-j", "-6", "addr", "show", "dev", "eth0"], where);
      const list = JSON.parse(shown)[0].addr_info;
      return list.find(({ scope }: Json) => scope === "link").local;
    };
    const [aLocal, bLocal] = [await linkLocal(a), await linkLocal(b)];
    const boxLocal = await linkLocal(box);
    // What it has just learnt a host keeps for a second, else.
    await host.sh("echo 0 >/proc/sys/net/ipv4/neigh/cni0/locktime");
    /** What b sent has passed the bridge when what it sent after that has; and so to a. */
    const settled = async () => {
      assertEquals(await reaches(b, `http://${box.ip}/`), true);
      assertEquals(await reaches({ machine: host }, `http://${a.ip}/`), true);
    };

    for (const call of [0, 1] as const) {
      await t.step(`with bridge-nf-call-iptables ${call}`, async () => {
        await callBridge(host, call);
        assertEquals(
          await reached([
            ["b to a", b, `http://${a.ip}/`],
            ["a to b", a, `http://${b.ip}/`],
            ["b to a over IPv6", b, `http://[${a.ip6}]/`],
            ["a to b over IPv6", a, `http://[${b.ip6}]/`],
            ["b to a, link-local", b, `http://[${aLocal}%eth0]/`],
            ["a to b, link-local", a, `http://[${bLocal}%eth0]/`],
            ["the container to a", box, `http://${a.ip}/`],
            ["a to the container", a, `http://${box.ip}/`],
            ["b to a by its port", b, `http://${GATEWAY}:8080/`],
            ["b to a by the host's LAN address", b, "http://192.0.2.1:8080/"],
          ]),
          [],
        );
        const open = [
          ["b to the container", b, `http://${box.ip}/`],
          ["b to the container, link-local", b, `http://[${boxLocal}%eth0]/`],
          ["the container to b", box, `http://${b.ip}/`],
          ["the LAN to a's port", { machine: peer }, "http://192.0.2.1:8080/"],
          ["the host to a's port", { machine: host }, "http://127.0.0.1:8080/"],
          ["the host to a", { machine: host }, `http://${a.ip}/`],
          ["the host to a over IPv6", { machine: host }, `http://[${a.ip6}]/`],
          ["a to the LAN", a, "http://192.0.2.2/"],
          ["a to itself by its port", a, `http://${GATEWAY}:8080/`],
        ] as const;
        assertEquals(await reached(open), open.map(([name]) => name));

        // Routed back: each asks the host to carry its packets.
        for (const [from, to] of [[a, b], [b, a]] as const) {
          await from.machine.sh(`
            ip route add ${to.ip}/32 via ${GATEWAY}
            ip -6 route add ${to.ip6}/128 via ${GATEWAY6}`);
        }
        assertEquals(
          await reached([
            ["a to b, routed back", a, `http://${b.ip}/`],
            ["b to a, routed back", b, `http://${a.ip}/`],
            ["a to b over IPv6, routed back", a, `http://[${b.ip6}]/`],
            ["b to a over IPv6, routed back", b, `http://[${a.ip6}]/`],
          ]),
          [],
        );
        for (const [from, to] of [[a, b], [b, a]] as const) {
          await from.machine.sh(`
            ip route del ${to.ip}/32 via ${GATEWAY}
            ip -6 route del ${to.ip6}/128 via ${GATEWAY6}`);
        }

        // Forged MACs: the gateway's, and the isolated guest's own.
        const gatewayMac = JSON.parse(await host.must("ip", ["-j", "link", "show", "cni0"]))[0];
        const payload = udp({ source: 5000, destination: 5001 }, 40);
        for (const from of [gatewayMac.address, mac]) {
          const packet = ipv4(payload, { source: GATEWAY, destination: a.ip });
          const frame = bytes(ethernet(IP, { from, to: mac }), packet);
          const seen = await a.machine.sniff(async () => {
            await b.machine.sendFrame(frame);
            await settled();
          });
          const hex = frame.toHex();
          assert(!seen.some(({ bytes }) => bytes.toHex() === hex), `forged ${from}`);
        }
        const claim = arp({
          senderMac: other.interfaces[0].mac,
          senderIp: a.ip,
          targetMac: gatewayMac.address,
          targetIp: GATEWAY,
          operation: 2,
        });
        const macs = { from: other.interfaces[0].mac, to: gatewayMac.address };
        await b.machine.sendFrame(bytes(ethernet(ARP, macs), claim, new Uint8Array(18)));
        await settled();
        // Neither the bridge nor the host has learnt that the guest is elsewhere.
        assertEquals(await reaches({ machine: host }, `http://${a.ip}/`), true);
      });
    }

    await t.step("--check, flush and repair, changes while it runs", async () => {
      const check = () => host.tapkit("attach-vm", "a", "--check");
      assertEquals((await check()).code, 0);
      await host.must("nft", ["delete", "table", "bridge", "tapkit_policy"]);
      const { code, json: [found] } = await check();
      assertEquals(code, 3);
      assertMatch(found.problems.join(), /nftables table "bridge tapkit_policy" is missing/);
      assertMatch(found.problems.join(), /isolation of a\/eth0 .* is missing/);
      await host.mustTapkit("attach-vm", "a");
      assertEquals((await check()).code, 0);
      await host.must("nft", ["flush", "ruleset"]);
      assertEquals((await check()).code, 3);
      await host.mustTapkit("attach-vm", "a");
      await host.mustTapkit("attach-vm", "b");
      assertEquals((await check()).code, 0);
      assertEquals(await reaches(b, `http://${a.ip}/`), false);

      const { json: [open] } = await host.mustTapkit("attach-vm", "a", "--no-isolated");
      assertEquals(open.isolated, undefined);
      assertEquals(await reaches(b, `http://${a.ip}/`), true);
      assertEquals((await host.must("nft", ["list", "tables"])).includes("policy"), false);
      await host.mustTapkit("attach-vm", "a", "--isolated");
      assertEquals(await reaches(b, `http://${a.ip}/`), false);
      assertEquals((await check()).code, 0);
    });

    await t.step("--restore brings it back isolated", async () => {
      await host.must("nft", ["flush", "ruleset"]);
      await host.mustTapkit("attach-vm", "--restore");
      assertEquals((await host.tapkit("attach-vm", "a", "--check")).code, 0);
      assertEquals(await reaches(a, `http://${b.ip}/`), false);
    });
    await box.stop();
  }
  await host.mustTapkit("attach-vm", "a", "b", "--remove");
  assertEquals((await host.must("nft", ["list", "tables"])).includes("tapkit"), false);
  await host.assertRestored(before);
});

Deno.test("attach-vm --isolated, --deny-egress: on a bridge of the reference plugin", async (t) => {
  requireReference();
  await using host = await Host.create();
  const peer = await host.addLan();
  await withNetwork(host);
  await host.must("sysctl", ["-qw", "net.ipv6.conf.all.forwarding=1"]);
  const exec = ["--plugins", "exec"] as const;
  const { json: [record] } = await host.mustTapkit(
    ...["attach-vm", "a", "--isolated", "--deny-egress", "192.0.2.2/32", ...exec] as const,
  );
  const { json: [other] } = await host.mustTapkit("attach-vm", "b", ...exec);
  const a = await startGuest(host, record);
  const b = await startGuest(host, other);
  await peer.serveHttp(80, "lan");
  for (const call of [0, 1] as const) {
    await t.step(`with bridge-nf-call-iptables ${call}`, async () => {
      await callBridge(host, call);
      const ways = [
        ["a to b", a, `http://${b.ip}/`],
        ["b to a", b, `http://${a.ip}/`],
        ["a to b over IPv6", a, `http://[${b.ip6}]/`],
        ["b to a over IPv6", b, `http://[${a.ip6}]/`],
        ["the host to a", { machine: host }, `http://${a.ip}/`],
        ["b to the LAN", b, "http://192.0.2.2/"],
        ["a to the LAN", a, "http://192.0.2.2/"],
      ] as const;
      const open = ["the host to a", "b to the LAN"];
      assertEquals(await reached(ways), open, `bridge-nf-call ${call}`);
    });
  }
  assertEquals((await host.tapkit("attach-vm", "a", "--check")).code, 0);
  await host.mustTapkit("attach-vm", "a", "--no-isolated");
  assertEquals(await reaches(b, `http://${a.ip}/`), true);
  await host.mustTapkit("attach-vm", "a", "b", "--remove");
  assertEquals((await host.must("nft", ["list", "tables"])).includes("tapkit"), false);
});

Deno.test("attach-vm --isolated: on a bridge whose MAC would change with its ports", async () => {
  await using host = await Host.create();
  await withNetwork(host);
  await host.sh(`
    ip link add cni0 type bridge
    ip link set cni0 up
    ip addr add ${GATEWAY}/24 dev cni0
    ip addr add ${GATEWAY6}/64 dev cni0 nodad`);
  const { json: [record] } = await host.mustTapkit("attach-vm", "a", "--isolated", ...BUILTIN);
  const a = await startGuest(host, record);
  assertEquals(await reaches({ machine: host }, `http://${a.ip}/`), true);
  await host.sh(`
    ip link add low type veth peer name high
    ip link set low address 00:00:00:00:00:02
    ip link set low master cni0 up
    ip link set high up`);
  assertEquals(await reaches({ machine: host }, `http://${a.ip}/`), true);
  assertEquals((await host.tapkit("attach-vm", "a", "--check")).code, 0);
  // Where somebody gives the bridge another one, the guards follow when they are mended.
  await host.must("ip", ["link", "set", "cni0", "address", "02:00:00:00:00:77"]);
  const { code, json: [found] } = await host.tapkit("attach-vm", "a", "--check");
  assertEquals(code, 3);
  assertMatch(found.problems.join(), /the guard of "vm_eth0" is not that of the record/);
  await host.mustTapkit("attach-vm", "a");
  assertEquals((await host.tapkit("attach-vm", "a", "--check")).code, 0);
  await a.machine.must("ip", ["neigh", "flush", "dev", "eth0"]);
  assertEquals(await reaches({ machine: host }, `http://${a.ip}/`), true);
  await host.mustTapkit("attach-vm", "a", "--remove");
});

Deno.test("attach-vm --isolated: with the rest of the firewall in iptables", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await withNetwork(host);
  await host.must("sysctl", ["-qw", "net.ipv6.conf.all.forwarding=1"]);
  const { json: [record] } = await host.mustTapkit(
    ...["attach-vm", "a", "--isolated", "--ports", "8080:80", "--firewall", "iptables"] as const,
    ...BUILTIN,
  );
  const { json: [other] } = await host.mustTapkit(
    ...["attach-vm", "b", "--firewall", "iptables", ...BUILTIN] as const,
  );
  const a = await startGuest(host, record);
  const b = await startGuest(host, other);
  for (const call of [0, 1] as const) {
    await callBridge(host, call);
    const ways = [
      ["b to a", b, `http://${a.ip}/`],
      ["a to b over IPv6", a, `http://[${b.ip6}]/`],
      ["b to a by its port", b, `http://${GATEWAY}:8080/`],
      ["the LAN to a's port", { machine: peer }, "http://192.0.2.1:8080/"],
    ] as const;
    assertEquals(await reached(ways), ["the LAN to a's port"], `bridge-nf-call ${call}`);
  }
  assertEquals((await host.tapkit("attach-vm", "a", "--check")).code, 0);
  await host.mustTapkit("attach-vm", "a", "--no-isolated");
  assertEquals(await reaches(b, `http://${a.ip}/`), true);
  await host.mustTapkit("attach-vm", "a", "b", "--remove");
  assertEquals((await host.must("nft", ["list", "tables"])).includes("tapkit_policy"), false);
});
