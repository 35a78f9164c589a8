/**
 * The user data of install.ts --cloud-init: its schema, and a real Debian that becomes a host by it.
 *
 * @module
 */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { CloudDisk, type CloudGuest } from "../support/cloud-guest.ts";
import { compile, whyNoCompiler } from "../support/compiled.ts";
import { Host } from "../support/host.ts";
import { ROOT } from "../support/machine.ts";

function userData(...flags: string[]): { code: number; out: string; err: string } {
  const args = ["run", "-A", `${ROOT}/install.ts`, "--cloud-init", ...flags];
  const { code, stdout, stderr } = new Deno.Command(Deno.execPath(), { args }).outputSync();
  const [out = "", err = ""] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
  return { code, out, err };
}

const BINARY = ["--binary-url", "https://example.org/tapkit?a='b'", "--sha256", "0f".repeat(32)];

Deno.test("install.ts --cloud-init: cloud-init finds nothing wrong with any document", async () => {
  await using host = await Host.create();
  const documents = [
    [...BINARY],
    [...BINARY, "--vm", "web", "--ports", "8080:80", "--ports", "[2001:db8::1]:53:53/udp"],
    [...BINARY, "--network", "weave", "--peers", "192.0.2.1,host-2.example.org"],
    ["--vm", "web"],
    ["--network", "weave"],
  ];
  for (const flags of documents) {
    const { code, out, err } = userData(...flags);
    assertEquals(code, 0, err);
    await host.writeFile("/tmp/user-data", out);
    const said = await host.must("cloud-init", ["schema", "--config-file", "/tmp/user-data"]);
    assertStringIncludes(said, "Valid cloud-config");
    // What a shell is given, it can read.
    await host.sh(`python3 - <<'END'
import subprocess, yaml
for command in yaml.safe_load(open("/tmp/user-data"))["runcmd"]:
    assert command[:2] == ["sh", "-euc"], command
    subprocess.run(["sh", "-n"], input=command[2].encode(), check=True)
END`);
  }
});

Deno.test("install.ts --cloud-init: refuses what the instance could not use", () => {
  for (
    const [flags, said] of [
      [["--binary-url", "https://example.org/tapkit"], "--binary-url and --sha256 go together"],
      [["--binary-url", "x", "--sha256", "0f".repeat(32)], "is no address of a page"],
      [["--binary-url", "https://a/b", "--sha256", "0f"], "is no SHA-256"],
      [["--peers", "192.0.2.1"], "--peers is for --network weave"],
      [["--network", "weave", "--peers", "a b"], "is no list of hosts"],
      [["--ports", "8080:80"], "--ports is for --vm"],
      [["--vm", "-x", "--ports", "1:1"], "--vm has no value"],
      [["--vm", "a/b"], "a/b"],
      [["--vm", "web", "--ports", "80"], "80"],
      [["--network", "lan"], "use default or weave"],
      [["--systemd"], "--systemd does not go with --cloud-init"],
    ] as const
  ) {
    const { code, out, err } = userData(...flags);
    assertEquals([code, out], [2, ""], err);
    assertStringIncludes(err, said);
  }
});

Deno.test("install.ts --cloud-init: without a binary, the document's sources install themselves", async () => {
  await using host = await Host.create();
  await host.sh(`
    mkdir -p /run/local/{upper,work} /tmp/bin
    mount -t overlay overlay /usr/local \\
      -o lowerdir=/usr/local,upperdir=/run/local/upper,workdir=/run/local/work
    printf '#!/bin/sh\\n[ "$1 $2" = "-y deno@${Deno.version.deno}" ] && shift 2 && exec %s "$@"\\n' \\
      '${Deno.execPath()}' >/tmp/bin/npx
    chmod 755 /tmp/bin/npx`);
  const { out } = userData("--vm", "web", "--ports", "8080:80");
  await host.writeFile("/tmp/user-data", out);
  await host.addLan();
  // cloud-init's part of it.
  const said = await host.must("python3", [
    "-c",
    `
import base64, os, subprocess, yaml
config = yaml.safe_load(open("/tmp/user-data"))
assert config["packages"] == ["npm"], config["packages"]
for file in config["write_files"]:
    assert file["encoding"] == "b64"
    open(file["path"], "wb").write(base64.b64decode(file["content"]))
os.environ["PATH"] = "/tmp/bin:" + os.environ["PATH"]
for command in config["runcmd"]:
    subprocess.run(command, check=True)
`,
  ], { timeoutMs: 120_000 });
  const record = said.trim().split("\n").map((line) => JSON.parse(line)).find(({ vm }) =>
    vm === "web"
  );
  assertEquals(record.ports[0].hostPort, 8080);
  await host.must("/usr/local/bin/attach-vm", ["--check"]);
  await host.must("/usr/local/bin/attach-vm", ["web", "--remove"]);
});

const unable = await whyNoCompiler();

