/** Limits of guests: what one takes of the tables that all share, with real packets. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  DUAL_BRIDGE,
  GATEWAY,
  GATEWAY6,
  PUBLISHING_NETWORK,
  startDualGuest,
} from "../support/dual-network.ts";
import type { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { type Machine, ROOT } from "../support/machine.ts";
import type { Running } from "../support/running.ts";
import { processorTime } from "../support/processor-time.ts";

/** Whatever other plugins the machine has. */
const BUILTIN = ["--plugins", "builtin"] as const;

// deno-lint-ignore no-explicit-any -- attach-vm's record.
type Json = any;

/** With more addresses than the host has room for neighbours. */
const WIDE = {
  ...PUBLISHING_NETWORK,
  plugins: [
    {
      ...DUAL_BRIDGE,
      ipam: {
        type: "host-local",
        ranges: [[{ subnet: "10.5.0.0/16" }], [{ subnet: "fd00:5::/64" }]],
      },
    },
    PUBLISHING_NETWORK.plugins[1],
  ],
};

async function hostWithNetwork(): Promise<{ host: Host; peer: Machine }> {
  const host = await Host.create();
  await host.writeFile("/etc/cni/net.d/10-dual.conflist", JSON.stringify(WIDE));
  // Which stays, with routes of its own.
  await host.must("sysctl", ["-qw", "net.ipv6.conf.all.forwarding=1"]);
  return { host, peer: await host.addLan() };
}

async function startGuest(host: Host, record: Json): Promise<NetnsGuest> {
  const guest = await startDualGuest(host, record);
  await guest.sh("echo 1024 65000 >/proc/sys/net/ipv4/ip_local_port_range");
  return guest;
}

async function flood(machine: Machine, ...args: string[]): Promise<Running> {
  const words = ["run", "-A", `${ROOT}/tests/support/flood.ts`, ...args];
  // It would ask for names, which are connections too.
  const env = { DENO_NO_UPDATE_CHECK: "1" };
  const running = machine.spawn(Deno.execPath(), words, { env });
  await running.line((line) => line === "ready");
  return running;
}

/** How many connections a machine tracks. */
async function tracked(machine: Machine): Promise<number> {
  return Number(await machine.must("cat", ["/proc/sys/net/netfilter/nf_conntrack_count"]));
}

/** How often a machine has sent again what opens a connection. */
async function sentAgain(machine: Machine): Promise<number> {
  const text = await machine.must("cat", ["/proc/net/netstat"]);
  const [names, values] = text.split("\n").filter((line) => line.startsWith("TcpExt:"))
    .map((line) => line.split(" "));
  return Number(values![names!.indexOf("TCPSynRetrans")]);
}

async function neighbours(host: Host): Promise<number> {
  const shown = await host.must("sh", ["-c", "ip -4 neigh show; ip -6 neigh show"]);
  return shown.trim().split("\n").length;
}

Deno.test("attach-vm: a web server of 10,000 connections is not hurt by the limits", async () => {
  const { host, peer } = await hostWithNetwork();
  await using _ = host;
  const { json: [record] } = await host.mustTapkit(
    ...["attach-vm", "web", "--ports", "8080:80", ...BUILTIN] as const,
  );
  const web = await startGuest(host, record);
  await flood(web, "serve", "80");
  await peer.sh("echo 1024 65000 >/proc/sys/net/ipv4/ip_local_port_range");
  for (const limits of ["none", "default"] as const) {
    await host.mustTapkit(
      ...["attach-vm", "web", "--max-connections", limits, "--new-connections", limits] as const,
    );
    const before = await sentAgain(peer);
    await using clients = await flood(peer, "open", "192.0.2.1", "8080", "10000");
    const told = await clients.line((line) => line.startsWith("opened"), { timeoutMs: 60_000 });
    assertMatch(told, /^opened 10000 in /, limits);
    assert(await tracked(host) >= 10_000);
    // A limit drops what opens a connection, which is sent again after a second: each of the hundred
    // that are opened at once may have to wait for that a time or two.
    const again = await sentAgain(peer) - before;
    assert(again <= 300, `${again} of 10,000 were sent again, limits ${limits}`);
  }
});

Deno.test("attach-vm: one guest at full speed leaves the others what they need", async () => {
  const { host, peer } = await hostWithNetwork();
  await using _ = host;
  const before = await host.snapshot();
  const { json: [record] } = await host.mustTapkit(
    ...["attach-vm", "mal", "--ports", "8080:80", ...BUILTIN] as const,
  );
  const { json: [other] } = await host.mustTapkit(
    ...["attach-vm", "web", "--ports", "8081:80", ...BUILTIN] as const,
  );
  const [mal, web] = [await startGuest(host, record), await startGuest(host, other)];
  await web.serveHttp(80, "web");
  await flood(mal, "serve", "80");
  // By way of the host, which then looks for who is not there.
  await mal.sh(`
    ip route add 10.5.128.0/17 via ${GATEWAY}
    ip -6 route add fd00:5:0:0:8000::/65 via ${GATEWAY6}`);
  const seconds = 8;
  const started = Date.now();
  const attacks = [
    await flood(mal, "storm", "192.0.2.1", "8080"),
    await flood(mal, "storm", GATEWAY, "8080"),
    await flood(mal, "datagrams", "192.0.2.2/32"),
    await flood(mal, "datagrams", "10.5.128.0/17"),
    await flood(mal, "datagrams", "192.0.2.0/24"),
    await flood(mal, "datagrams", "2001:db8::/64"),
    await flood(mal, "datagrams", "fd00:5:0:0:8000::/65"),
  ];
  let reached = 0;
  let most = 0;
  for (let index = 0; index < 20; index++) {
    const reply = await peer.fetch("http://192.0.2.1:8081/", { timeoutSeconds: 2 });
    if (reply.body === "web") reached++;
    most = Math.max(most, await neighbours(host));
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds / 20));
  }
  const elapsed = (Date.now() - started) / 1000;
  assertEquals(reached, 20, "connections of the LAN to another guest");
  assert(most < 900, `${most} neighbours`);
  // One in 512 of what the kernel tracks a second, sixteen times as many at once.
  const max = Number(await host.must("cat", ["/proc/sys/net/netfilter/nf_conntrack_max"]));
  const flows = await tracked(host);
  const allowed = max / 512 * (16 + elapsed + 2) + 200;
  assert(flows > max / 512 * 16 && flows < allowed, `${flows} tracked of ${allowed}`);
  for (const attack of attacks) await attack[Symbol.asyncDispose]();
  const began = processorTime();
  await host.mustTapkit("attach-vm", "mal", "--remove");
  const took = processorTime().children - began.children;
  assert(took < 1000, `removed with ${took} ms of processor time`);
  assert(await tracked(host) < 1000);
  await host.mustTapkit("attach-vm", "web", "--remove");
  await mal[Symbol.asyncDispose]();
  await web[Symbol.asyncDispose]();
  await host.assertRestored(before);
});

