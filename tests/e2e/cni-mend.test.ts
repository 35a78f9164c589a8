/**
 * attach-vm again on networks of the reference plugins, executed by the specification: what their
 * CHECK misses, and other ports, while the guest runs.
 *
 * @module
 */

import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import {
  REFERENCE_BRIDGE,
  REFERENCE_PORTMAP,
  referenceNetwork,
  requireReference,
  SHARED,
} from "../support/cni-reference.ts";
import {
  type Effect,
  mayBeMissed,
  MEETING_RUNS,
  runWithFault,
  traceEffects,
} from "../support/effects.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { eventually, type Machine, ROOT } from "../support/machine.ts";
import type { Running } from "../support/running.ts";

requireReference();

/** Whether each effect is killed before each way of going on. */
const ALL = Deno.env.get("TAPKIT_CRASH") === "all";

// deno-lint-ignore no-explicit-any -- CNI's own shapes.
type Json = any;

const [BRIDGE, PORTMAP] = [REFERENCE_BRIDGE, REFERENCE_PORTMAP];

async function hostWith(...plugins: Json[]): Promise<{ host: Host; peer: Machine }> {
  const host = await Host.create();
  const peer = await host.addLan();
  await peer.serveHttp(80, "page");
  await host.writeFile("/etc/cni/net.d/10-net.conflist", referenceNetwork(plugins));
  return { host, peer };
}

/** What tells one namespace and its links from others, by the kernel's numbers. */
async function links(host: Host): Promise<unknown> {
  const all = JSON.parse(await host.must("ip", ["-n", "tapkit-web", "-j", "link"]));
  return [
    await host.must("stat", ["-L", "-c", "%i", "/run/netns/tapkit-web"]),
    all.map(({ ifname, ifindex, link_index, address }: Json) => [
      ifname,
      ifindex,
      link_index,
      address,
    ]),
  ];
}

async function checkPasses(host: Host): Promise<void> {
  const { code, json, stderr } = await host.tapkit("attach-vm", "web", "--check");
  assertEquals([code, json], [0, [{ vm: "web", problems: [] }]], stderr);
}

/** A connection that lives as long as nobody breaks it. */
class Talk {
  readonly #client: Running;
  #said = 0;

  constructor(machine: Machine, address: string, port: number) {
    this.#client = machine.spawn("busybox", ["nc", address, String(port)]);
  }

  async goesOn(): Promise<void> {
    const word = `word ${++this.#said}`;
    await this.#client.write(`${word}\n`);
    await this.#client.line((line) => line === word);
  }

  /** Its next word is answered by a reset. */
  async ends(): Promise<void> {
    let ended = false;
    this.#client.status.then(() => ended = true);
    await this.#client.write("word\n");
    await eventually(10_000, "its connection ends", () => ended);
  }
}

async function reaches(machine: Machine, port: number): Promise<boolean> {
  const { body } = await machine.fetch(`http://192.0.2.1:${port}/`, { timeoutSeconds: 1 });
  return body === "guest";
}

