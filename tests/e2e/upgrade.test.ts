/**
 * A whole upgrade with a VM attached. There is no release yet: the earlier version is this one by another
 * number, whose record is then written as version 1 wrote it, and whose table gets another layout.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import deno from "../../deno.json" with { type: "json" };
import { openNetns } from "../../lib/sys/netns.ts";
import { type Change, connect } from "../../mod.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { eventually, ROOT } from "../support/machine.ts";
import { Peer } from "../support/peer.ts";
import { toRecord1 } from "../support/record-1.ts";

const OLD = "0.0.9";
const RECORD = "/var/lib/tapkit/vms/web.json";
const SOURCES = ["deno.json", "deno.lock", "install.ts", "lib", "mod.ts", "scripts", "types"];
/** Commands hand their work over to whoever has the usual socket. */
const HANDED = { env: { TAPKIT_SOCKET: "" } };
const PREFIX = "/usr/local";
const OLD_SOURCES = "/run/old";

/** Runs an installer; returns what it wrote or removed. */
async function install(host: Host, sources: string, ...args: string[]): Promise<unknown> {
  const words = ["run", "-A", `${sources}/install.ts`, "--prefix", PREFIX, ...args];
  return JSON.parse(await host.must(Deno.execPath(), words));
}

function withoutChanges({ changes: _, tapReplaced: __, ...record }: Record<string, unknown>) {
  return record;
}

/** What the resident that answers says of itself. */
async function residentHealth(host: Host): Promise<{ version: string; pid: number }> {
  using client = await connect({ socket: host.path("/run/tapkit/tapkit.sock") });
  return await client.health();
}

Deno.test("install.ts: an upgrade with a VM attached, whose connections go on", async (t) => {
  await using host = await Host.create();
  const lan = await host.addLan();
  const empty = await host.snapshot();
  const run = async (name: string, ...args: string[]) =>
    JSON.parse(await host.must(`${PREFIX}/bin/${name}`, args, HANDED));

  await host.must("mkdir", [OLD_SOURCES]);
  await host.must("cp", ["-r", ...SOURCES.map((name) => `${ROOT}/${name}`), OLD_SOURCES]);
  await host.writeFile(`${OLD_SOURCES}/deno.json`, JSON.stringify({ ...deno, version: OLD }));
  await install(host, OLD_SOURCES, "--bundle");
  // It does not repair what is made older below.
  await using _resident = host.spawn(`${PREFIX}/bin/serve`, ["--heal=off"], HANDED);
  await eventually(10_000, "the old resident answers", async () => {
    return (await residentHealth(host).catch(() => undefined))?.version === OLD;
  });
  const record = await run("attach-vm", "web", "--ports", "8080:80");

  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  using inside = openNetns(guest.netnsPath);
  using outside = openNetns(lan.netnsPath);
  await using server = await Peer.start(inside, "web");
  await server.serve("tcp", 80);
  await using client = await Peer.start(outside, "client");
  await client.ask("tcp", "192.0.2.1", 8080, "stream");
  const goesOn = async () => assertEquals((await client.say("stream")).server, "web");

  await t.step("the record and the table are made those of an earlier version", async () => {
    const { version: _, ...attachment } = JSON.parse(await host.readFile(RECORD));
    const record1 = toRecord1(attachment, { name: "web", ports: ["8080:80"] });
    await host.writeFile(RECORD, JSON.stringify(record1));
    const table = await host.sh("nft list table inet tapkit");
    assertMatch(table, /layout [0-9a-f]{8}/);
    const aged = table.replace(/layout [0-9a-f]{8}/, "layout 00000000");
    await host.writeFile("/run/aged.nft", `delete table inet tapkit\n${aged}`);
    await host.must("nft", ["-f", "/run/aged.nft"]);
    await goesOn();
  });
  await t.step("the new version is installed over it", async () => {
    await install(host, ROOT, "--bundle");
    assertEquals(
      await host.must(`${PREFIX}/bin/attach-vm`, ["--version"]),
      `attach-vm ${deno.version}\n`,
    );
    await goesOn();
  });
  await t.step("its commands take the VM over beside the old resident", async () => {
    const { changes, tapReplaced, ...again } = await run("attach-vm", "web");
    assertEquals([again, tapReplaced], [withoutChanges(record), undefined]);
    assertEquals(new Set(changes.map(({ layer }: Change) => layer)), new Set(["rules"]));
    assertEquals(await run("attach-vm", "web", "--check"), { vm: "web", problems: [] });
    await goesOn();
  });
  await t.step("the new resident comes in the old one's place", async () => {
    const { version, pid } = await residentHealth(host);
    assertEquals(version, OLD);
    await host.must("kill", [String(pid)]);
    await eventually(10_000, "the old resident ends", async () => {
      return (await host.run("kill", ["-0", String(pid)])).code !== 0;
    });
    await run("attach-vm", "web");
    await eventually(10_000, "the new resident answers", async () => {
      return (await residentHealth(host).catch(() => undefined))?.version === deno.version;
    });
    await guest.dhcp();
    await goesOn();
  });
  await t.step("a port is mapped, and nothing is left of either in the end", async () => {
    assertEquals((await run("map-port", "web", "8081:80")).ports.length, 2);
    assertEquals(JSON.parse(await host.readFile(RECORD)).version, 2);
    await client.ask("tcp", "192.0.2.1", 8081);
    await goesOn();
    await client.close("stream");
    assertEquals(await run("attach-vm", "web", "--remove"), { vm: "web", removed: true });
    await install(host, ROOT, "--uninstall");
    await host.must("rm", ["-r", "/run/aged.nft", OLD_SOURCES]);
    await host.assertRestored(empty);
  });
});
