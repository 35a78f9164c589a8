/** Guests that a LAN reaches by a route, with real packets. */

import { assertEquals, assertMatch } from "@std/assert";
import { GATEWAY, PUBLISHING_NETWORK, startDualGuest } from "../support/dual-network.ts";
import type { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";

/** Whatever other plugins the machine has. */
const BUILTIN = ["--plugins", "builtin"] as const;

// deno-lint-ignore no-explicit-any -- attach-vm's record.
type Json = any;

/** busybox writes `[::ffff:192.0.2.1]`. */
const bare = (text: string) => text.replaceAll(/[[\]]|::ffff:/g, "");

async function startGuest(host: Host, record: Json): Promise<NetnsGuest> {
  const guest = await startDualGuest(host, record);
  await guest.serveHttp(80, record.vm);
  return guest;
}

for (const firewall of ["nftables", "iptables"] as const) {
  Deno.test(`attach-vm --reachable-from: a LAN with a route reaches the guest, and is reached (${firewall})`, async (t) => {
    await using host = await Host.create();
    await host.writeFile("/etc/cni/net.d/10-dual.conflist", JSON.stringify(PUBLISHING_NETWORK));
    // Which stays, with routes of its own.
    await host.must("sysctl", ["-qw", "net.ipv6.conf.all.forwarding=1"]);
    const peer = await host.addLan();
    await peer.serveHttp(80, "lan");
    const attach = (...flags: string[]) => host.mustTapkit("attach-vm", "a", ...flags);
    const { json: [record] } = await attach(
      "--ports",
      "8080:80",
      "--firewall",
      firewall,
      ...BUILTIN,
    );
    const a = await startGuest(host, record);
    const [ip, ip6] = record.interfaces[0].addresses
      .map(({ address }: Json) => address.split("/")[0]);

    /** What reaches the guest of the LAN, and under which address the LAN is reached. */
    const seen = async () => {
      const [by4, by6, from4, from6, port, own] = await Promise.all([
        peer.fetch(`http://${ip}/`, { timeoutSeconds: 1 }),
        peer.fetch(`http://[${ip6}]/`, { timeoutSeconds: 1 }),
        a.fetch("http://192.0.2.2/cgi-bin/client", { timeoutSeconds: 1 }),
        a.fetch("http://[2001:db8::2]/cgi-bin/client", { timeoutSeconds: 1 }),
        peer.fetch("http://192.0.2.1:8080/", { timeoutSeconds: 1 }),
        a.fetch(`http://${GATEWAY}:8080/`, { timeoutSeconds: 1 }),
      ]);
      assertEquals([port.body, own.body], ["a", "a"], "by the published port");
      return [by4.body, by6.body, bare(from4.body), bare(from6.body)];
    };
    const [closed4, open4] = [["", "192.0.2.1"], ["a", ip]] as const;
    const [closed6, open6] = [["", "2001:db8::1"], ["a", ip6]] as const;
    const expected = (
      four: readonly string[],
      six: readonly string[],
    ) => [four[0], six[0], four[1], six[1]];
    const cases: readonly (readonly [prefixes: string[], four: boolean, six: boolean])[] = [
      [["192.0.2.0/24", "2001:db8::/64"], true, true],
      [["192.0.2.0/25", "192.0.2.2/32"], true, false],
      [["192.0.2.128/25", "2001:db8::2"], false, true],
      [["0.0.0.0/0", "::/0"], true, true],
      [["none"], false, false],
    ];
    for (const policy of ["ACCEPT", "DROP"]) {
      for (const program of ["iptables", "ip6tables"]) {
        await host.must(program, ["-P", "FORWARD", policy]);
      }
      await attach();
      assertEquals(await seen(), expected(closed4, closed6), policy);
      for (const [prefixes, four, six] of cases) {
        await t.step(`${prefixes}, FORWARD ${policy}`, async () => {
          await attach(...prefixes.flatMap((prefix) => ["--reachable-from", prefix]));
          const wanted = expected(four ? open4 : closed4, six ? open6 : closed6);
          assertEquals(await seen(), wanted, `${prefixes}, FORWARD ${policy}`);
          const { json: [checked] } = await host.tapkit("attach-vm", "a", "--check");
          assertEquals(checked.problems, [], `${prefixes}`);
        });
      }
    }

    await t.step("what is flushed is missed, and restored", async () => {
      const { json: [told] } = await attach("--reachable-from", "192.0.2.0/24");
      assertEquals(told.reachableFrom, ["192.0.2.0/24"]);
      await host.must("sh", [
        "-c",
        firewall === "nftables"
          ? "nft flush set inet tapkit reachable4"
          : "iptables -t filter -F TAPKIT-FORWARD",
      ]);
      const { code, json: [found] } = await host.tapkit("attach-vm", "a", "--check");
      assertEquals(code, 3);
      assertMatch(found.problems.join(), /what lets 192\.0\.2\.0\/24 reach the guest 10\.5\.0\.2/);
      await host.mustTapkit("attach-vm", "--restore");
      assertEquals(await seen(), expected(open4, closed6), "restored");
    });
    await attach("--remove");
    const rules = await host.must("sh", ["-c", "iptables-save; nft list tables"]);
    assertEquals(/tapkit/i.test(rules), false, rules);
  });
}

Deno.test("attach-vm --reachable-from: refuses what is no prefix, and touches nothing", async () => {
  await using host = await Host.create();
  const before = await host.snapshot();
  for (const flags of [["10.0.0.0/33"], ["lan"], ["none", "--reachable-from", "10.0.0.0/8"]]) {
    const outcome = await host.tapkit("attach-vm", "a", "--reachable-from", ...flags);
    assertEquals(outcome.code, 2, outcome.stderr);
  }
  await host.assertRestored(before);
});
