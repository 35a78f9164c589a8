/** Commands that have the resident do their work: they print the same, and end the same. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";
import { eventually } from "../support/machine.ts";
import { scriptWords } from "../support/bundle.ts";
import { ResidentServer } from "../support/resident.ts";

/** Commands that reach the resident. */
const BY_RESIDENT = { env: { TAPKIT_SOCKET: "" } };

async function hostOnLan(): Promise<Host> {
  const host = await Host.create();
  await host.addLan();
  await host.tapkit("install-default-cni", "--subnet", "10.99.0.0/24");
  return host;
}

/** The commands that the resident has run so far. */
async function handedOver(server: ResidentServer): Promise<number> {
  const { text } = await server.ask("GET", "/metrics");
  const found = /^tapkit_requests_total\{operation="runCommand",status="200"\} (\d+)$/m.exec(text);
  return Number(found?.[1] ?? 0);
}

/** Waits until `count` commands have been handed over: one is counted when its answer was read. */
async function awaitHandedOver(server: ResidentServer, count: number, what: string): Promise<void> {
  await eventually(5000, what, async () => await handedOver(server) === count);
}

const MACS = ["02:00:00:00:00:01", "02:00:00:00:00:02"] as const;

/** Each line is a command; those that refuse are among them. */
const LINES = [
  `attach-vm web --mac ${MACS[0]} --ports 8080:80`,
  `attach-vm web --mac ${MACS[0]} --ports 8080:80`,
  `attach-vm db --mac ${MACS[1]} --ip 10.99.0.7 --ports 8080:80`,
  `attach-vm db --mac ${MACS[1]} --ip 10.99.0.7 --max-connections 100`,
  "attach-vm db web",
  "attach-vm --list",
  "attach-vm --list nosuch",
  "attach-vm web --list --output env",
  "attach-vm --check nosuch",
  "attach-vm --prots 1:1",
  "attach-vm web --ports x",
  "attach-vm w/b",
  "attach-vm",
  "map-port web 9090:90",
  "map-port db 9090:90",
  "map-port web --list",
  "map-port --list",
  "map-port nosuch 1:1",
  "map-port web 9090:90 --remove",
  "map-port --to 192.0.2.2 7070:70",
  "map-port --to 192.0.2.2 7070:70 --remove",
  "attach-vm --from vms.jsonl",
  "attach-vm --from -",
  "attach-vm --from missing.jsonl",
  "bridge-legacy x --container none",
  "attach-vm --restore",
  "attach-vm --gc",
  "attach-vm web --remove",
  "attach-vm web --remove",
  "attach-vm --remove --all",
];

Deno.test("commands: what is printed and the exit code are the same by the resident", async () => {
  const outcomes = [];
  for (const env of [{ TAPKIT_SOCKET: "none" }, BY_RESIDENT.env]) {
    await using host = await hostOnLan();
    const before = await host.snapshot();
    await using server = await ResidentServer.start(host);
    await host.writeFile("/tmp/vms.jsonl", `{"name":"a","mac":"02:00:00:00:00:03"}\n{"name":7}\n`);
    const stdin = `{"name":"b","mac":"02:00:00:00:00:04"}\n`;
    const ran = [];
    for (const line of LINES) {
      const [script = "", ...args] = line.split(" ");
      const words = [...scriptWords(script), ...args].map((word) => `'${word}'`).join(" ");
      const outcome = await host.run("bash", [
        "-c",
        `cd /tmp; printf '%s' '${stdin}' | '${Deno.execPath()}' ${words}`,
      ], { env });
      ran.push({ line, ...outcome });
      const isByResident = env === BY_RESIDENT.env;
      if (isByResident) await awaitHandedOver(server, ran.length, `${line} is handed over`);
      else assertEquals(await handedOver(server), 0);
    }
    outcomes.push(ran);
    assertEquals((await server.end()).code, 0);
    await host.must("rm", ["-rf", "/var/lib/tapkit", "/tmp/vms.jsonl"]);
    await host.assertRestored(before);
  }
  const [alone, resident] = outcomes;
  alone!.forEach((outcome, index) => assertEquals(resident![index], outcome));
  const codes = new Set(alone!.map(({ code }) => code));
  assertEquals([...codes].sort(), [0, 1, 2, 3]);
});

