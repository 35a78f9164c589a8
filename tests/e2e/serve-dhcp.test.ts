import { assert, assertEquals, assertMatch } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { eventually } from "../support/machine.ts";
import { ResidentServer } from "../support/resident.ts";

const LOCK = "/var/lib/tapkit/serve-dhcp.lock";
const NOT_SERVED = "no DHCP server runs, so guests get no lease: attach again to start one";

/** The pid of the server of the throwaway host, as that sees it. */
async function serverOf(host: Host): Promise<string> {
  // Who tries the lock holds it for a moment, and may keep a server that starts from taking it.
  await host.awaitDhcp();
  return (await host.must("pgrep", ["-f", "--", "--exit-when-idle"])).trim();
}

Deno.test("attach-vm --check: a VM whose DHCP nobody answers; attaching again has it answered", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const check = async () => {
    const { code, json: [{ problems }] } = await host.tapkit("attach-vm", "web", "--check");
    return [code, problems];
  };
  await host.mustTapkit("attach-vm", "web");
  // The server may still be starting.
  assertEquals(await check(), [0, []]);
  await host.must("kill", ["-9", await serverOf(host)]);
  // Older than a start takes.
  await host.must("touch", ["-d", "1 minute ago", "/var/lib/tapkit/vms/web.json"]);
  await eventually(5000, "it has ended", async () => (await check())[0] === 3);
  assertEquals(await check(), [3, [NOT_SERVED]]);
  await host.mustTapkit("attach-vm", "web");
  await serverOf(host);
  assertEquals(await check(), [0, []]);
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm: the lock of a resident that was killed keeps no other from being started", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web");
  await host.must("kill", ["-9", await serverOf(host)]);
  // The kernel takes a moment to release it. Stands in for that: the main thread has ended, others not.
  await host.sh(`until flock -n ${LOCK} true; do sleep 0.02; done`);
  const dying = `import fcntl, threading, time, ctypes
threading.Thread(target=time.sleep, args=(777,)).start()
lock = open("${LOCK}", "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
ctypes.CDLL(None).syscall(60, 0)`;
  await using holder = host.spawn("python3", ["-c", dying]);
  await holder.line((line) => line === "locked");
  await host.mustTapkit("attach-vm", "web");
  await eventually(
    5000,
    "one waits",
    async () => (await host.run("pgrep", ["-f", "--", "--exit-when-idle"])).code === 0,
  );
  await holder[Symbol.asyncDispose]();
  await serverOf(host);
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
});

Deno.test("attach-vm: a resident that ends is followed by another, for what is attached meanwhile", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.mustTapkit("install-default-cni");
  const plugins = [{ type: "slow" }];
  const network = { cniVersion: "1.0.0", name: "slow", plugins };
  await host.writeFile("/etc/cni/net.d/20-slow.conflist", JSON.stringify(network));
  const plugin = `#!/bin/sh
    case $CNI_COMMAND in
      ADD) sleep 777 ;;
      DEL) touch /run/at-del; while [ -e /run/hold ]; do sleep 0.02; done ;;
    esac`;
  await host.writeFile("/opt/cni/bin/slow", plugin, 0o755);
  await host.sh("touch /run/hold");
  await using server = await ResidentServer.start(host);
  const attaching = server.ask("POST", "/v1/vms", { name: "slow", networks: ["slow"] });
  await eventually(
    5000,
    "the plugin is at work",
    async () => (await host.run("pgrep", ["-fx", "sleep 777"])).code === 0,
  );
  const ended = server.end();
  await host.sh("until [ -e /run/at-del ]; do sleep 0.02; done");
  await host.mustTapkit("attach-vm", "web");
  await host.sh("rm /run/hold");
  assertEquals([(await ended).code, (await attaching).status], [0, 503]);
  await serverOf(host);
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before, { except: [/ \/(etc\/cni\/net.d|opt\/cni|run\/at-del)/] });
});

