import { assertEquals, assertMatch } from "@std/assert";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { reboot } from "../support/reboot.ts";

const SECOND = JSON.stringify({
  cniVersion: "0.4.0",
  name: "second",
  plugins: [{
    type: "bridge",
    bridge: "br-second",
    isGateway: true,
    ipam: { type: "host-local", subnet: "10.9.9.0/24" },
  }],
});

Deno.test("attach-vm --restore: after a reboot every VM is what it was", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await host.mustTapkit("install-default-cni");
  await host.writeFile("/etc/cni/net.d/20-second.conflist", SECOND);
  const before = await host.snapshot();
  const attached = [
    ["web", "--ports", "8080:80", "--ports", "0:22", "--ip", "172.18.0.9"],
    ["old", "--mode", "dhcp-bridge", "--mtu", "1400"],
    [
      ...["two", "--network", "second", "--network", "ignite-cni-bridge"],
      ...["--mac", "02:00:00:00:00:07", "--plugins", "builtin"],
    ],
    ["given", "--netns", "/run/netns/mine"],
  ];
  await host.must("ip", ["netns", "add", "mine"]);
  const records = [];
  for (const args of attached) {
    records.push((await host.mustTapkit("attach-vm", ...args)).json[0]);
  }
  records.sort((a, b) => a.vm < b.vm ? -1 : 1);

  await reboot(host);
  // The one whose namespace is not tapkit's to make stays recorded; the others come back.
  const partly = await host.tapkit("attach-vm", "--restore");
  assertEquals(partly.code, 1, partly.stderr);
  assertEquals(partly.json, records.filter(({ vm }) => vm !== "given"));
  assertMatch(partly.stderr, /attach-vm: cannot restore "given": .*\/run\/netns\/mine/);

  await host.must("ip", ["netns", "add", "mine"]);
  const whole = await host.mustTapkit("attach-vm", "--restore");
  assertEquals(whole.json, records);
  const names = records.map(({ vm }) => vm);
  const check = await host.tapkit("attach-vm", ...names, "--check");
  assertEquals(check.json, names.map((vm) => ({ vm, problems: [] })));

  const web = records.find(({ vm }) => vm === "web");
  {
    await using guest = await NetnsGuest.start(host, web);
    const lease = await guest.dhcp();
    assertEquals([lease.ip, lease.router], ["172.18.0.9", ["172.18.0.1"]]);
    await guest.serveHttp(80, "back");
    assertEquals((await peer.fetch("http://192.0.2.1:8080/")).body, "back");
    const old = records.find(({ vm }) => vm === "old");
    await using other = await NetnsGuest.start(host, old);
    assertEquals((await other.dhcp()).ip, old.interfaces[0].addresses[0].address.split("/")[0]);
    assertEquals((await other.fetch("http://172.18.0.9/")).body, "back");
  }

  // With nothing to mend, nothing is said.
  const again = await host.mustTapkit("attach-vm", "--restore");
  assertEquals([again.json, again.stderr], [records, ""]);
  await host.mustTapkit("attach-vm", ...names, "--remove");
  await host.must("ip", ["netns", "delete", "mine"]);
  await host.assertRestored(before);
  assertEquals((await host.mustTapkit("attach-vm", "--restore")).json, []);
});

Deno.test("attach-vm --restore: a half attached VM is attached, a torn record reported", async () => {
  await using host = await Host.create();
  await host.addLan();
  const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ip", "172.18.0.7");
  await host.mustTapkit("attach-vm", "torn");
  const path = "/var/lib/tapkit/vms/web.json";
  const stored = JSON.parse(await host.readFile(path));
  // As a crash leaves it: before its first attachment was complete, and while it was being mended.
  for (const from of [{}, { from: stored.at }]) {
    const changing = { version: 2, is: "changing", ...from, to: stored.at };
    await host.writeFile(path, JSON.stringify(changing));
    await host.writeFile("/var/lib/tapkit/vms/torn.json", '{"version":');
    await reboot(host);
    const { code, json: [restored], stderr } = await host.tapkit("attach-vm", "--restore");
    assertEquals(code, 1, stderr);
    assertMatch(stderr, /cannot restore "torn": the record .*torn\.json is not JSON/);
    assertEquals(restored.interfaces[0].addresses, record.interfaces[0].addresses);
    assertEquals((await host.tapkit("attach-vm", "web", "--check")).json[0].problems, []);
  }
  assertEquals(
    (await host.mustTapkit("attach-vm", "--list")).json[0].interfaces[0].mac,
    record.interfaces[0].mac,
  );
});

Deno.test("attach-vm: after a reboot, no VM gets a port of one that is not back yet", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.mustTapkit("attach-vm", "one", "--ports", "8080:80");
  await host.mustTapkit("attach-vm", "two");
  await host.mustTapkit("map-port", "two", "8081:80");
  for (const gone of [() => reboot(host), () => host.must("nft", ["flush", "ruleset"])]) {
    await gone();
    // It makes the rules anew, without the others'.
    await host.mustTapkit("attach-vm", "new");
    for (const [port, owner] of [[8080, "one"], [8081, "two"]]) {
      for (const command of [["attach-vm", "new", "--ports"], ["map-port", "new"]] as const) {
        const [script, ...args] = command;
        const refused = await host.tapkit(script, ...args, `${port}:80`);
        assertEquals(refused.code, 1);
        assertMatch(refused.stderr, new RegExp(`${port}/tcp is already mapped to VM "${owner}"`));
      }
    }
    await host.mustTapkit("attach-vm", "--restore");
    const check = await host.tapkit("attach-vm", "one", "two", "new", "--check");
    assertEquals(check.code, 0, check.stdout);
  }
  await host.mustTapkit("attach-vm", "one", "two", "new", "--remove");
  await host.assertRestored(before);
});
