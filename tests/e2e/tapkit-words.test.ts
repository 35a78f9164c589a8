/** What `tapkit` does beside the scripts: ls, inspect, rm, events. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { scriptWords } from "../support/bundle.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { eventually } from "../support/machine.ts";
import { ResidentServer } from "../support/resident.ts";

/** What a command prints on a terminal. */
async function onTerminal(host: Host, env: Record<string, string>, ...args: string[]) {
  const words = [Deno.execPath(), ...scriptWords("tapkit"), ...args].map((word) => `'${word}'`);
  const command = `stty columns 120; ${words.join(" ")}`;
  const { stdout } = await host.run("script", ["-qec", command, "/dev/null"], { env });
  return stdout.replaceAll("\r\n", "\n");
}

Deno.test("tapkit ls: a line of JSON for each VM in a pipe, a table on a terminal", async () => {
  await using host = await Host.create();
  await host.addLan();
  assertEquals(await host.tapkit("tapkit", "ls").then(({ code, stdout }) => [code, stdout]), [
    0,
    "",
  ]);
  const { json: [record] } = await host.mustTapkit(
    ...["attach-vm", "web", "--ports", "8080:80", "--ports", "127.0.0.1:53:53/udp"] as const,
  );
  await host.mustTapkit("attach-vm", "db");
  await host.awaitDhcp();
  const before = await host.snapshot();
  {
    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
  }
  // The server writes down who asked once in a second.
  await eventually(10_000, "the lease is known", async () => {
    return (await host.tapkit("tapkit", "ls")).json.some(({ leased }) => leased !== null);
  });
  const { json } = await host.mustTapkit("tapkit", "ls");
  assertEquals(
    json.map(({ name, state, addresses, networks, leased }) => {
      return [name, state, addresses, networks, leased === null];
    }),
    [
      ["db", "attached", ["172.18.0.3"], ["ignite-cni-bridge"], true],
      ["web", "attached", ["172.18.0.2"], ["ignite-cni-bridge"], false],
    ],
  );
  assertEquals(json[1].ports, record.ports);
  assert(Math.abs(Date.now() - Date.parse(json[1].since)) < 60_000, json[1].since);

  const table = (await host.mustTapkit("tapkit", "ls", "--output", "table")).stdout.split("\n");
  assertEquals(table.length, 4);
  assertMatch(table[0]!, /^NAME +STATE +ADDRESSES +PORTS +NETWORK +AGE +LEASE$/);
  assertMatch(table[1]!, /^db +attached +172.18.0.3 +- +ignite-cni-bridge +\d+s +-$/);
  assertMatch(
    table[2]!,
    /^web +attached +172.18.0.2 +8080:80, 127.0.0.1:53:53\/udp +ignite-cni-bridge +\d+s +\d+s ago$/,
  );

  const shown = await onTerminal(host, {}, "ls");
  assertMatch(shown, /^NAME +STATE /);
  assert(!shown.includes("\x1b"), "NO_COLOR is heeded");
  const coloured = await onTerminal(host, { NO_COLOR: "", TERM: "xterm" }, "ls");
  assertStringIncludes(coloured, "web   \x1b[32mattached\x1b[0m  172.18.0.2");
  assert(!(await onTerminal(host, { NO_COLOR: "", TERM: "dumb" }, "ls")).includes("\x1b"));

  await host.sh("ip netns delete tapkit-db; echo { >/var/lib/tapkit/vms/torn.json");
  const states = (await host.mustTapkit("tapkit", "ls")).json.map((
    { name, state },
  ) => [name, state]);
  assertEquals(states, [["db", "lost"], ["torn", "unreadable"], ["web", "attached"]]);
  const bad = await onTerminal(host, { NO_COLOR: "", TERM: "xterm" }, "ls");
  assertStringIncludes(bad, "torn  \x1b[31munreadable\x1b[0m");
  await host.sh("rm /var/lib/tapkit/vms/torn.json");
  assert(before.includes("netns tapkit-db"));
});

Deno.test("tapkit ls: a VM that runs, with its process, and one that was cut off", async () => {
  await using host = await Host.create();
  await host.addLan();
  await using vmm = host.spawn(Deno.execPath(), [
    ...[...scriptWords("attach-vm"), "web", "--", "sh", "-c", "echo up; exec sleep 1000"],
  ]);
  await vmm.line((line) => line === "up");
  const { json: [running] } = await host.mustTapkit("tapkit", "ls");
  assertEquals(running.state, "running");
  assertEquals((await host.sh(`cat /proc/${running.pid}/comm`)).trim(), "sleep");
  const table = (await host.mustTapkit("tapkit", "ls", "--output", "table")).stdout;
  assertMatch(table, new RegExp(`^web {3}running \\(${running.pid}\\) `, "m"));
  // It looked, and that kept nobody from anything.
  assertMatch((await host.tapkit("attach-vm", "web", "--", "true")).stderr, /already running/);
});