for (const firewall of ["nftables", "iptables"] as const) {
  Deno.test(`attach-vm --max-connections, --new-connections: hold, change, are checked and restored (${firewall})`, async (t) => {
    const { host, peer } = await hostWithNetwork();
    await using _ = host;
    const before = await host.snapshot();
    const attach = (...flags: string[]) => host.mustTapkit("attach-vm", "a", ...flags);
    const { json: [record] } = await attach(
      ...["--ports", "8080:80", "--max-connections", "40", "--firewall", firewall, ...BUILTIN],
    );
    assertEquals([record.maxConnections, record.newConnections], [40, undefined]);
    const a = await startGuest(host, record);
    await flood(a, "serve", "80");
    await flood(peer, "serve", "80");
    const open = async (
      from: Machine,
      address: string,
      port: string,
      count: number,
      timeoutMs = 2500,
    ) => {
      await using clients = await flood(from, "open", address, port, `${count}`);
      const told = await clients.line((line) => line.startsWith("opened"), { timeoutMs })
        .catch(() => "hangs");
      return told.split(" in ")[0];
    };
    for (
      const [from, address, port] of [
        [peer, "192.0.2.1", "8080"],
        [peer, "2001:db8::1", "8080"],
        [a, "192.0.2.2", "80"],
        // What it opens counts whichever the family.
        [a, "2001:db8::2", "80"],
      ] as const
    ) {
      assertEquals(await open(from, address, port, 41), "hangs", address);
      // Closed ones count no more; the kernel forgets some of them at each new one.
      assertEquals(await open(from, address, port, 39, 15_000), "opened 39", address);
    }
    await t.step("with others, each holds at once", async () => {
      // One in sixteen is counted.
      await attach("--max-connections", "1600");
      assertEquals(await open(peer, "192.0.2.1", "8080", 2600), "hangs");
      await attach("--max-connections", "none", "--new-connections", "10/s");
      assertEquals(await open(peer, "192.0.2.1", "8080", 2600, 15_000), "opened 2600");
      assertEquals(await open(a, "192.0.2.2", "80", 120, 15_000), "opened 120");
      assertEquals(await open(a, "192.0.2.2", "80", 200), "hangs");
    });

    await t.step("they are listed, missed where flushed, and restored", async () => {
      const { json: [listed] } = await attach("--list");
      assertEquals([listed.maxConnections, listed.newConnections], ["none", 10]);
      const check = () => host.tapkit("attach-vm", "a", "--check");
      assertEquals((await check()).code, 0);
      await host.must("nft", ["flush", "set", "inet", "tapkit_limits", "openings"]);
      const { code, json: [found] } = await check();
      assertEquals(code, 3);
      assertMatch(found.problems.join(), /limit of a\/eth0 \(openings: .* 10\) is missing/);
      await attach();
      assertEquals((await check()).code, 0);
      await host.must("nft", ["flush", "ruleset"]);
      await host.mustTapkit("attach-vm", "--restore");
      assertEquals((await check()).code, 0);
    });

    await t.step("without any, no table is left", async () => {
      await attach("--new-connections", "none");
      assertEquals((await host.must("nft", ["list", "tables"])).includes("limits"), false);
      const { json: [usual] } = await attach(
        ...["--max-connections", "default", "--new-connections", "default"],
      );
      assertEquals([usual.maxConnections, usual.newConnections], [undefined, undefined]);
    });
    await attach("--remove");
    await a[Symbol.asyncDispose]();
    // iptables keeps its own empty chains.
    if (firewall === "nftables") await host.assertRestored(before);
    assertEquals((await host.must("nft", ["list", "tables"])).includes("tapkit"), false);
  });
}

Deno.test("attach-vm: refuses limits that are none, and touches nothing", async (t) => {
  await using host = await Host.create();
  const before = await host.snapshot();
  for (
    const [flag, value, message] of [
      ["--max-connections", "0", /--max-connections 0 is not a number from 1 to/],
      ["--max-connections", "many", /--max-connections "many" is not a whole number/],
      ["--new-connections", "100/m", /--new-connections "100\/m" is not a whole number/],
      ["--new-connections", "999999999", /--new-connections 999999999 is not a number from 1 to/],
    ] as const
  ) {
    await t.step(`${flag} ${value}`, async () => {
      const { code, stderr } = await host.tapkit("attach-vm", "a", flag, value);
      assertEquals(code, 2, stderr);
      assertMatch(stderr, message);
    });
  }
  await host.assertRestored(before);
});
