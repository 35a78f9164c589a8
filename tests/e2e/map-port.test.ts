/**
 * map-port against real packets: added, dropped, listed and checked while VMs run.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { DockerEngine } from "../support/docker.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";

const mapping = (hostPort: number, vmPort: number, hostIP = "0.0.0.0", more = {}) => ({
  hostIP,
  hostPort,
  vmPort,
  protocol: "tcp",
  ...more,
});

Deno.test("map-port: adds and drops, twice as once, and nothing is left", async (t) => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const before = await host.snapshot();
  const { json: [web] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  await using guest = await NetnsGuest.start(host, web);
  await guest.dhcp();
  await guest.serveHttp(80, "page");

  const added = await host.mustTapkit("map-port", "web", "8081:80", "127.0.0.1:8082:80");
  const all = [mapping(8080, 80), mapping(8081, 80), mapping(8082, 80, "127.0.0.1")];
  await t.step("what is added is reached from everywhere", async () => {
    assertEquals(added.json, [{ vm: "web", ports: all }]);
    assertEquals((await peer.fetch("http://192.0.2.1:8081/")).body, "page");
    assertEquals((await host.fetch("http://127.0.0.1:8082/")).body, "page");
    assertEquals((await guest.fetch("http://192.0.2.1:8081/")).body, "page", "hairpin");
  });

  await t.step("the same again changes nothing", async () => {
    const record = await host.readFile("/var/lib/tapkit/vms/web.json");
    assertEquals(
      (await host.mustTapkit("map-port", "web", "8081:80", "127.0.0.1:8082:80")).json,
      added.json,
    );
    assertEquals(await host.readFile("/var/lib/tapkit/vms/web.json"), record);
    assertEquals((await host.mustTapkit("map-port", "web", "--list")).json, added.json);
    assertEquals((await host.mustTapkit("map-port", "--list")).json, added.json);
    assertEquals((await host.mustTapkit("attach-vm", "--list")).json[0].ports, all);
    const check = await host.tapkit("map-port", "web", "--check");
    assertEquals([check.code, check.json], [0, [{ vm: "web", problems: [] }]], check.stderr);
  });

  await t.step("what is dropped is closed, and stays so", async () => {
    for (let round = 0; round < 2; round++) {
      const dropped = await host.mustTapkit("map-port", "web", "--remove", "8081:80", "9999:1");
      assertEquals(dropped.json[0].ports, [mapping(8080, 80), mapping(8082, 80, "127.0.0.1")]);
    }
    assert((await peer.run("curl", ["-sm2", "http://192.0.2.1:8081/"])).code !== 0);
    // attach-vm's own go in the same way, and stay away.
    const own = await host.mustTapkit("map-port", "web", "--remove", "8080:80");
    assertEquals(own.json[0].ports, [mapping(8082, 80, "127.0.0.1")]);
    assertEquals((await host.mustTapkit("attach-vm", "web")).json[0].ports, own.json[0].ports);
  });

  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("map-port: its mappings and attach-vm's are kept apart", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const attach = async (...args: string[]) =>
    (await host.mustTapkit("attach-vm", "web", ...args)).json[0].ports;
  const map = async (...args: string[]) =>
    (await host.mustTapkit("map-port", "web", ...args)).json[0].ports;
  await t.step("--ports leaves what map-port has", async () => {
    await attach("--ports", "8080:80");
    await map("8081:80");
    assertEquals(await attach("--ports", "8082:80"), [mapping(8082, 80), mapping(8081, 80)]);
    assertEquals(await attach("--ports", "none"), [mapping(8081, 80)]);
    assertEquals(await attach(), [mapping(8081, 80)]);
  });

  await t.step("a mapping of both stays until neither wants it", async () => {
    assertEquals(await attach("--ports", "8081:80"), [mapping(8081, 80)]);
    assertEquals(await attach("--ports", "none"), [mapping(8081, 80)]);
    await attach("--ports", "8083:80");
    assertEquals(await map("8083:80"), [mapping(8083, 80), mapping(8081, 80)]);
    assertEquals(await attach("--ports", "none"), [mapping(8081, 80), mapping(8083, 80)]);
  });
  await t.step("one of its own, of another port of the VM, is refused", async () => {
    const refused = await host.tapkit("attach-vm", "web", "--ports", "8081:81");
    assertEquals(refused.code, 1);
    assertMatch(
      refused.stderr,
      /host port 8081\/tcp is already mapped to VM "web": .* map-port web --remove 8081:80/,
    );
  });

  const ports = await attach();
  await t.step("a flush is missed, and mended by either", async () => {
    await host.must("nft", ["flush", "ruleset"]);
    const missing = await host.tapkit("map-port", "web", "--check");
    assertEquals(missing.code, 3);
    assertMatch(missing.json[0].problems.join(), /8081\/tcp is missing from nftables/);
    assertEquals(await map("8081:80"), ports);
    assertEquals((await host.tapkit("map-port", "web", "--check")).code, 0);
    await host.must("nft", ["flush", "ruleset"]);
    assertEquals(await attach(), ports);
    assertEquals((await host.tapkit("map-port", "web", "--check")).code, 0);
  });
  await t.step("what is made anew has all that it had", async () => {
    await host.must("ip", ["-n", "tapkit-web", "link", "delete", "eth0"]);
    assertEquals(await attach(), ports);
    assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
    assertEquals((await host.mustTapkit("attach-vm", "--restore")).json[0].ports, ports);
  });
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("map-port: ranges come and go in part, all or nothing", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "other");
  const map = (...args: string[]) => host.tapkit("map-port", ...args);
  const { json: [{ ports }] } = await map("web", "9000-9009:100-109/udp");
  assertEquals(ports, [mapping(9000, 100, "0.0.0.0", { protocol: "udp", range: 10 })]);
  assertEquals((await map("web", "9003:103/udp", "--remove")).json[0].ports, [
    mapping(9000, 100, "0.0.0.0", { protocol: "udp", range: 3 }),
    mapping(9004, 104, "0.0.0.0", { protocol: "udp", range: 6 }),
  ]);
  await map("other", "9003:53/udp");
  const half = await map("web", "9000-9009:100-109/udp");
  assertEquals([half.code, half.stdout], [1, ""]);
  assertMatch(half.stderr, /9003\/udp is already mapped to VM "other": .*--remove 9003:53\/udp\n/);
  assertEquals((await map("web", "--list")).json[0].ports.length, 2);
  await map("other", "9003:53/udp", "--remove");
  const whole = await map("web", "9000-9009:100-109/udp");
  assertEquals(whole.json[0].ports.length, 3);
  assertEquals((await map("web", "--check")).code, 0);
  assertEquals((await map("web", "9000-9009:100-109/udp", "--remove")).json[0].ports, []);
});

Deno.test("map-port: 0 chooses a host port, and the same one when asked again", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--ports", "0:80");
  const first = (await host.mustTapkit("map-port", "web", "0:80", "0:80/udp")).json[0].ports;
  assertEquals(first.length, 3);
  assertEquals(new Set(first.map(JSON.stringify)).size, 3);
  assertEquals((await host.mustTapkit("map-port", "web", "0:80/udp", "0:80")).json[0].ports, first);
  const two = (await host.mustTapkit("map-port", "web", "0:80", "0:80")).json[0].ports;
  assertEquals(two.length, 4);
  assertEquals(two.slice(0, 3), first);
});

Deno.test("map-port: twenty at once for one port have one winner", async () => {
  await using host = await Host.create();
  await host.addLan();
  const names = Array.from({ length: 20 }, (_, index) => `vm${index}`);
  await host.mustTapkit("attach-vm", ...names);
  const outcomes = await Promise.all(
    names.map((name) => host.tapkit("map-port", name, "8080:80")),
  );
  const winners = outcomes.filter(({ code }) => code === 0);
  assertEquals(winners.length, 1);
  const winner = winners[0]!.json[0].vm;
  for (const { code, stderr } of outcomes) {
    if (code === 0) continue;
    assertEquals(code, 1);
    assertMatch(stderr, new RegExp(`8080/tcp is already mapped to VM "${winner}": `));
  }
  const held = (await host.mustTapkit("map-port", "--list")).json
    .filter(({ ports }) => ports.length > 0);
  assertEquals(held, [{ vm: winner, ports: [mapping(8080, 80)] }]);
});

Deno.test("map-port: bad input is refused, and nothing is touched", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  const before = await host.snapshot();
  const cases: readonly (readonly string[])[] = [
    ["web"],
    ["web", "--remove"],
    ["web", "8081"],
    ["web", "8081:0"],
    ["web", "0:80", "--remove"],
    ["web", "0-1:80-81"],
    ["web", "65536:80"],
    ["web", "80:65536"],
    ["web", "-1:80"],
    ["web", "9001-9000:1-2"],
    ["web", "9000-9001:1-3"],
    ["web", "9000-9005:1-6", "9005:80"],
    ["web", "9000:80", "127.0.0.1:9000:81"],
    ["web", "9000:80/icmp"],
    ["web", "9000:80/"],
    ["web", "[fe80::1%eth0]:9000:80"],
    ["web", "[::1]:9000:80"],
    ["web", "[::]:9000:80"],
    ["nobody", "9000:80"],
    ["nobody", "9000:80", "--remove"],
    ["nobody", "--list"],
    ["nobody", "--check"],
    ["we/b", "9000:80"],
    ["web", "9000:80", "--list"],
    ["web", "--list", "--check"],
    ["--to", "192.0.2.2"],
    ["--to", "192.0.2.2", "9000:65536"],
    ["--to", "127.0.0.1", "9000:80"],
    ["--to", "::1", "[::]:9000:80"],
    ["--to", "fe80::1%eth-lan", "[::]:9000:80"],
    ["--to", "224.0.0.1", "9000:80"],
    ["--to", "0.0.0.0", "9000:80"],
    ["--to", "peer", "9000:80"],
    ["--to", "192.0.2.2", "[::]:9000:80"],
    ["--to", "172.18.0.2", "9000:80"],
    [],
  ];
  for (const args of cases) {
    await t.step(args.join(" ") || "nothing", async () => {
      const { code, stdout, stderr } = await host.tapkit("map-port", ...args);
      assertEquals([code, stdout], [2, ""], `${args.join(" ")}: ${stderr}`);
      assertMatch(stderr, /^map-port: [^\n]+\n$/);
    });
  }
  await host.assertRestored(before, {
    strict: true,
    except: [/serve-dhcp/, /fe80:/, /ff00::/],
  });
});

Deno.test("map-port --to: from everywhere to an address tapkit did not attach", async (t) => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await peer.sh(
    "ip address add 192.0.2.3/24 dev $(ip -o -4 address | sed -n 's/^.: \\(e[^ ]*\\).*/\\1/p')",
  );
  await host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1");
  const before = await host.snapshot();
  await peer.serveHttp(80, "there");
  const map = (...args: string[]) => host.mustTapkit("map-port", "--to", ...args);
  const { json } = await map("192.0.2.2", "8080:80", "127.0.0.1:8081:80");
  assertEquals(json, [
    { to: "192.0.2.2", ports: [mapping(8080, 80), mapping(8081, 80, "127.0.0.1")] },
  ]);
  assertEquals((await map("192.0.2.2", "8080:80")).json, json);
  assertEquals((await map("192.0.2.2", "--list")).json, json);
  assertEquals((await host.mustTapkit("map-port", "--list")).json, json);
  await map("2001:db8::2", "8080:80");
  await t.step("it is reached from everywhere", async () => {
    for (
      const url of ["127.0.0.1:8080", "127.0.0.1:8081", "192.0.2.1:8080", "[2001:db8::1]:8080"]
    ) {
      assertEquals((await host.fetch(`http://${url}/`)).body, "there", url);
    }
    for (const url of ["192.0.2.1:8080", "[2001:db8::1]:8080"]) {
      assertEquals((await peer.fetch(`http://${url}/`)).body, "there", url);
    }
  });
  await t.step("a VM is refused what it has", async () => {
    const taken = await host.tapkit("attach-vm", "web", "--ports", "8080:80");
    assertEquals(taken.code, 1);
    assertMatch(
      taken.stderr,
      /8080\/tcp is already mapped to address 192\.0\.2\.2: .* map-port --to 192\.0\.2\.2 --remove 8080:80/,
    );
  });

  await t.step("--restore mends what was flushed", async () => {
    await host.must("nft", ["flush", "ruleset"]);
    await host.sh("sysctl -qw net.ipv4.conf.eth-lan.route_localnet=0");
    const check = await host.tapkit("map-port", "--to", "192.0.2.2", "--check");
    assertEquals(check.code, 3);
    assertEquals((await host.mustTapkit("attach-vm", "--restore")).stdout, "");
    assertEquals((await host.tapkit("map-port", "--to", "192.0.2.2", "--check")).code, 0);
    assertEquals((await peer.fetch("http://192.0.2.1:8080/")).body, "there");
  });

  await t.step("the link stays open as long as another needs it", async () => {
    assertEquals((await map("192.0.2.2", "--remove", "8080:80")).json[0].ports.length, 1);
    await map("192.0.2.3", "127.0.0.1:8082:80");
    assertEquals((await map("192.0.2.2", "--remove", "127.0.0.1:8081:80")).json[0].ports, []);
    assertEquals((await host.fetch("http://127.0.0.1:8082/")).body, "there", "the link is shared");
    await map("192.0.2.3", "--remove", "127.0.0.1:8082:80");
  });
  await map("2001:db8::2", "--remove", "8080:80");
  await map("2001:db8::2", "--remove", "8080:80");
  await host.assertRestored(before);
});