Deno.test("attach-vm: chained plugins are run again by themselves, and the guest keeps its connections", async (t) => {
  const { host: one, peer } = await hostWith(BRIDGE, PORTMAP, { type: "firewall" });
  await using host = one;
  const before = await host.snapshot();
  const ports = ["8080:80", "7000:7", "7001:7"].flatMap((port) => ["--ports", port]);
  const { json: [record], stderr: first } = await host.mustTapkit("attach-vm", "web", ...ports);
  {
    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    await guest.serveHttp(80, "guest");
    guest.spawn("busybox", ["nc", "-ll", "-p", "7", "-e", "cat"]);
    await guest.listening(7, "tcp");
    await host.mustTapkit("map-port", "web", "9191:80");
    const talk = new Talk(peer, "192.0.2.1", 7000);
    const dropped = new Talk(peer, "192.0.2.1", 7001);
    await talk.goesOn();
    await dropped.goesOn();
    const kernel = await links(host);
    const attach = async (...args: string[]) => {
      const debug = { env: { TAPKIT_DEBUG: "1" } };
      const outcome = await host.mustTapkit("attach-vm", "web", ...args, debug);
      assertEquals(await links(host), kernel);
      await talk.goesOn();
      assert(await reaches(peer, 9191), "map-port's own mapping is gone");
      return outcome;
    };

    // The reference portmap's CHECK wants chains in ip6tables, which its ADD makes for IPv6 only.
    assertMatch(first, /warning: portmap: CHECK .*ipv6 dnat.*"disableCheck": true/);
    assertEquals((await attach()).stderr, "");
    await checkPasses(host);

    const translation = [/portmap: CHECK .*ipv4 dnat/, /lacks the chain CNI-.* masquerades/];
    const filter = /firewall: CHECK .*CNI-FORWARD/;
    const losses: [command: string, what: RegExp[]][] = [
      ["iptables -t nat -F", translation],
      ["iptables -F", [filter]],
      ["nft flush ruleset", [...translation, filter]],
    ];
    for (const [command, what] of losses) {
      await t.step(command, async () => {
        await host.sh(command);
        const check = await host.tapkit("attach-vm", "web", "--check");
        assertEquals(check.code, 3, command);
        for (const pattern of what) assertMatch(check.json[0].problems.join("\n"), pattern);
        const again = await attach();
        for (const pattern of what) assertMatch(again.stderr, pattern);
        assert(!again.stderr.includes("warning"), again.stderr);
        assert(await reaches(peer, 8080), command);
        const { body } = await guest.fetch("http://192.0.2.2/cgi-bin/client");
        assertMatch(body, /192\.0\.2\.1\b/, "the guest's address is not translated");
        await checkPasses(host);
      });
    }

    await t.step("other ports: the one that stays is not felt to be published anew", async () => {
      const { json: [changed], stderr: said } = await attach(
        ...["--ports", "9090:80", "--ports", "7000:7"],
      );
      assertEquals(said, "");
      const shown = changed.ports.map(({ hostPort, vmPort }: Json) => `${hostPort}:${vmPort}`);
      assertEquals(shown, ["9090:80", "7000:7", "9191:80"]);
      assertEquals([await reaches(peer, 9090), await reaches(peer, 8080)], [true, false]);
      await checkPasses(host);
      await dropped.ends();
    });

    // What somebody else has is refused, and the ports stay.
    await host.mustTapkit("attach-vm", "api", "--ports", "8081:80");
    await using _server = await host.serveHttp(8082, "page");
    const stored = await host.readFile("/var/lib/tapkit/vms/web.json");
    const rules = () => host.sh("iptables-save -t nat | grep -v ^#");
    const published = await rules();
    const refused: [port: string, why: RegExp][] = [
      ["8081:81", /host port 8081\/tcp is already mapped to VM "api"/],
      ["8082:82", /host port 8082\/tcp is in use by busybox/],
      ["9191:81", /host port 9191\/tcp is already mapped to VM "web"/],
    ];
    for (const [port, why] of refused) {
      await t.step(`${port} is refused`, async () => {
        const outcome = await host.tapkit("attach-vm", "web", "--ports", port);
        assertEquals(outcome.code, 1, outcome.stdout);
        assertMatch(outcome.stderr, why);
        assertEquals(await rules(), published);
      });
    }
    assertEquals(await host.readFile("/var/lib/tapkit/vms/web.json"), stored);
    const other = await host.tapkit("attach-vm", "api", "--ports", "9090:80");
    assertMatch(other.stderr, /host port 9090\/tcp is already mapped to VM "web"/);
    await host.mustTapkit("attach-vm", "api", "--remove");

    await talk.goesOn();
    await t.step("no ports, and one again", async () => {
      const none = await host.mustTapkit("attach-vm", "web", "--ports", "none");
      await talk.ends();
      assertEquals(none.json[0].ports.map(({ hostPort }: Json) => hostPort), [9191]);
      assertEquals([await reaches(peer, 9090), (await rules()).includes("CNI-DN-")], [
        false,
        false,
      ]);
      await checkPasses(host);
      await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
      assertEquals([await reaches(peer, 8080), await reaches(peer, 9191)], [true, true]);
      assertEquals(await links(host), kernel);
    });
  }
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before, { except: [...SHARED, /\/run\/http-8082/] });
});

