/**
 * One VMM a VM: what runs is not cut off without a word, and only what a call attached goes with it.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { ROOT } from "../support/machine.ts";
import type { Running } from "../support/running.ts";
import { reboot } from "../support/reboot.ts";

const SCRIPT = ["run", "-A", `${ROOT}/scripts/attach-vm.ts`];
const STATE = "/var/lib/tapkit";

/** A VMM that says its pid, and runs until it is told to end. */
async function run(host: Host, ...args: string[]): Promise<{ vmm: Running; pid: string }> {
  const vmm = host.spawn(Deno.execPath(), [
    ...SCRIPT,
    ...args,
    ...["--", "sh", "-c", "trap 'kill $!; exit 7' TERM; sleep 1000 & echo $$; wait"],
  ]);
  const pid = await vmm.line((line) => /^\d+$/.test(line));
  // attach-vm may not have come to that yet.
  await host.sh(`until grep -q ":${pid}," ${STATE}/running/web; do sleep 0.01; done`);
  return { vmm, pid };
}

/** A program that has the TAP of a VM open, though it is not in its namespace. */
async function openTap(host: Host, name: string, netns: string): Promise<Running> {
  const { json: [record] } = await host.mustTapkit("attach-vm", name, "--list");
  const program = host.spawn(Deno.execPath(), [
    ...["eval", "--no-lock"],
    `import { openNetns, withNetns } from "${ROOT}/lib/sys/netns.ts";
     import { openTap } from "${ROOT}/lib/sys/tap.ts";
     withNetns(openNetns("${netns}"), () => openTap({ name: "${record.interfaces[0].tap}" }));
     console.log(Deno.pid);
     setTimeout(() => {}, 60000);`,
  ]);
  await program.line(() => true);
  return program;
}

/** Ends a process when it is disposed of, whoever its parent is by then. */
const ending = (host: Host, pid: string): AsyncDisposable => ({
  [Symbol.asyncDispose]: async () =>
    void await host.run("sh", ["-c", `pkill -9 -P ${pid}; kill -9 ${pid}`]),
});

const isAttached = async (host: Host, name: string) =>
  (await host.mustTapkit("attach-vm", "--list")).json.some(({ vm }) => vm === name);

Deno.test("attach-vm -- VMM: a VM that runs is refused by name and pid, and keeps its network", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const before = await host.snapshot();
  const { vmm, pid } = await run(host, "web", "--ports", "8080:80");
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--list");
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await guest.serveHttp(80, "still there");

  const twice = await host.tapkit("attach-vm", "web", "--ports", "9090:80", "--", "true");
  assertEquals(twice.code, 125);
  assertMatch(
    twice.stderr,
    new RegExp(`"web" is already running \\(pid ${pid}\\): end that process first`),
  );
  const removed = await host.tapkit("attach-vm", "web", "--remove");
  assertEquals(removed.code, 1);
  assertMatch(removed.stderr, new RegExp(`it is running \\(pid ${pid}\\), .* use --force`));
  assertEquals((await host.mustTapkit("attach-vm", "--gc")).json, []);
  assertEquals((await host.mustTapkit("attach-vm", "web", "--list")).json, [record]);
  assertEquals((await host.mustTapkit("attach-vm", "web", "--check")).json[0].problems, []);
  assertEquals((await peer.fetch("http://192.0.2.1:8080/")).body, "still there");
  // What changes live still does, and the attachment still goes with the VMM.
  await host.mustTapkit("attach-vm", "web", "--ports", "8081:80");
  assertEquals((await peer.fetch("http://192.0.2.1:8081/")).body, "still there");
  await guest[Symbol.asyncDispose]();
  vmm.kill("SIGTERM");
  assertEquals((await vmm.status).code, 7);
  await host.assertRestored(before);
});