Deno.test("commands: do their work themselves where the resident is not theirs", async () => {
  await using host = await hostOnLan();
  await using server = await ResidentServer.start(host);
  const list = async (env: Record<string, string>, ...args: string[]) => {
    const { code, stderr } = await host.tapkit("attach-vm", "--list", ...args, {
      env: { ...BY_RESIDENT.env, ...env },
    });
    assertEquals([code, stderr], [0, ""]);
  };
  await list({}, "--state-dir", "/var/lib/other");
  await awaitHandedOver(server, 1, "it was asked, and refused");
  await list({ TAPKIT_STATE_DIR: "/var/lib/other" });
  await list({ NETCONFPATH: "/etc/cni/other" });
  await list({ DOCKER_HOST: "unix:///run/other.sock" });
  await list({ TAPKIT_SOCKET: "/run/nothing.sock" });
  await host.sh(`TAPKIT_SOCKET= unshare --mount true`);
  const elsewhere = [...["--mount", "--", Deno.execPath()], ...scriptWords("attach-vm"), "--list"];
  assertEquals((await host.run("unshare", elsewhere, BY_RESIDENT)).code, 0);
  assertEquals(await handedOver(server), 1);
  await list({});
  await awaitHandedOver(server, 2, "the resident does it");
  // Its standard input is its own, by whatever name.
  const words = [Deno.execPath(), ...scriptWords("attach-vm")].map((word) => `'${word}'`).join(" ");
  const { stdout } = await host.run("bash", [
    "-c",
    `${words} --from <(echo '{"name":"web"}') && ${words} web -- echo {name} runs`,
  ], BY_RESIDENT);
  assertMatch(stdout, /"vm":"web"[^]*\nweb runs\n$/);
  assertEquals(await handedOver(server), 2);
});

/** A network whose plugin takes its time. */
async function addSlowNetwork(host: Host): Promise<void> {
  const plugin = `#!/bin/sh
[ $CNI_COMMAND = ADD ] || exit 0
touch /run/at-add
while [ -e /run/hold ]; do sleep 0.05; done
exec /opt/cni/bin/done`;
  const config = { cniVersion: "1.0.0", name: "slow", plugins: [{ type: "slow" }] };
  await host.writeFile("/etc/cni/net.d/91-slow.conflist", JSON.stringify(config));
  await host.writeFile("/opt/cni/bin/slow", plugin, 0o755);
  // It makes what it reports, as the specification demands.
  const done = `#!/bin/sh
ip -n "$(basename $CNI_NETNS)" link add eth0 type veth peer name eth0-peer
ip -n "$(basename $CNI_NETNS)" link set eth0 up
echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.98.0.2/24","interface":0}]}'`;
  await host.writeFile("/opt/cni/bin/done", done, 0o755);
  await host.sh("touch /run/hold");
}

async function awaitAdd(host: Host): Promise<void> {
  await eventually(
    10_000,
    "the plugin is at work",
    async () => (await host.run("test", ["-e", "/run/at-add"])).code === 0,
  );
}

Deno.test("commands: Ctrl-C undoes what the resident has begun, and says so", async () => {
  const said = [];
  for (const env of [{ TAPKIT_SOCKET: "none" }, BY_RESIDENT.env]) {
    await using host = await hostOnLan();
    await using server = await ResidentServer.start(host);
    await addSlowNetwork(host);
    const before = await host.snapshot();
    const words = [...scriptWords("attach-vm"), "web", "--network", "slow"];
    await using command = host.spawn(Deno.execPath(), words, { env });
    await awaitAdd(host);
    command.kill("SIGINT");
    const { code } = await command.status;
    said.push([code, await command.stderr, ...command.lines]);
    await host.must("rm", ["-f", "/run/at-add"]);
    assertEquals((await server.ask("GET", "/v1/health")).json.vms, 0);
    await host.assertRestored(before, { except: [/at-add/] });
  }
  assertEquals(said[1], said[0]);
  assertEquals(said[0]![0], 130);
  assertMatch(String(said[0]![1]), /cannot attach "web": interrupted by SIGINT/);
});