for (
  const [what, variant, flags] of [
    ["by rules alone, iptables-nft", "nft", ["--userland-proxy=false"]],
    ["by rules alone, iptables-legacy", "legacy", ["--userland-proxy=false"]],
    ["by its proxy alone", "nft", ["--iptables=false"]],
  ] as const
) {
  Deno.test(`map-port: a port that Docker publishes is refused by name (${what})`, async () => {
    await using host = await Host.create();
    await host.addLan();
    await host.mustTapkit("attach-vm", "web");
    {
      await using docker = await DockerEngine.start(host, variant, flags);
      await docker.serve("shop", 8080);
      for (
        const command of [
          ["map-port", "web", "8080:80"],
          ["attach-vm", "web", "--ports", "8080:80"],
          ["attach-vm", "late", "--firewall", "iptables", "--ports", "8080:80"],
          ["attach-vm", "late", "--plugins", "exec", "--ports", "192.0.2.1:8080:80"],
        ]
      ) {
        const [script = "", ...args] = command;
        const { code, stderr } = await host.tapkit(script, ...args);
        assertEquals(code, 1);
        assertMatch(
          stderr,
          /host port (192\.0\.2\.1:)?8080\/tcp is published by Docker's container "shop": choose another/,
        );
      }
      const other = await host.tapkit("map-port", "web", "8080:80/udp");
      assertEquals(other.code, 0, other.stderr);
    }
    await host.mustTapkit("map-port", "web", "8080:80");
  });
}

