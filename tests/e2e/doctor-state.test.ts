/** doctor where something of VMs is broken, or was left by what nobody knows any more. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { assertFound, examine, SETTLING } from "../support/doctor.ts";
import { Host } from "../support/host.ts";
import { eventually, ROOT } from "../support/machine.ts";
import { END_DHCP, reboot } from "../support/reboot.ts";
import { ResidentServer } from "../support/resident.ts";

const RECORD = "/var/lib/tapkit/vms/web.json";

/** A host with a VM "web", whose DHCP is served. */
async function attached(...args: string[]): Promise<Host> {
  const host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", ...args);
  await host.awaitDhcp();
  return host;
}

Deno.test("doctor: a record that is damaged", async () => {
  await using host = await attached();
  await host.writeFile(RECORD, "{", 0o600);
  await assertFound(host, {
    failed: ["records"],
    detail: /the record .*web.json is not JSON/,
    mend: /move the file away, then run attach-vm web --remove/,
    fixed: {},
    left: ["records"],
  });
});

Deno.test("doctor: a change that was cut off", async () => {
  await using host = await attached();
  const { at, ...record } = JSON.parse(await host.readFile(RECORD));
  const changing = { ...record, is: "changing", from: at };
  await host.writeFile(RECORD, JSON.stringify(changing), 0o600);
  await assertFound(host, {
    failed: ["interrupted changes"],
    detail: /VM "web" was left half removed/,
    mend: /attach-vm --restore, or attach-vm web --remove/,
    fixed: { "interrupted changes": /took away what was left of VM "web"/ },
  });
  assertEquals((await host.tapkit("attach-vm", "--list")).json, []);
});

Deno.test("doctor: rules that somebody flushed, and a reboot", async () => {
  await using host = await attached("--ports", "8080:80");
  await host.sh("nft delete table inet tapkit");
  await assertFound(host, {
    failed: ["VMs"],
    detail: /VM "web": the nftables table "inet tapkit" is missing/,
    mend: /run attach-vm web$/,
    fixed: { VMs: /repaired VM "web"/ },
  });
  await reboot(host);
  const { of, failed } = await examine(host);
  assertEquals(failed.filter((name) => name !== "resident"), ["VMs", "DHCP"]);
  assertMatch(of("VMs").detail, /VM "web": .*tapkit-web.* is gone|is missing/);
  const repaired = await examine(host, { args: ["--fix"] });
  assertEquals(repaired.of("VMs").fixed, ['restored VM "web"']);
  assertEquals(repaired.of("DHCP").fixed, ["started the DHCP server"]);
  assertEquals(repaired.of("VMs").ok && repaired.of("DHCP").ok, true);
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);
});

Deno.test("doctor: a TAP that its VMM would have to open again is left to the person", async () => {
  await using host = await attached();
  await host.sh("ip -n tapkit-web link delete vm_eth0");
  const { of } = await examine(host, { args: ["--fix"] });
  assertEquals([of("VMs").ok, of("VMs").fixed?.length ?? 0], [false, 0]);
  assertMatch(of("VMs").mend, /attach-vm web: its VMM has to open its TAP again/);
});

Deno.test("doctor: an attach-vm -- VMM that was killed", async () => {
  await using host = await Host.create();
  await host.addLan();
  const script = `${ROOT}/scripts/attach-vm.ts`;
  const words = ["run", "-A", script, "web", "--", "sleep", "1000"];
  const vmm = host.spawn(Deno.execPath(), words);
  await eventually(20_000, "the VMM runs", async () => {
    return (await host.run("pgrep", ["-x", "sleep"])).code === 0;
  });
  vmm.kill("SIGKILL");
  await vmm.status;
  await host.sh("pkill -KILL -x sleep; while pgrep -x sleep >/dev/null; do sleep 0.02; done");
  await host.awaitDhcp();
  const before = await host.snapshot();
  const { of } = await examine(host);
  await host.assertRestored(before, { strict: true, except: SETTLING });
  assertEquals(of("VMMs that ended").ok, false);
  assertMatch(of("VMMs that ended").mend, /attach-vm web --remove, or attach-vm --gc/);
});

Deno.test("doctor: a mapped address whose rules are gone", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("map-port", "--to", "192.0.2.2", "8080:80");
  await host.sh("nft flush map inet tapkit ports4");
  await assertFound(host, {
    failed: ["mapped addresses"],
    detail: /192.0.2.2: the mapping of 0.0.0.0:8080\/tcp is missing/,
    mend: /attach-vm --restore/,
    fixed: { "mapped addresses": /restored the ports of 192.0.2.2/ },
  });
});