Deno.test({
  name: "install.ts --cloud-init: a real Debian becomes a host, and is one again after a reboot" +
    (unable === undefined ? "" : ` (${unable})`),
  ignore: unable !== undefined,
  async fn(t) {
    await using host = await Host.create();
    const binaries = await Deno.makeTempDir({ prefix: "tapkit-cloud-" });
    try {
      const made = await compile("tapkit", "--output", binaries);
      assert(made.success, made.err);
      const directory = `${binaries}/${Deno.build.arch}`;
      const bytes = await Deno.readFile(`${directory}/tapkit`);
      const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
      host.spawn("busybox", ["httpd", "-f", "-p", "127.0.0.1:8000", "-h", directory]);
      const { out } = userData(
        ...["--binary-url", "http://10.0.2.2:8000/tapkit", "--sha256", sum],
        ...["--vm", "web", "--ports", "8080:80"],
      );
      const disk = await CloudDisk.create(host, out);
      let before: Attached;
      {
        await using guest = await disk.boot();
        await t.step("cloud-init is done, and finds no error", async () => {
          const { stdout } = await guest.run("cloud-init status --wait --long");
          const log = await guest.must("tail -n 40 /var/log/cloud-init-output.log");
          assertMatch(stdout, /status: done/, `${stdout}\n${log}`);
        });
        await t.step("the VM is attached", async () => {
          before = await attached(guest);
        });
        await t.step("the units have no mounts of their own", () => seesMounts(guest));
        await t.step("a VMM as a service", () => startService(guest));
      }
      await using guest = await disk.boot();
      await t.step("after a reboot, the VM is as it was", async () => {
        await guest.must(`
          for i in $(seq 300); do systemctl -q is-active tapkit-restore && break; sleep 0.5; done
          systemctl is-active tapkit-restore`);
        assertEquals(await attached(guest), before!);
      });
      await t.step("the VMM runs again, in the VM's namespace", () => findService(guest));
      await t.step("systemd-sysctl takes nothing away", () => survivesSysctl(guest));
      await t.step("tapkit install --uninstall", () => uninstall(guest));
    } finally {
      await Deno.remove(binaries, { recursive: true });
    }
  },
});

interface Attached {
  readonly address: string;
  readonly mac: string;
  readonly ports: readonly unknown[];
  readonly nameservers: readonly string[];
}

async function attached(guest: CloudGuest): Promise<Attached> {
  const { interfaces: [eth0], ports, dns } = JSON.parse(await guest.must("attach-vm web --list"));
  assertEquals(JSON.parse(await guest.must("attach-vm web --check")).problems, []);
  // systemd-resolved's own address is none for a guest.
  assertEquals(dns.nameservers, ["10.0.2.3"]);
  return {
    address: eth0.addresses[0].address,
    mac: eth0.mac,
    ports,
    nameservers: dns.nameservers,
  };
}

async function seesMounts(guest: CloudGuest): Promise<void> {
  await guest.must("systemctl is-active tapkit");
  const namespaces = await guest.must(`
    for pid in 1 $(systemctl show --value -p MainPID tapkit); do readlink /proc/$pid/ns/mnt; done`);
  const [host, service] = namespaces.split("\n");
  assertEquals(service, host);
  await guest.must("ip netns exec tapkit-web true");
}

/** A program in the place of a VMM that says where it is. */
async function startService(guest: CloudGuest): Promise<void> {
  await guest.must(`
    mkdir -p /etc/tapkit
    echo 'ATTACH=--ports 0:22' >/etc/tapkit/job.conf
    echo 'VMM=/etc/tapkit/job.sh {tap} {mac} two-words' >>/etc/tapkit/job.conf
    printf '#!/bin/sh\\necho "$@" >/run/job\\nip -o link show "$1" >>/run/job\\nexec sleep infinity\\n' \\
      >/etc/tapkit/job.sh
    chmod 755 /etc/tapkit/job.sh
    systemctl enable --now tapkit-vm@job`);
  await findService(guest);
}

async function findService(guest: CloudGuest): Promise<void> {
  const said = await guest.must(`
    for i in $(seq 300); do [ -s /run/job ] && break; sleep 0.2; done
    systemctl is-active tapkit-vm@job
    cat /run/job`);
  const [state, args, link] = said.split("\n");
  assertEquals(state, "active");
  assertMatch(args!, /^vm_eth0 [0-9a-f:]{17} two-words$/);
  assertStringIncludes(link!, "vm_eth0");
}

async function survivesSysctl(guest: CloudGuest): Promise<void> {
  const said = await guest.must(`
    printf '%s\\n' 'net.ipv4.ip_forward = 0' 'net.ipv4.conf.*.arp_ignore = 1' \\
      'net.ipv4.conf.*.forwarding = 0' >/etc/sysctl.d/99-zzz.conf
    systemctl restart systemd-sysctl
    for i in $(seq 100); do [ "$(sysctl -n net.ipv4.ip_forward)" = 1 ] && break; sleep 0.2; done
    sysctl -n net.ipv4.ip_forward net.ipv4.conf.ignite0.arp_ignore \\
      net.ipv4.conf.ignite0.forwarding net.ipv4.neigh.default.gc_thresh3`);
  const journal = await guest.must("journalctl -b -u tapkit -u tapkit-restore --no-pager");
  assertEquals(said.split("\n"), ["1", "0", "1", "16384"], `${said}\n${journal}`);
}

async function uninstall(guest: CloudGuest): Promise<void> {
  await guest.must("systemctl disable --now tapkit-vm@job; attach-vm --remove --all");
  await guest.must("tapkit install --uninstall");
  const left = await guest.must(`
    find /usr/local -type f -o -type l -not -path /usr/local/man
    find /etc/systemd -name '*tapkit*'
    systemctl list-unit-files --no-legend 'tapkit*' || :
    pgrep -a tapkit || :`);
  assertEquals(left, "");
}