Deno.test("map-port: a port that a process listens on is refused by its name and pid", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web");
  await host.serveHttp(8080, "mine");
  const { code, stderr } = await host.tapkit("map-port", "web", "8079-8081:79-81");
  assertEquals(code, 1);
  assertMatch(stderr, /host port 8080\/tcp is in use by busybox \(pid \d+\): /);
  assertEquals((await host.mustTapkit("map-port", "web", "--list")).json[0].ports, []);
});

Deno.test("map-port: connections live on while other ports change, those of a dropped one end", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const { json: [web, two] } = await host.mustTapkit("attach-vm", "web", "two");
  await using guest = await NetnsGuest.start(host, web);
  await using other = await NetnsGuest.start(host, two);
  await guest.dhcp();
  await other.dhcp();
  await guest.serveUdp(53, "web");
  await other.serveUdp(53, "two");
  await host.mustTapkit("map-port", "web", "53:53/udp", "54:53/udp");
  const kept = await peer.udpClient("192.0.2.1", 54);
  const moved = await peer.udpClient("192.0.2.1", 53);
  const first = await kept.answer("hello");
  assertMatch(first, /^web 192\.0\.2\.2 \d+$/, "the client's address is kept");
  assertMatch(await moved.answer("hello"), /^web /);
  const flow = async () =>
    / dport=54 .*/.exec(await host.must("conntrack", ["-L", "-o", "id"]))?.[0];
  const before = (await flow())?.match(/id=\d+/)?.[0];
  await host.mustTapkit("map-port", "web", "--remove", "53:53/udp");
  assertEquals(await moved.ask("hello"), undefined, "its flow ended");
  await host.mustTapkit("map-port", "two", "53:53/udp");
  assertMatch(await moved.answer("hello"), /^two /, "an old client's next datagram");
  await host.mustTapkit("map-port", "web", "55:53/udp");
  assertEquals(await kept.answer("hello"), first);
  assert(before !== undefined);
  assertEquals((await flow())?.match(/id=\d+/)?.[0], before, "the same flow");
});