Deno.test("attach-vm --remove --force: takes the network from a VMM, whose end then takes nothing", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const { vmm } = await run(host, "web");
  assertEquals((await host.mustTapkit("attach-vm", "web", "--remove", "--force")).json, [
    { vm: "web", removed: true },
  ]);
  // Somebody else's by now.
  const { json: [record] } = await host.mustTapkit("attach-vm", "web");
  vmm.kill("SIGTERM");
  assertEquals((await vmm.status).code, 7);
  assertEquals((await host.mustTapkit("attach-vm", "web", "--check")).json[0].problems, []);
  assertEquals((await host.mustTapkit("attach-vm", "web", "--list")).json, [record]);
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm -- VMM: what was attached before stays when the VMM ends", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  await host.mustTapkit("attach-vm", "web", "--", "true");
  assertEquals((await host.mustTapkit("attach-vm", "web", "--list")).json, [record]);
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm --keep: the attachment stays, with its address and MAC for the next start", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const start = (...args: string[]) =>
    host.mustTapkit("attach-vm", "web", ...args, "--", "echo", "{ip}", "{mac}");
  const first = (await start("--keep")).stdout;
  assert(await isAttached(host, "web"));
  // Others come meanwhile.
  await host.mustTapkit("attach-vm", "other");
  assertEquals((await start("--keep")).stdout, first);
  assertEquals((await start()).stdout, first);
  assert(await isAttached(host, "web"));
  await host.mustTapkit("attach-vm", "web", "other", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm -- VMM: after its call was killed the VMM is still known, then the attachment is the next one's", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const { vmm, pid } = await run(host, "web");
  await using _vmm = ending(host, pid);
  vmm.kill("SIGKILL");
  await vmm.status;
  const twice = await host.tapkit("attach-vm", "web", "--", "true");
  assertEquals(twice.code, 125);
  assertMatch(twice.stderr, new RegExp(`already running \\(pid ${pid}\\)`));
  assertEquals((await host.tapkit("attach-vm", "web", "--remove")).code, 1);
  assertEquals((await host.mustTapkit("attach-vm", "--gc")).json, []);
  await host.must("kill", [pid]);
  await host.sh(`while kill -0 ${pid} 2>/dev/null && ! grep -q 'State:.Z' /proc/${pid}/status; do
    sleep 0.05; done`);
  // It comes back as it was, but goes with the next VMM, or by --gc.
  assertEquals((await host.mustTapkit("attach-vm", "--restore")).json.length, 1);
  await host.mustTapkit("attach-vm", "web", "--", "true");
  await host.assertRestored(before);

  const other = await run(host, "web");
  await using _other = ending(host, other.pid);
  other.vmm.kill("SIGKILL");
  await reboot(host);
  await _other[Symbol.asyncDispose]();
  assertEquals((await host.mustTapkit("attach-vm", "--gc")).json, [{ vm: "web", removed: true }]);
  await host.awaitGone(STATE);
});

Deno.test("attach-vm: who has the TAP open is named before it loses its network", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  // Both TAPs have one name; the other's user does not count.
  await host.mustTapkit("attach-vm", "web", "other");
  await using neighbour = await openTap(host, "other", "/run/netns/tapkit-other");
  assertEquals((await host.mustTapkit("attach-vm", "web", "--", "true")).code, 0);
  await using program = await openTap(host, "web", "/run/netns/tapkit-web");
  const pid = program.lines[0];
  const named = new RegExp(`deno \\(pid ${pid}\\)`);
  const twice = await host.tapkit("attach-vm", "web", "--", "true");
  assertEquals(twice.code, 125);
  assertMatch(twice.stderr, new RegExp(`"web" is already running \\(pid ${pid}\\)`));
  // A mend that makes the TAP anew says so; one that does not, says nothing.
  await host.sh("nft flush ruleset");
  assertEquals(/has open/.test((await host.mustTapkit("attach-vm", "web")).stderr), false);
  await host.sh("ip -n tapkit-web link set vm_eth0 mtu 1400");
  const mended = await host.mustTapkit("attach-vm", "web");
  assertMatch(mended.stderr, /the TAP that .* has open is made anew, and has to be opened again/);
  assertMatch(mended.stderr, named);
  await using again = await openTap(host, "web", "/run/netns/tapkit-web");
  await host.sh(`rm ${STATE}/vms/web.json`);
  const removed = await host.mustTapkit("attach-vm", "web", "--remove");
  assertMatch(removed.stderr, new RegExp(`deno \\(pid ${again.lines[0]}\\) has the TAP of "web"`));
  // No path leads to its namespace, which lives on.
  await host.sh("ip netns delete tapkit-other");
  const collected = await host.mustTapkit("attach-vm", "--gc");
  assertEquals(collected.json, [{ vm: "other", removed: true }]);
  assertMatch(collected.stderr, new RegExp(`deno \\(pid ${neighbour.lines[0]}\\) has the TAP of`));
  for (const one of [neighbour, program, again]) await one[Symbol.asyncDispose]();
  await host.assertRestored(before);
});