Deno.test("attach-vm: a plugin whose CHECK fails right after its ADD is found out by attaching, once", async (t) => {
  const unaddressed = [{ type: "bridge", bridge: "cnibr0" }];
  const noIpam = /bridge: CHECK .*no plugin name provided/;
  const cases: [name: string, plugins: Json[], words: RegExp, loss: string][] = [
    [
      "bridge with sbr", // It takes the routes away that bridge looks for.
      [BRIDGE, { type: "sbr" }],
      /bridge: CHECK .*Gateway 10\.20\.0\.1/,
      "ip -n tapkit-web address flush dev eth0",
    ],
    ["bridge without IPAM", unaddressed, noIpam, "ip -n tapkit-web link delete eth0"],
    ["and a reboot", unaddressed, noIpam, "ip netns delete tapkit-web"],
  ];
  for (const [name, plugins, words, loss] of cases) {
    await t.step(name, async () => {
      const { host: one } = await hostWith(...plugins);
      await using host = one;
      const before = await host.snapshot();
      const { json: [record], stderr: said } = await host.mustTapkit("attach-vm", "web");
      assertMatch(said, words);
      assertEquals(said.split("\n").filter((line) => /warning: /.test(line)).length, 1);
      const renewed = await links(host);
      const again = await host.mustTapkit("attach-vm", "web");
      assertEquals([again.json, again.stderr, await links(host)], [[record], "", renewed]);
      // Of another VM it is known, and not said again.
      const other = await host.mustTapkit("attach-vm", "other");
      assert(!other.stderr.includes("warning"), other.stderr);
      assertEquals((await host.tapkit("attach-vm", "other", "--check")).code, 0);
      await host.mustTapkit("attach-vm", "other", "--remove");
      const check = await host.tapkit("attach-vm", "web", "--check");
      assertEquals([check.code, check.json], [0, [{ vm: "web", problems: [] }]]);
      assertMatch(check.stderr, /no difference, as from ADD on: bridge: CHECK/);

      // Another difference counts, and what is known is known after it too.
      await host.sh(loss);
      assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 3);
      const { stderr } = await host.mustTapkit("attach-vm", "--restore");
      assert(!stderr.includes("warning"), stderr);
      const restored = await links(host);
      assertNotEquals(restored, renewed);
      assertEquals((await host.mustTapkit("attach-vm", "web")).stderr, "");
      assertEquals(await links(host), restored);
      await host.mustTapkit("attach-vm", "web", "--remove");
      await host.assertRestored(before, { except: SHARED });
    });
  }
});

Deno.test("attach-vm: what a plugin by itself cannot bring back is attached over", async () => {
  const bandwidth = { type: "bandwidth", capabilities: { bandwidth: true } };
  const { host: one } = await hostWith(BRIDGE, bandwidth);
  await using host = one;
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--bandwidth", "100mbit");
  const stored = JSON.parse(await host.readFile("/var/lib/tapkit/vms/web.json"));
  const { attachment } = stored.at.facts.networks[0];
  const [, second] = attachment.plugins;
  // It adds a link to the result: its own previous result is without that.
  assertEquals(
    attachment.result.interfaces.slice(0, 3),
    second.prevResult.interfaces,
  );
  await host.sh(
    "ip link delete $(ip -o link show type ifb | sed 's/^[0-9]*: \\([^:@]*\\).*/\\1/')",
  );
  // Its ADD refuses the queueing discipline that its DEL leaves on the host's link.
  const { json, stderr } = await host.mustTapkit("attach-vm", "web");
  assertMatch(stderr, /repairing: bandwidth: CHECK .*ifb device/);
  assertMatch(stderr, /attaching anew: .*bandwidth: ADD failed/);
  assertEquals(json, [record]);
  await checkPasses(host);
  assertMatch(await host.must("tc", ["qdisc"]), /tbf .*rate 100Mbit/);
});