Deno.test("map-port: to a VM whose network maps no ports, and to one in iptables", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await host.writeFile(
    "/etc/cni/net.d/10-plain.conflist",
    JSON.stringify({
      cniVersion: "0.4.0",
      name: "plain",
      plugins: [{
        type: "bridge",
        bridge: "br-plain",
        isGateway: true,
        ipam: {
          type: "host-local",
          subnet: "10.9.9.0/24",
          routes: [{ dst: "0.0.0.0/0" }],
        },
      }],
    }),
  );
  for (const firewall of ["nftables", "iptables"]) {
    const { json: [web] } = await host.mustTapkit("attach-vm", "web", "--firewall", firewall);
    {
      await using guest = await NetnsGuest.start(host, web);
      await guest.dhcp();
      await guest.serveHttp(80, "plain");
      const { json } = await host.mustTapkit("map-port", "web", "8080:80");
      assertEquals(json, [{ vm: "web", ports: [mapping(8080, 80)] }]);
      assertEquals((await peer.fetch("http://192.0.2.1:8080/")).body, "plain", firewall);
      assertEquals((await host.fetch("http://127.0.0.1:8080/")).body, "plain", firewall);
      const check = await host.tapkit("map-port", "web", "--check");
      assertEquals([check.code, check.json], [0, [{ vm: "web", problems: [] }]]);
      await host.mustTapkit("map-port", "web", "8080:80", "--remove");
      assertEquals((await host.mustTapkit("map-port", "web", "--list")).json[0].ports, []);
      await host.mustTapkit("map-port", "web", "8081:80");
    }
    await host.mustTapkit("attach-vm", "web", "--remove");
  }
  const rules = await host.must("nft", ["list", "ruleset"]);
  assertEquals(rules.match(/tapkit/i), null, rules);
});