Deno.test("attach-vm --user: the VMM is that user in its groups, opens its TAP, and has nothing of root", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.sh(
    "useradd --uid 4321 --home-dir /tmp --no-create-home vmm; groupadd --gid 4322 kvms",
  );
  await host.sh("usermod --append --groups kvms vmm; chmod 666 /dev/net/tun");
  const look = "id -u; id -g; id -G; echo $HOME $USER; grep -E '^Cap(Prm|Eff|Amb)|^Groups' " +
    "/proc/self/status; readlink /proc/self/ns/net >/dev/null && echo net";
  const cases: [user: string, lines: string[]][] = [
    ["vmm", ["4321", "4321", "4321 4322", "/tmp vmm"]],
    ["4321", ["4321", "4321", "4321 4322", "/tmp vmm"]],
    ["vmm:kvms", ["4321", "4322", "4322", "/tmp vmm"]],
    ["4329:4322", ["4329", "4322", "4322", "/root root"]],
  ];
  for (const [user, lines] of cases) {
    const { stdout } = await host.mustTapkit(
      "attach-vm",
      ...["web", "--user", user, "--", "sh", "-c", look],
      { env: { HOME: "/root", USER: "root" } },
    );
    const printed = stdout.trimEnd().split("\n");
    assertEquals(printed.slice(0, 4), lines, user);
    for (const set of ["CapPrm", "CapEff", "CapAmb"]) {
      assert(printed.includes(`${set}:\t0000000000000000`), `${user}: ${stdout}`);
    }
  }
  // TUNSETIFF of a TAP without a header.
  const open = `open(F, "+<", "/dev/net/tun"); $request = pack("a16 S x22", "vm_eth0", 0x1002);
    print ioctl(F, 0x400454ca, $request) ? "open" : $!`;
  const opened = async (...flags: string[]) => {
    const vmm = ["--", "perl", "-e", open];
    return (await host.mustTapkit("attach-vm", "web", "--user", "vmm", ...flags, ...vmm)).stdout;
  };
  const refusal = "Operation not permitted";
  assertEquals([await opened(), await opened("--tap-owner", "root")], ["open", refusal]);

  await host.writeFile("/tmp/private/vmm", "#!/bin/sh\n", 0o700);
  const refused: [args: string[], code: number, message: RegExp][] = [
    [["--user", "nobody-such", "--", "true"], 2, /user "nobody-such" is not in \/etc\/passwd/],
    [["--user", "4329", "--", "true"], 2, /no group of user 4329 is in \/etc\/passwd: give one/],
    [
      ["--user", "vmm", "--", "/tmp/private/vmm"],
      126,
      /cannot be executed: .*name a file that user vmm may execute/,
    ],
    [["--user", "vmm"], 2, /--user is for -- VMM/],
    [["--keep"], 2, /--keep is for -- VMM/],
    [["--force"], 2, /--force is for --remove/],
  ];
  for (const [args, code, message] of refused) {
    const outcome = await host.tapkit("attach-vm", "web", ...args);
    assertEquals(outcome.code, code, outcome.stderr);
    assertMatch(outcome.stderr, message);
  }
  // A program of anybody's, started in a directory of root's.
  const away = await host.run("sh", [
    ...["-c", 'mkdir -m 700 /tmp/roots && cd /tmp/roots && exec "$@"', "sh", Deno.execPath()],
    ...[...SCRIPT, "web", "--user", "vmm:kvms", "--", "true"],
  ]);
  assertEquals(away.code, 126, away.stderr);
  assertMatch(
    away.stderr,
    /"true" cannot be executed: user vmm cannot enter the current directory \/tmp\/roots: change/,
  );
  await host.assertRestored(before, { except: [/\/(etc|tmp|var\/(log|mail))\//] });
});
