/**
 * The units that install.ts writes, and an installation of a whole host, to the last file.
 *
 * @module
 */

import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Host } from "../support/host.ts";
import { scriptWords } from "../support/bundle.ts";
import { eventually, ROOT } from "../support/machine.ts";

/** What a unit may say. None of these gives it mounts of its own, as PrivateTmp and many others do. */
const KEYS = {
  Unit: ["Description", "Documentation", "After", "Wants", "ConditionPathExists"],
  Service: [
    ...["Type", "RemainAfterExit", "Environment", "EnvironmentFile", "ExecStart"],
    ...["Restart", "RestartSec", "KillMode", "TimeoutStartSec", "TimeoutStopSec"],
    ...["LimitNOFILE", "SuccessExitStatus", "CapabilityBoundingSet"],
  ],
  Install: ["WantedBy"],
};

/** A host whose /usr/local is its own. */
async function hostToInstall(): Promise<Host> {
  const host = await Host.create();
  await host.sh(`
    mkdir -p /run/local/{upper,work}
    mount -t overlay overlay /usr/local \\
      -o lowerdir=/usr/local,upperdir=/run/local/upper,workdir=/run/local/work`);
  return host;
}

const install = async (host: Host, ...flags: string[]) =>
  JSON.parse(await host.must(Deno.execPath(), ["run", "-A", `${ROOT}/install.ts`, ...flags]));

/** Every file's kind, mode, owner, target and content. */
const FILES = `
  find /etc /usr/local /usr/lib/systemd /usr/lib/sysctl.d /usr/share/man \\
    -printf '%p %y %m %U:%G %l\\n' | sort
  find /etc /usr/local -type f -print0 | sort -z | xargs -0 sha256sum`;

Deno.test("install.ts --systemd: --uninstall leaves /etc, /usr/local and units as they were", async () => {
  await using host = await hostToInstall();
  const before = await host.sh(FILES);
  const { written } = await install(host, "--systemd");
  assertEquals(written.filter((path: string) => !path.startsWith("/usr/local/")), []);
  const wants = "/etc/systemd/system/multi-user.target.wants";
  for (const unit of ["tapkit.service", "tapkit-restore.service"]) {
    assertEquals(
      (await host.sh(`readlink ${wants}/${unit}`)).trim(),
      `/usr/local/lib/systemd/system/${unit}`,
    );
  }
  // Somebody had a VM started at boot.
  await host.must("systemctl", ["--root=/", "--quiet", "enable", "tapkit-vm@web"]);
  assertEquals(await install(host, "--check"), { prefix: "/usr/local", problems: [] });
  await host.sh(`rm ${wants}/tapkit.service`);
  const { code, stdout } = await host.run(
    Deno.execPath(),
    ["run", "-A", `${ROOT}/install.ts`, "--check"],
  );
  assertEquals([code, JSON.parse(stdout).problems], [3, ["tapkit.service is not enabled"]]);
  assertEquals((await install(host, "--systemd")).written, []);
  assertEquals((await install(host, "--check")).problems, []);

  await install(host, "--uninstall");
  assertEquals(await host.sh(FILES), before);
});

Deno.test("install.ts: the commands of an installation are found, and so are their manual pages", async () => {
  await using host = await hostToInstall();
  await install(host);
  const path = { env: { PATH: "/usr/local/bin:/usr/bin:/bin", LC_ALL: "C.UTF-8" } };
  assertMatch(await host.must("attach-vm", ["--version"], path), /^attach-vm \d/);
  assertStringIncludes(await host.must("man", ["-w", "attach-vm"], path), "/usr/local/");
});