Deno.test("doctor: a bridge with a smaller MTU than a VM on it", async () => {
  await using host = await attached();
  await host.sh("ip link set ignite0 mtu 1300");
  await assertFound(host, {
    failed: ["MTU"],
    detail: /eth0 of VM "web" has an MTU of 1500 bytes, and "ignite0".* one of 1300/,
    mend: /ip link set ignite0 mtu 1500/,
  });
});

Deno.test("doctor: no DHCP server", async () => {
  await using host = await attached();
  // The server's thread may be in the VM's namespace for a moment.
  await eventually(10_000, "the DHCP server is gone", async () => {
    await host.sh(END_DHCP);
    return (await host.run("pgrep", ["-f", "[s]erve-dhcp"])).code !== 0;
  });
  // A new record waits for a server to start.
  await host.sh(`touch -d "1 minute ago" ${RECORD}`);
  const { of, failed } = await examine(host);
  assertEquals(failed, ["resident", "DHCP"]);
  assertMatch(of("resident").detail, /nothing answers at \/run\/tapkit\/tapkit.sock/);
  assertMatch(of("DHCP").detail, /no DHCP server runs for the VMs of \/var\/lib\/tapkit/);
  const repaired = await examine(host, { args: ["--fix"] });
  assertEquals(repaired.of("DHCP"), {
    name: "DHCP",
    ok: true,
    detail: "is served",
    mend: "",
    fixed: ["started the DHCP server"],
  });
});

Deno.test("doctor: the resident answers, and one of another state directory", async () => {
  await using host = await Host.create();
  await host.addLan();
  await using server = await ResidentServer.start(host);
  await server.client.attachVm({ name: "web" });
  const { of, failed } = await examine(host);
  assertEquals(failed, []);
  assertMatch(of("resident").detail, /^version \S+ \(pid \d+\) answers, and knows 1 VM$/);
  assertMatch(of("descriptors").detail, /^the resident \(pid \d+\) may open/);
  const other = await examine(host, { args: ["--state-dir", "/tmp/other"] });
  assertMatch(other.of("resident").detail, /serves \/var\/lib\/tapkit, not \/tmp\/other/);
  assertMatch(other.of("resident").mend, /--state-dir \/tmp\/other/);
  await server.client.removeVm("web");
});

Deno.test("doctor: what a record that was lost leaves, and --fix takes it all away", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80", "--isolated");
  await host.awaitDhcp();
  await host.sh(`rm ${RECORD}`);
  const { failed, of } = await examine(host);
  assertEquals(failed, [
    "stale namespaces",
    "stale addresses",
    "stale mappings",
    "stale settings",
    "stale links",
  ]);
  assertMatch(of("stale namespaces").detail, /the namespace tapkit-web has no record/);
  assertMatch(of("stale addresses").detail, /172.18.0.2 of network "ignite-cni-bridge" is held by/);
  assertMatch(of("stale mappings").detail, /the firewall has rules of web\/eth0/);
  assertMatch(of("stale settings").detail, /net.ipv4.ip_forward is not as it was/);
  assertMatch(of("stale links").detail, /link "ignite0" was made by tapkit|link "veth/);
  const repaired = await examine(host, { args: ["--fix"] });
  assertEquals(repaired.failed, []);
  assertEquals(repaired.of("stale namespaces").fixed, ['took away what was left of VM "web"']);
  await host.awaitGone("/var/lib/tapkit");
  await host.assertRestored(before);
});

Deno.test("doctor: what was left is taken away piece by piece too", async (t) => {
  await using host = await attached("--ports", "8080:80");
  const cases: Readonly<Record<string, [arrange: string, detail: RegExp, fixed: RegExp]>> = {
    "stale addresses": [
      "printf '%s\\r\\neth0' $(printf ghost | sha256sum | cut -d' ' -f1) " +
      ">/var/lib/cni/networks/ignite-cni-bridge/172.18.7.7",
      /172.18.7.7 of network "ignite-cni-bridge" is held by [0-9a-f]{12}, which is no VM's/,
      /released 172.18.7.7/,
    ],
    "stale mappings": [
      `nft add element inet tapkit ports4 '{ tcp . 9999 comment "ghost/eth0" : 172.18.7.7 . 80 }'`,
      /the firewall has rules of ghost\/eth0, which has no record/,
      /took away the rules of ghost\/eth0/,
    ],
    "stale links": [
      "ip link add ghost type veth peer name ghost1; ip link set ghost alias tapkit:0123:eth0",
      /link "ghost" was made by tapkit, and no recorded VM uses it/,
      /deleted link "ghost"/,
    ],
  };
  for (const [name, [arrange, detail, fixed]] of Object.entries(cases)) {
    await t.step(name, async () => {
      await host.sh(arrange);
      await assertFound(host, { failed: [name], detail, mend: /./, fixed: { [name]: fixed } });
    });
  }
});

