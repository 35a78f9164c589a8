/**
 * A VM's namespace is itself, not the path that once led there.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";
import { eventually, ROOT } from "../support/machine.ts";
import { reboot } from "../support/reboot.ts";
import { RecordingPlugins } from "../support/recording-plugin.ts";

const MINE = "/run/netns/mine";

/** In each of these another namespace is at the path by now, with links of the same names. */
const IMPOSTOR = `
  ip netns add mine
  for link in eth0 vm_eth0; do ip -n mine link add $link type bridge; done
  ip -n mine address add 203.0.113.5/24 dev eth0`;

const impostor = (host: Host) =>
  host.sh("ip -n mine -br link; ip -n mine -br address; nsenter --net=/run/netns/mine tc qdisc");

Deno.test("attach-vm --netns: another namespace at the path by now is left alone by every verb", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.must("ip", ["netns", "add", "mine"]);
  await host.mustTapkit("attach-vm", "web", "--netns", MINE, "--ports", "8080:80");
  // The guest's own lives on, as that of a process does.
  await host.must("mount", ["--bind", MINE, await host.sh("touch /tmp/kept; echo -n /tmp/kept")]);
  await host.sh(`ip netns delete mine; ${IMPOSTOR}`);
  const foreign = await impostor(host);

  const check = await host.tapkit("attach-vm", "web", "--check");
  assertEquals([check.code, check.json[0].problems.length], [3, 1]);
  assertMatch(check.json[0].problems[0], /\/run\/netns\/mine leads to another network namespace/);
  for (const args of [["web"], ["web", "--netns", MINE], ["--restore"]]) {
    const { code, stderr } = await host.tapkit("attach-vm", ...args);
    assertEquals(code, 1, stderr);
    assertMatch(stderr, /leads to another network namespace .* run attach-vm web --remove/);
  }
  assertEquals(await impostor(host), foreign);
  await host.sh("pkill -f '[s]erve.* --exit'");
  const serve = ["2", Deno.execPath(), "run", "-A", `${ROOT}/scripts/serve-dhcp.ts`];
  const { stderr } = await host.run("timeout", serve);
  assertMatch(stderr, /web\/eth0.* \/run\/netns\/mine is another network namespace now/);
  // The rules, the address and the host's end go all the same.
  assertEquals((await host.mustTapkit("attach-vm", "--gc")).json, [{ vm: "web", removed: true }]);
  assertEquals(await impostor(host), foreign);
  await host.sh("umount /tmp/kept; rm /tmp/kept; ip netns delete mine");
  await host.assertRestored(before);
});

Deno.test("attach-vm --remove: what is at the path of a VM's own namespace by now stays", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.mustTapkit("attach-vm", "web");
  await host.sh("ip netns delete tapkit-web; ip netns add tapkit-web");
  await host.sh("ip -n tapkit-web link add eth0 type bridge");
  const again = await host.tapkit("attach-vm", "web");
  assertEquals(again.code, 1);
  assertMatch(
    again.stderr,
    /tapkit-web leads to another network namespace .*: find out what uses it/,
  );
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.must("ip", ["-n", "tapkit-web", "link", "show", "eth0"]);
  await host.must("ip", ["netns", "delete", "tapkit-web"]);
  await host.assertRestored(before);
});

Deno.test("attach-vm: executed plugins are told that a namespace is gone, not of another one", async () => {
  using plugins = new RecordingPlugins("maker");
  plugins.behave(
    "maker",
    "ADD",
    `ip link add $CNI_IFNAME netns "$CNI_NETNS" type veth peer name host0 >&2
     echo '{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}]}'`,
  );
  await using host = await Host.create();
  const list = { cniVersion: "0.4.0", name: "net", plugins: [{ type: "maker" }] };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", JSON.stringify(list));
  await host.must("ip", ["netns", "add", "mine"]);
  const flags = ["--cni-bin-dir", plugins.binDir];
  await host.mustTapkit("attach-vm", "web", "--netns", MINE, ...flags);
  await host.sh(`ip netns delete mine; ${IMPOSTOR}`);
  const foreign = await impostor(host);
  // The machine's /tmp is an overlay.
  const written = `${host.upperPath("tmp")}${plugins.root.slice("/tmp".length)}`;
  plugins.calls(written);
  assertEquals((await host.tapkit("attach-vm", "web", "--check", ...flags)).code, 3);
  assertEquals((await host.tapkit("attach-vm", "web", ...flags)).code, 1);
  assertEquals(plugins.calls(written), []);
  await host.mustTapkit("attach-vm", "web", "--remove", ...flags);
  const calls = plugins.calls(written).map(({ verb, env }) => [verb, env.CNI_NETNS]);
  assertEquals(calls, [["DEL", ""]]);
  assertEquals(await impostor(host), foreign);
});