Deno.test("map-port --remove: a port that a plugin publishes goes by that plugin", async () => {
  const { host: one, peer } = await hostWith(BRIDGE, PORTMAP);
  await using host = one;
  const ports = ["--ports", "8080:80", "--ports", "8081:80"];
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...ports);
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await guest.serveHttp(80, "guest");
  const kernel = await links(host);
  const hostPorts = ({ ports }: Json) => ports.map(({ hostPort }: Json) => hostPort);
  const mapPort = async (...args: string[]) => {
    const { json: [now] } = await host.mustTapkit("map-port", "web", ...args);
    assertEquals(await links(host), kernel);
    return hostPorts(now);
  };
  const reached = async () => [await reaches(peer, 8080), await reaches(peer, 8081)];

  const taken = await host.tapkit("map-port", "web", "8081:81");
  assertMatch(taken.stderr, /host port 8081\/tcp is already mapped to VM "web"/);
  assertEquals(await mapPort("8080:80", "--remove"), [8081]);
  assertEquals(await reached(), [false, true]);
  assertEquals(await mapPort("8080:80", "--remove"), [8081]);
  const { json: [again] } = await host.mustTapkit("attach-vm", "web");
  assertEquals([hostPorts(again), await links(host)], [[8081], kernel]);
  await checkPasses(host);
  // It comes back by tapkit's own firewall, and one of each goes at once.
  assertEquals(await mapPort("8080:80"), [8081, 8080]);
  assertEquals(await reached(), [true, true]);
  assertEquals(await mapPort("8080:80", "8081:80", "--remove"), []);
  assertEquals(await reached(), [false, false]);
  await checkPasses(host);
});

/** A portmap that refuses one port. */
const PICKY = `#!/bin/sh
conf=$(cat)
case "$CNI_COMMAND $conf" in
  "ADD "*'"hostPort":6666'*) echo '{"code": 7, "msg": "not that one"}'; exit 1 ;;
esac
printf %s "$conf" | exec /usr/lib/cni/portmap
`;

Deno.test("attach-vm --ports: a plugin that refuses them has the old ones published again", async () => {
  const { host: one, peer } = await hostWith(BRIDGE, PORTMAP);
  await using host = one;
  await host.writeFile("/opt/cni/bin/portmap", PICKY, 0o755);
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await guest.serveHttp(80, "guest");
  await host.mustTapkit("attach-vm", "web");
  const kernel = await links(host);
  const stored = await host.readFile("/var/lib/tapkit/vms/web.json");
  const refused = await host.tapkit("attach-vm", "web", "--ports", "6666:80", "--isolated");
  assertEquals([refused.code, refused.stdout], [1, ""]);
  assertMatch(refused.stderr, /cannot attach "web": portmap: ADD failed with code 7: not that one/);
  assert(await reaches(peer, 8080));
  assertEquals(await host.readFile("/var/lib/tapkit/vms/web.json"), stored);
  assertEquals(await links(host), kernel);
  const again = await host.mustTapkit("attach-vm", "web");
  assertEquals([again.json, again.stderr], [[record], ""]);
});