Deno.test("doctor: a TAP in a namespace that was given, and one that is used", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("ip netns add given");
  await host.mustTapkit("attach-vm", "web", "--netns", "/run/netns/given");
  await host.awaitDhcp();
  await host.sh(`rm ${RECORD}`);
  const found = await examine(host);
  assertMatch(
    found.of("stale links").detail,
    /"vm_eth0" in the namespace given was made by tapkit/,
  );
  assertMatch(found.of("stale links").mend, /ip -n given link delete vm_eth0/);
  {
    await using _user = host.spawn("sleep", ["1000"], { netns: "given" });
    await eventually(
      5000,
      "it runs",
      async () => (await host.run("pgrep", ["-x", "sleep"])).code === 0,
    );
    const used = await examine(host);
    assertMatch(used.of("stale links").detail, /sleep \(pid \d+\) is there/);
  }
  const repaired = await examine(host, { args: ["--fix"] });
  assertMatch(repaired.of("stale links").fixed!.join(), /deleted link "vm_eth0"/);
  assertEquals(repaired.failed, []);
  const links = await host.sh("ip -n given -o link");
  assert(!links.includes("vm_eth0"), links);
});

Deno.test("doctor: a namespace without a record in which a process is stays", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("ip netns add tapkit-ghost");
  {
    await using _user = host.spawn("sleep", ["1000"], { netns: "tapkit-ghost" });
    await eventually(
      5000,
      "it runs",
      async () => (await host.run("pgrep", ["-x", "sleep"])).code === 0,
    );
    await assertFound(host, {
      failed: ["stale namespaces"],
      detail: /tapkit-ghost has no record, and sleep \(pid \d+\) uses it/,
      mend: /end that process, then run attach-vm ghost --remove/,
      fixed: {},
      left: ["stale namespaces"],
    });
  }
  await assertFound(host, {
    failed: ["stale namespaces"],
    detail: /the namespace tapkit-ghost has no record/,
    mend: /attach-vm ghost --remove/,
    fixed: { "stale namespaces": /took away what was left of VM "ghost"/ },
  });
});

Deno.test("doctor: VMs of another state directory are known, and repaired there", async () => {
  await using host = await Host.create();
  await host.addLan();
  const there = ["--state-dir", "/var/lib/other"];
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80", ...there);
  await host.awaitDhcp("/var/lib/other");
  assertEquals((await examine(host)).failed, []);
  await host.sh("nft delete table inet tapkit");
  await assertFound(host, {
    failed: ["VMs"],
    detail: /VM "web": the nftables table "inet tapkit" is missing/,
    mend: /run attach-vm web --state-dir \/var\/lib\/other$/,
    fixed: { VMs: /repaired VM "web"/ },
  });
  assertEquals((await host.tapkit("attach-vm", "web", "--check", ...there)).code, 0);
  await host.sh("test ! -e /var/lib/tapkit/vms/web.json");
});

Deno.test("doctor: beside commands that attach and remove VMs, --fix harms none of them", async () => {
  await using host = await attached();
  const names = Array.from({ length: 4 }, (_, number) => `vm${number}`);
  let busy = true;
  const change = async (name: string) => {
    for (let round = 0; round < 4; round++) {
      await host.mustTapkit("attach-vm", name);
      await host.mustTapkit("attach-vm", name, "--check");
      await host.mustTapkit("attach-vm", name, "--remove");
    }
    await host.mustTapkit("attach-vm", name);
  };
  const fixed: string[] = [];
  const repair = async () => {
    while (busy) {
      const { checks } = await examine(host, { args: ["--fix"] });
      fixed.push(...checks.flatMap((check) => check.fixed ?? []));
    }
  };
  const changing = Promise.all(names.map(change)).finally(() => busy = false);
  await Promise.all([changing, repair()]);
  assertEquals(fixed, []);
  for (const name of ["web", ...names]) await host.mustTapkit("attach-vm", name, "--check");
});