Deno.test("units: systemd reads them, and they have no mounts of their own", async () => {
  await using host = await hostToInstall();
  await install(host, "--systemd", "--run");
  const directory = "/usr/local/lib/systemd/system";
  const units = (await host.sh(`ls ${directory}`)).trim().split("\n");
  assertEquals(units, ["tapkit-restore.service", "tapkit-vm@.service", "tapkit.service"]);
  const instances = units.map((unit) => `${directory}/${unit.replace("@", "@web")}`);
  await host.sh(`cp ${directory}/tapkit-vm@.service ${directory}/tapkit-vm@web.service`);
  const { code, stderr } = await host.run("systemd-analyze", [
    ...["verify", "--man=no", "--recursive-errors=no", ...instances],
  ]);
  assertEquals([code, stderr], [0, ""]);
  // The memory that the resident needs, whichever way it is installed.
  const flags = "DENO_V8_FLAGS=--max-semi-space-size=1,--optimize-for-size";
  assertMatch(
    await host.readFile(`${directory}/tapkit.service`),
    new RegExp(`^Environment=.* ${flags}$`, "m"),
  );
  for (const unit of units) {
    const text = await host.readFile(`${directory}/${unit}`);
    for (const [, section = "", body = ""] of text.matchAll(/^\[(\w+)\]\n((?:(?!\[).*\n)*)/gm)) {
      const allowed = KEYS[section as keyof typeof KEYS];
      const keys = [...body.matchAll(/^(\w+)=/gm)].map(([, key]) => key!);
      assertEquals(keys.filter((key) => !allowed.includes(key)), [], unit);
    }
  }
});

Deno.test("tapkit.service: its capabilities suffice to attach, publish, check, heal and remove", async () => {
  await using host = await hostToInstall();
  await host.addLan();
  await install(host, "--systemd");
  const unit = await host.readFile("/usr/local/lib/systemd/system/tapkit.service");
  const [, names = ""] = /^CapabilityBoundingSet=(.*)$/m.exec(unit)!;
  const kept = names.toLowerCase().split(" ").map((name) => `+${name.replace("cap_", "")}`);
  const limited = ["--bounding-set", ["-all", ...kept].join(","), "--inh-caps", "-all"];
  host.spawn("setpriv", [...limited, "/usr/local/bin/serve"], { env: { TAPKIT_SOCKET: "" } });
  const ask = async (...args: string[]) =>
    await host.must("curl", [
      ...["-s", "--retry", "50", "--retry-delay", "1", "--retry-all-errors"],
      ...["--unix-socket", "/run/tapkit/tapkit.sock", ...args],
    ]);
  const made = await ask("localhost/v1/vms", "--json", '{"name":"web","ports":["80:80"]}');
  assertEquals(JSON.parse(made).record?.vm, "web", made);
  await host.sh("test -e /run/netns/tapkit-web; ip link show ignite0");
  assertEquals(JSON.parse(await ask("localhost/v1/vms/web/check")).problems, []);
  // It hears of the host, and of namespaces.
  await host.sh("sysctl -qw net.ipv4.ip_forward=0; ip -n tapkit-web addr flush dev eth0");
  const look = "sysctl -n net.ipv4.ip_forward; ip -n tapkit-web -o -4 addr show eth0 | grep -c 172";
  await eventually(
    10_000,
    "both are healed",
    async () => (await host.run("sh", ["-c", look])).stdout === "1\n1\n",
  );
  await ask("-X", "DELETE", "localhost/v1/vms/web");
  assertEquals(JSON.parse(await ask("localhost/v1/vms")), { vms: [] });
});

Deno.test("serve: without CAP_NET_BROADCAST nothing is healed, and it says what it takes", async () => {
  await using host = await Host.create();
  const limited = ["--bounding-set", "-net_broadcast", "--inh-caps", "-all"];
  const words = [Deno.execPath(), ...scriptWords("serve")];
  await using serve = host.spawn("setpriv", [...limited, ...words], { env: { TAPKIT_SOCKET: "" } });
  await host.awaitDhcp();
  const health = "curl -sf --unix-socket /run/tapkit/tapkit.sock localhost/v1/health";
  await eventually(
    10_000,
    "it answers",
    async () => (await host.run("sh", ["-c", health])).code === 0,
  );
  serve.kill();
  assertMatch(
    await serve.stderr,
    /^serve: nothing is healed: what changes in .* listened to: .* the capability CAP_NET_BROADCAST too$/m,
  );
});

Deno.test("install.ts --systemd: where the units cannot be enabled, nothing is installed", async () => {
  await using host = await hostToInstall();
  // A directory in the place of the link.
  await host.sh("mkdir -p /etc/systemd/system/multi-user.target.wants/tapkit-restore.service/x");
  const before = await host.sh(FILES);
  const args = ["run", "-A", `${ROOT}/install.ts`, "--systemd"];
  const { code, stdout, stderr } = await host.run(Deno.execPath(), args);
  assertEquals([code, stdout], [1, ""]);
  assertStringIncludes(stderr, "install.ts: the units cannot be enabled: ");
  assertEquals(await host.sh(FILES), before);
});