Deno.test("tapkit inspect: the record, the state, and what differs", async () => {
  await using host = await Host.create();
  await host.addLan();
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  await host.awaitDhcp();
  const { json: [well] } = await host.mustTapkit("tapkit", "inspect", "web");
  const { state, since, leased, problems, ...rest } = well;
  assertEquals([state, leased, problems], ["attached", null, []]);
  assert(Date.parse(since) > 0);
  assertEquals(rest, record);
  await host.sh("nft delete table inet tapkit");
  const { json: [broken], code } = await host.tapkit("tapkit", "inspect", "web");
  assertMatch(broken.problems.join(), /nftables table "inet tapkit" is missing/);
  assertEquals(code, 0);
  const two = await host.tapkit("tapkit", "inspect", "web", "ghost");
  assertEquals([two.code, two.json.length], [1, 1]);
  assertMatch(two.stderr, /cannot inspect "ghost": it is not attached: see attach-vm --list/);
  const shown = await onTerminal(host, {}, "inspect", "web");
  assertMatch(shown, /^\{\n {2}"version": 1,\n {2}"vm": "web",/);
});

Deno.test("tapkit rm: removes VMs, as attach-vm --remove does", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  for (const name of ["a", "b", "c"]) await host.mustTapkit("attach-vm", name);
  await host.awaitDhcp();
  const one = await host.mustTapkit("tapkit", "rm", "a", "nobody");
  assertEquals(one.json, [{ vm: "a", removed: true }, { vm: "nobody", removed: false }]);
  assertEquals((await host.mustTapkit("tapkit", "rm", "--all")).json, [
    { vm: "b", removed: true },
    { vm: "c", removed: true },
  ]);
  await host.awaitGone("/var/lib/tapkit");
  await host.assertRestored(before);
});

Deno.test("tapkit events: what happens, as JSON and as lines, of all VMs or of one", async () => {
  await using host = await Host.create();
  await host.addLan();
  const none = await host.tapkit("tapkit", "events", "--socket", "/run/none.sock");
  assertEquals(none.code, 1);
  assertMatch(none.stderr, /^tapkit events: nothing answers at \/run\/none.sock: run serve/);

  await using server = await ResidentServer.start(host);
  const env = { TAPKIT_SOCKET: "" };
  const listen = (...args: string[]) =>
    host.spawn(Deno.execPath(), [...scriptWords("tapkit"), "events", ...args], { env });
  await using all = listen();
  await using web = listen("web", "--output", "table");
  // What happens before a listener is there is not told to it.
  await eventually(30_000, "both hear", async () => {
    await server.client.attachVm({ name: "web", ports: ["8080:80"] });
    await server.client.removeVm("web");
    return all.lines.length > 0 && web.lines.length > 0;
  });
  const isOf = (event: string, vm: string) => (line: string) =>
    line.includes(`"${event}"`) && line.includes(`"vm":"${vm}"`);
  const attached = JSON.parse(await all.line(isOf("attached", "web")));
  assertEquals([attached.event, attached.record.vm], ["attached", "web"]);
  const told = await web.line((line) => line.includes("attached"));
  assertMatch(told, /^\d\d:\d\d:\d\d +attached +web +172.18.0.\d+ +8080:80$/);
  await web.line((line) => /^\d\d:\d\d:\d\d +removed +web$/.test(line));
  await server.client.attachVm({ name: "other" });
  await server.client.removeVm("other");
  await all.line(isOf("removed", "other"));
  assertEquals(web.lines.filter((line) => !/ web\b/.test(line)), []);
  all.kill("SIGINT");
  const { code } = await all.status;
  assertEquals([code, await all.stderr], [130, "tapkit events: interrupted by SIGINT\n"]);
});

Deno.test("attach-vm: at a terminal it says what takes more than a second; elsewhere nothing", async () => {
  await using host = await Host.create();
  const plugin = `#!/bin/sh\n[ $CNI_COMMAND != ADD ] || { sleep 2.5; exit 1; }\n`;
  await host.writeFile("/opt/cni/bin/slow", plugin, 0o755);
  const list = { cniVersion: "1.0.0", name: "net", plugins: [{ type: "slow" }] };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", JSON.stringify(list));
  const words = [Deno.execPath(), ...scriptWords("attach-vm"), "web"];
  const command = words.map((word) => `'${word}'`).join(" ");
  const shown = await host.run("script", ["-qec", command, "/dev/null"]);
  const line = 'attach-vm: attach "web", 2 s';
  const gone = `\r${" ".repeat(line.length)}\r`;
  assertStringIncludes(shown.stdout, `${line}${gone}attach-vm: cannot attach "web": `);
  assertEquals(shown.code, 1);
  const quiet = await host.tapkit("attach-vm", "web");
  assertEquals([quiet.code, /\r|attach "web", /.exec(quiet.stderr)], [1, null]);
});