Deno.test("commands: one that is killed leaves nothing half done", async () => {
  await using host = await hostOnLan();
  await using server = await ResidentServer.start(host);
  await addSlowNetwork(host);
  const before = await host.snapshot();
  const words = [...scriptWords("attach-vm"), "web", "--network", "slow"];
  await using command = host.spawn(Deno.execPath(), words, BY_RESIDENT);
  await awaitAdd(host);
  command.kill("SIGKILL");
  await command.status;
  await eventually(
    10_000,
    "it is undone",
    async () => (await server.ask("GET", "/v1/health")).json.vms === 0,
  );
  await host.assertRestored(before, { except: [/at-add/] });
});

for (const signal of ["SIGKILL", "SIGTERM"] as const) {
  Deno.test(`commands: are completed by themselves when the resident ends by ${signal}`, async () => {
    await using host = await hostOnLan();
    await using server = await ResidentServer.start(host);
    await addSlowNetwork(host);
    const words = [...scriptWords("attach-vm"), "web", "--network", "slow"];
    await using command = host.spawn(Deno.execPath(), words, BY_RESIDENT);
    await awaitAdd(host);
    const ended = server.end(signal);
    await host.must("rm", ["/run/hold"]);
    await ended;
    const { code } = await command.status;
    assertEquals([code, /ended/.exec(await command.stderr)], [0, null]);
    assertEquals(JSON.parse(await command.line(() => true)).vm, "web");
    await host.mustTapkit("attach-vm", "web", "--remove");
  });
}

Deno.test("commands: a reader that takes its time holds up its command alone", async () => {
  await using host = await hostOnLan();
  await using server = await ResidentServer.start(host);
  const ports = Array.from({ length: 3000 }, (_, index) => `${20_000 + index}:${index + 1}`);
  await server.client.attachVm({ name: "web", ports });
  const words = [Deno.execPath(), ...scriptWords("attach-vm")].map((word) => `'${word}'`).join(" ");
  const list = `${words} web --list`;
  const reader = "(touch /run/reading; while [ -e /run/hold ]; do sleep 0.05; done; cat)";
  await host.sh("touch /run/hold");
  const slow = host.run("bash", ["-c", `set -o pipefail; ${list} | ${reader}`], BY_RESIDENT);
  await awaitHandedOver(server, 1, "the resident has done its part");
  await host.must("rm", ["/run/hold", "/run/reading"]);
  const { code, stdout, stderr } = await slow;
  assertEquals([code, stderr], [0, ""]);
  // More than a pipe and a socket hold.
  assert(stdout.length > 200_000, `${stdout.length}`);
  assertEquals(JSON.parse(stdout).ports.length, 3000);
  const gone = await host.run("bash", ["-c", `set -o pipefail; ${list} | true`], BY_RESIDENT);
  assertEquals([gone.code, gone.stderr], [0, ""]);
  const full = await host.run("bash", ["-c", `${list} >/dev/full`], BY_RESIDENT);
  assertEquals(full.code, 1);
  assertMatch(full.stderr, /^attach-vm: stdout cannot be written: .*No space left/);
});

Deno.test("commands: do not wait for a resident that is stopped", async () => {
  await using host = await hostOnLan();
  await using server = await ResidentServer.start(host);
  server.process.kill("SIGSTOP");
  const { code, stdout, stderr } = await host.tapkit("attach-vm", "--list", BY_RESIDENT);
  assertEquals([code, stdout, stderr], [0, "", ""]);
  server.process.kill("SIGCONT");
  assert((await server.ask("GET", "/v1/health")).status === 200);
});
