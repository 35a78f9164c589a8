/** Healing: what others take away comes back, what cannot come back under a running guest is told. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import type { HealEvent } from "../../lib/vm/heal.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { fetchName, serveName } from "../support/http.ts";
import { eventually, ROOT } from "../support/machine.ts";
import { ResidentServer } from "../support/resident.ts";
import type { Running } from "../support/running.ts";

const HEALER = ["run", "-A", "--no-check", `${ROOT}/tests/support/healer.ts`];

/** A healer on a host, and the events that it told. */
class Healer {
  readonly #running: Running;
  #seen = 1;

  private constructor(running: Running) {
    this.#running = running;
  }

  static async start(host: Host, mode = "auto"): Promise<Healer> {
    const running = host.spawn(Deno.execPath(), [...HEALER, mode]);
    await running.line((line) => line.includes("ready"));
    return new Healer(running);
  }

  get events(): HealEvent[] {
    return this.#running.lines.map((line) => JSON.parse(line)).slice(this.#seen);
  }

  /** Waits for the next event of a kind that tells of something. */
  async hears(event: HealEvent["event"], pattern: RegExp, timeoutMs = 8000): Promise<HealEvent> {
    const is = (one: HealEvent) => one.event === event && pattern.test(one.problems.join("\n"));
    try {
      await eventually(timeoutMs, `${event} ${pattern}`, () => this.events.some(is));
    } catch (error) {
      throw new Error(`${error}: heard ${JSON.stringify(this.events)}`);
    }
    const heard = this.events.find(is)!;
    this.#seen = this.#running.lines.length;
    return heard;
  }

  async end(): Promise<void> {
    await this.#running[Symbol.asyncDispose]();
  }
}

const checkClean = async (host: Host) => {
  await eventually(
    5000,
    "nothing differs",
    async () => (await host.tapkit("attach-vm", "--check")).code === 0,
  );
};

Deno.test("heal: what others flush, delete or set comes back while the guest runs", async (t) => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  await host.mustTapkit("attach-vm", "api", "--ports", "127.0.0.1:9000:80");
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await serveName(guest);
  const healer = await Healer.start(host);
  const works = async () => assertEquals(await fetchName(peer, "192.0.2.1", 8080), "web");
  await works();

  const cases = [
    ["nft flush ruleset", /table "inet tapkit"|missing/],
    ["iptables-nft -P FORWARD DROP", /drops what is forwarded/],
    ["ip link set ignite0 down", /ignite0/],
    ["ip address flush dev ignite0", /lacks the gateway's address/],
    ["tc qdisc del dev ignite0 clsact; true", /ignite0|sysctl|filter/],
    ["ip link del ignite0", /ignite0/],
    [
      "ip link set $(ip -o link show master ignite0 | sed -n '1s/^[0-9]*: \\([^@:]*\\).*/\\1/p') nomaster",
      /is not a port of/,
    ],
    ["ip -n tapkit-web address flush dev eth0", /lacks the address/],
    ["echo 0 >/proc/sys/net/ipv4/ip_forward", /ip_forward/],
    ["echo 0 >/proc/sys/net/ipv4/conf/ignite0/route_localnet", /route_localnet/],
  ] as const;
  for (const [script, problem] of cases) {
    await t.step(script, async () => {
      await host.sh(script);
      await healer.hears("healed", problem);
      await checkClean(host);
      await works();
    });
  }
  await t.step(
    "many VMs come back after a flush, each of them",
    async () => {
      const names = Array.from({ length: 20 }, (_, index) => `v${index}`);
      await host.mustTapkit("attach-vm", ...names);
      await host.sh("nft flush ruleset");
      await checkClean(host);
      await host.mustTapkit("attach-vm", ...names, "--remove");
    },
  );
  await t.step("what a person removes stays away", async () => {
    await host.mustTapkit("attach-vm", "api", "--remove");
    await healer.end();
    assertEquals((await host.mustTapkit("attach-vm", "--list")).json.length, 1);
    await checkClean(host);
  });
});

Deno.test("heal: a TAP that is gone is told; with recreate it is made anew", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web");
  const told = await Healer.start(host);
  await host.sh("ip -n tapkit-web link delete vm_eth0");
  const problem = await told.hears("problem", /TAP "vm_eth0" is missing/);
  assertEquals(problem.vm, "web");
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 3);
  await told.end();
  const made = await Healer.start(host, "recreate");
  const healed = await made.hears("healed", /TAP "vm_eth0" is missing/);
  assertEquals(healed.tapReplaced, true);
  await checkClean(host);
  await made.end();
});

Deno.test("heal: who takes away again and again is not fought", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  const healer = await Healer.start(host);
  const times = () => healer.events.filter(({ event }) => event === "healed").length;
  const start = Date.now();
  await eventually(30_000, "it was mended three times, and six seconds have passed", async () => {
    await host.sh("nft flush ruleset");
    await new Promise((resolve) => setTimeout(resolve, 150));
    return times() >= 3 && Date.now() - start >= 6000;
  });
  const seconds = (Date.now() - start) / 1000;
  assert(times() < seconds + 2, `${times()} times in ${seconds} s`);
  const fight = healer.events.find(({ problems }) => /times in a row/.test(problems.join()));
  assertMatch(
    fight?.problems.join() ?? "",
    /somebody takes it away again; the next repair is in \d+ s/,
  );
  // In the end it comes back.
  await eventually(
    20_000,
    "it is whole again",
    async () => (await host.tapkit("attach-vm", "web", "--check")).code === 0,
  );
  await healer.end();
});

Deno.test("heal: report changes nothing", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  const healer = await Healer.start(host, "report");
  await host.sh("nft flush ruleset");
  await healer.hears("problem", /missing/);
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 3);
  await healer.end();
});

Deno.test("serve: heals, tells it as an event and in the log, counts it, and stops cleanly", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await using server = await ResidentServer.start(host);
  const { record } = await server.client.attachVm({ name: "web", ports: ["8080:80"] });
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await serveName(guest);
  const heard: { event: string; vm?: string; message?: string }[] = [];
  const listening = new AbortController();
  const listener = (async () => {
    for await (const event of server.client.events({ signal: listening.signal })) heard.push(event);
  })().catch(() => {});
  await host.sh("nft flush ruleset");
  await eventually(10_000, "it is told", () => heard.some(({ event }) => event === "healed"));
  const told = heard.find(({ event }) => event === "healed")!;
  assertEquals(told.vm, "web");
  assertMatch(told.message ?? "", /missing/);
  assertEquals(await fetchName(peer, "192.0.2.1", 8080), "web");
  assertMatch(
    (await server.ask("GET", "/metrics")).text,
    /^tapkit_heals_total\{event="healed"\} 1$/m,
  );
  // What is removed by a request stays away.
  await server.client.removeVm("web");
  listening.abort();
  await listener;
  const { code, stderr } = await server.end();
  assertEquals(code, 0);
  assertMatch(stderr, /repaired "web": /);
  assertEquals((await host.mustTapkit("attach-vm", "--list")).json, []);
});

Deno.test("serve --heal off: takes no care of what others do", async () => {
  await using host = await Host.create();
  await host.addLan();
  await using server = await ResidentServer.start(host, { args: ["--heal", "off"] });
  await server.client.attachVm({ name: "web", ports: ["8080:80"] });
  await host.sh("nft flush ruleset");
  // It answers, and has had a turn.
  for (let round = 0; round < 3; round++) await server.client.health();
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 3);
  await server.end();
});