Deno.test("attach-vm --ports: killed while a plugin publishes others, the same command goes on", async (t) => {
  const { host: one } = await hostWith(BRIDGE, PORTMAP);
  await using host = one;
  const before = await host.snapshot();
  const change = ["--ports", "9090:80"];
  const command = [
    "run",
    "-A",
    "--no-code-cache",
    `${ROOT}/scripts/attach-vm.ts`,
    "web",
    ...change,
  ];
  const prepare = async () => {
    await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
    await host.awaitDhcp();
    // That CHECK fails is known from here on.
    await host.mustTapkit("attach-vm", "web");
  };
  await prepare();
  const effects = (await traceEffects(host, Deno.execPath(), command))
    .filter(({ syscall }) => ["rename", "clone3", "clone", "vfork"].includes(syscall));
  const consistent = async (record: Json, expected: RegExp) => {
    const rules = await host.sh("iptables-save -t nat");
    const mapped = [...rules.matchAll(/--dport (\d+) -j DNAT/g)].map(([, port]) => Number(port));
    assertEquals(mapped, record.ports.map(({ hostPort }: Json) => hostPort));
    assertMatch(mapped.join(), expected);
    await checkPasses(host);
  };
  let doubts = 0;
  const rounds: ((effect: Effect) => Promise<void>)[] = [
    async () => {
      const { json: [record] } = await host.mustTapkit("attach-vm", "web", ...change);
      await consistent(record, /^9090$/);
    },
    async () => {
      const stored = JSON.parse(await host.readFile("/var/lib/tapkit/vms/web.json"));
      if (stored.is === "changing") {
        doubts++;
        assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 3);
        for (const port of [8080, 9090]) {
          const other = await host.tapkit("attach-vm", "api", "--ports", `${port}:80`);
          assertMatch(other.stderr, /already mapped to VM "web"/);
        }
        const drop = await host.tapkit("map-port", "web", "9090:80", "--remove");
        assertMatch(drop.stderr, /"web" was left half changed: run attach-vm web first/);
      }
      const { json: [record] } = await host.mustTapkit("attach-vm", "web");
      await consistent(record, /^(8080|9090)$/);
      await host.mustTapkit("map-port", "web", "9191:80");
    },
    async () => {},
  ];
  assert(effects.length >= 6, JSON.stringify(effects));
  for (const [number, effect] of effects.entries()) {
    await t.step(`${effect.syscall} ${effect.nth}`, async () => {
      for (const round of ALL ? rounds : [rounds[number % rounds.length]!]) {
        for (let run = 1;; run++) {
          await host.mustTapkit("attach-vm", "web", "--remove");
          await prepare();
          const { code, stderr } = await runWithFault(
            ...[host, effect, "SIGKILL", Deno.execPath(), command] as const,
          );
          if (code === 137) break;
          assert(mayBeMissed(effect) && run < MEETING_RUNS, `${effect.what}: ${stderr}`);
        }
        // A plugin that was running goes on to its end.
        await host.sh("while pgrep -f ^/usr/lib/cni/; do sleep 0.05; done");
        await round(effect);
      }
      await host.mustTapkit("attach-vm", "web", "--remove");
      await host.assertRestored(before, { except: SHARED });
      const rules = await host.sh("iptables-save -t nat");
      assert(!rules.includes("CNI-DN-"), rules);
    });
  }
  assert(doubts > 0, "the plugin was never in doubt");
});

Deno.test("attach-vm --ports: a plugin that makes the interface and publishes ports is not run again", async () => {
  const { host: one } = await hostWith({
    ...BRIDGE,
    type: "both",
    capabilities: { portMappings: true },
  });
  await using host = one;
  await host.writeFile("/opt/cni/bin/both", "#!/bin/sh\nexec /usr/lib/cni/bridge\n", 0o755);
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  const change = await host.tapkit("attach-vm", "web", "--ports", "9090:80");
  assertEquals(change.code, 1);
  assertMatch(change.stderr, /published by the plugin "both", which makes its interface too/);
  const drop = await host.tapkit("map-port", "web", "8080:80", "--remove");
  assertMatch(drop.stderr, /published by the plugin "both", which makes its interface too/);
  const again = await host.mustTapkit("attach-vm", "web");
  assertEquals([again.json, again.stderr], [[record], ""]);
});