Deno.test("attach-vm --restore: after a reboot a given namespace is that at its path", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.must("ip", ["netns", "add", "mine"]);
  await host.mustTapkit("attach-vm", "web", "--netns", MINE);
  const sleeper = host.spawn("ip", ["netns", "exec", "mine", "sh", "-c", "echo $$; exec sleep 60"]);
  const pid = await sleeper.line(() => true);
  await host.must("ip", ["netns", "add", "other"]);
  const other = host.spawn("ip", ["netns", "exec", "other", "sh", "-c", "echo $$; exec sleep 60"]);
  const path = `/proc/${await other.line(() => true)}/ns/net`;
  await host.mustTapkit("attach-vm", "by-pid", "--netns", path);
  assert(Number(pid) > 0);
  await reboot(host);
  await host.must("ip", ["netns", "add", "mine"]);
  const { code, json, stderr } = await host.tapkit("attach-vm", "--restore");
  assertEquals([code, json.map(({ vm }) => vm)], [1, ["web"]]);
  // The number is that of another process by then, for all that anybody knows.
  assertMatch(stderr, /cannot restore "by-pid": .*leads to another network namespace/);
});

Deno.test("attach-vm --netns: the host's own is refused, whatever leads there", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("touch /run/netns/bound; mount --bind /proc/1/ns/net /run/netns/bound");
  await host.sh("ln -s /run/netns/bound /tmp/link");
  const before = await host.snapshot();
  for (const path of ["/proc/1/ns/net", "/proc/self/ns/net", "/run/netns/bound", "/tmp/link"]) {
    const { code, stderr } = await host.tapkit("attach-vm", "web", "--netns", path);
    assertEquals(code, 2, stderr);
    assertMatch(stderr, /is the network namespace of the host itself: name a namespace for the VM/);
  }
  await host.assertRestored(before, { strict: true });
});

Deno.test("attach-vm --netns: all paths to a namespace are one, and what is recorded does not depend on where it is read", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.must("ip", ["netns", "add", "n1"]);
  // /var is an overlay of the machine; /run is not.
  await host.sh("rm -rf /var/run; ln -s /run /var/run; ln -s /run/netns/n1 /tmp/elsewhere");
  const attach = `${Deno.execPath()} run -A ${
    new URL("../../scripts/attach-vm.ts", import.meta.url).pathname
  }`;
  const text = await host.sh(`cd /run/netns; ${attach} rel --netns n1 2>/dev/null`);
  const { changes: _, ...record } = JSON.parse(text);
  assertEquals(record.netns, "/run/netns/n1");
  for (const path of ["/var/run/netns/n1", "/run/netns/../netns/n1", "/tmp/elsewhere"]) {
    const { json } = await host.mustTapkit("attach-vm", "rel", "--netns", path);
    assertEquals(json, [record]);
  }
  assertEquals((await host.mustTapkit("attach-vm", "rel", "--check")).json[0].problems, []);
  await host.mustTapkit("attach-vm", "rel", "--remove");
});

Deno.test("attach-vm: directories given by relative paths are those of the caller, for the DHCP server too", async () => {
  await using host = await Host.create();
  await host.addLan();
  const attach = `${Deno.execPath()} run -A ${
    new URL("../../scripts/attach-vm.ts", import.meta.url).pathname
  }`;
  const flags = "--state-dir state --cni-conf-dir ./net.d --cni-bin-dir bin";
  await host.sh(
    `mkdir -p /tmp/there/real; cd /tmp/there; ln -s real state; ${attach} web ${flags}`,
  );
  await host.must("test", ["-f", "/tmp/there/real/vms/web.json"]);
  await host.must("test", ["-f", "/tmp/there/net.d/10-ignite.conflist"]);
  await eventually(5000, "the DHCP server serves that directory", async () => {
    return (await host.run("test", ["-f", "/tmp/there/real/serve-dhcp.lock"])).code === 0;
  });
  const command = await host.sh("tr '\\0' ' ' </proc/$(pgrep -f '[s]erve.* --exit')/cmdline");
  assertMatch(command, /--state-dir=\/tmp\/there\/state/);
  await host.sh(
    `cd /tmp; ${attach} web --remove ${flags.replaceAll(/ (?!--)(\.\/)?/g, " there/")}`,
  );
  // The link is the administrator's, and leads somewhere still.
  assertEquals(
    await host.sh("readlink /tmp/there/state; ls -d /tmp/there/real"),
    "real\n/tmp/there/real\n",
  );
});