Deno.test("attach-vm, --check: the DHCP server of a version that cannot read these records", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.must("mkdir", ["-p", "/var/lib/tapkit"]);
  // Stands in for a server of that version: it held this lock, and left the file empty.
  await using former = host.spawn("flock", ["-F", LOCK, "sleep", "infinity"]);
  await eventually(
    5000,
    "it holds the lock",
    async () => (await host.run("flock", ["-n", LOCK, "true"])).code !== 0,
  );
  await host.must("touch", ["-d", "1 minute ago", LOCK]);
  const said = /sleep infinity \(pid \d+\).* is the DHCP server of an earlier version/;
  const { stderr } = await host.mustTapkit("attach-vm", "web");
  assertMatch(stderr, said);
  const { code, json: [{ problems }] } = await host.tapkit("attach-vm", "web", "--check");
  assertEquals([code, problems.length], [3, 1]);
  assertMatch(problems[0], said);
  await former[Symbol.asyncDispose]();
  await host.mustTapkit("attach-vm", "web");
  await serverOf(host);
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
});

Deno.test("attach-vm --check: what has no IPv4 address asks no DHCP server", async () => {
  await using host = await Host.create();
  await host.addLan();
  const conf = { cniVersion: "1.0.0", name: "flat", type: "bridge", bridge: "br-flat" };
  await host.writeFile("/etc/cni/net.d/10-flat.conf", JSON.stringify(conf));
  await host.mustTapkit("attach-vm", "web", "--plugins", "builtin");
  await host.must("kill", ["-9", await serverOf(host)]);
  await host.must("touch", ["-d", "1 minute ago", "/var/lib/tapkit/vms/web.json"]);
  assertEquals((await host.mustTapkit("attach-vm", "web", "--check")).json[0].problems, []);
});

Deno.test("serve-dhcp --list: which guest was given its address, and when", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const { json: [web] } = await host.mustTapkit("attach-vm", "web", "idle");
  const list = async () => (await host.mustTapkit("serve-dhcp", "--list")).json;
  assertEquals((await list()).map(({ vm, asked }) => [vm, asked]), [["idle", null], ["web", null]]);
  const guest = await NetnsGuest.start(host, web);
  const from = Date.now();
  await guest.dhcp();
  await eventually(5000, "it is noted", async () => (await list())[1].asked !== null);
  const [idle, served] = await list();
  const { asked, ...rest } = served;
  const [{ name, mac, addresses: [{ address }] }] = web.interfaces;
  assertEquals([idle.asked, rest], [null, { vm: "web", interface: name, mac, address }]);
  assert(Date.parse(asked) >= from && Date.parse(asked) <= Date.now(), asked);
  // A server that follows knows it too.
  await host.must("kill", ["-9", await serverOf(host)]);
  await host.mustTapkit("attach-vm", "web");
  await serverOf(host);
  assertEquals((await list())[1], served);
  await guest[Symbol.asyncDispose]();
  await host.mustTapkit("attach-vm", "--remove", "--all");
  await host.assertRestored(before);
});

Deno.test("serve-dhcp: what it says goes to a log where no journal takes it", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web");
  const pid = await serverOf(host);
  const log = "/var/lib/tapkit/serve-dhcp.log";
  assertMatch(await host.sh(`tr '\\0' ' ' </proc/${pid}/cmdline`), new RegExp(`--log-file=${log}`));
  const second = await host.tapkit("serve-dhcp", "--log-file", log);
  assertEquals([second.code, second.stdout, second.stderr], [1, "", ""]);
  assertMatch(
    await host.readFile(log),
    /^\d{4}-[^ ]+Z serve-dhcp: another process answers DHCP for \S+ already: [^\n]+\n$/,
  );
  await host.mustTapkit("attach-vm", "web", "--remove");
  await eventually(
    5000,
    "the state is gone",
    async () => (await host.run("test", ["-e", "/var/lib/tapkit"])).code !== 0,
  );
});

Deno.test("attach-vm: under systemd the DHCP server is a unit that is started again", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("mkdir -p /run/systemd/system /run/bin");
  await host.writeFile(
    "/run/bin/systemd-run",
    `#!/bin/sh\nprintf '%s\\n' "$@" >/run/arguments\nwhile [ "$1" != -- ]; do shift; done\n` +
      `shift\nexec "$@"\n`,
    0o755,
  );
  const env = { PATH: `/run/bin:${Deno.env.get("PATH")}` };
  await host.mustTapkit("attach-vm", "web", { env });
  await serverOf(host);
  const [options = ""] = (await host.readFile("/run/arguments")).split("\n--\n");
  assertMatch(options, /^--property=Restart=on-failure$/m);
  assertEquals((await host.mustTapkit("attach-vm", "web", "--check")).json[0].problems, []);
});
