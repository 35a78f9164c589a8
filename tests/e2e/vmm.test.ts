import { assert, assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";
import { eventually, ROOT } from "../support/machine.ts";

/** attach-vm's own arguments before `--`, run in the background. */
function attachVmm(host: Host, args: readonly string[], vmm: readonly string[]) {
  const script = `${ROOT}/scripts/attach-vm.ts`;
  return host.spawn(Deno.execPath(), ["run", "-A", script, ...args, "--", ...vmm]);
}

Deno.test("attach-vm -- VMM: runs in the namespace, on its stdio, with the words filled in", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const { code, stdout } = await host.tapkit(
    "attach-vm",
    ...["web", "--ports", "8080:80", "--record-file", "/tmp/web.json", "--", "sh", "-c"],
    'cat; readlink /proc/self/ns/net; ip -br link show vm_eth0 | cut -d" " -f1; echo "$@"; exit 7',
    ...["sh", "{tap}", "{mac}", "{ip}", "{gateway}", "{netmask}", "{mtu}", "{name}", "{other}"],
    { stdin: "from stdin\n" },
  );
  assertEquals(code, 7);
  const record = JSON.parse(await host.readFile("/tmp/web.json"));
  const lines = stdout.trimEnd().split("\n");
  assertEquals(lines[0], "from stdin");
  assert(lines[1] !== (await host.sh("readlink /proc/self/ns/net")).trim());
  assertEquals(lines.slice(2), [
    "vm_eth0",
    `vm_eth0 ${record.interfaces[0].mac} 172.18.0.2 172.18.0.1 255.255.0.0 1500 web {other}`,
  ]);
  await host.sh("rm /tmp/web.json");
  await host.assertRestored(before);
});

Deno.test("attach-vm -- VMM: it inherits no descriptor but its stdio", async () => {
  await using host = await Host.create();
  await host.addLan();
  // Whatever the test itself was started with.
  const list = ["sh", "-c", "ls /proc/$$/fd"];
  const { stdout } = await host.mustTapkit("attach-vm", "web", "--", ...list);
  assertEquals(stdout, "0\n1\n2\n");
});

Deno.test("attach-vm -- VMM: exit codes say what happened, and nothing is left", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.writeFile("/tmp/plain", "text");
  const cases: [args: string[], code: number, message: RegExp][] = [
    [["web", "--", "no-such-vmm"], 127, /the VMM "no-such-vmm" is not found: install it/],
    [["web", "--", "/tmp/plain"], 126, /the VMM "\/tmp\/plain" cannot be executed/],
    [["web", "--network", "none", "--", "true"], 125, /./],
    [["web", "--record-file", "/nowhere/x", "--", "true"], 125, /record file \/nowhere\/x/],
    [["web", "--", "sh", "-c", "kill -TERM $$"], 143, /^$/],
    [["web", "--", "sh", "-c", "kill -KILL $$"], 137, /^$/],
    [["web", "--"], 2, /nothing follows --/],
  ];
  for (const [args, expected, message] of cases) {
    const { code, stderr } = await host.tapkit("attach-vm", ...args);
    assertEquals(code, expected, stderr);
    const errors = stderr.split("\n").filter((line) => /cannot run|nothing follows/.test(line));
    assertMatch(errors.join(), message);
  }
  await host.sh("rm /tmp/plain");
  await host.assertRestored(before);
});

Deno.test("attach-vm -- VMM: signals are passed on, and the attachment goes with the VMM", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  for (const [signal, code] of [["TERM", 10], ["INT", 11], ["HUP", 12], ["USR1", 13]] as const) {
    const vmm = attachVmm(host, ["web"], [
      ...[
        "sh",
        "-c",
        `trap 'echo got; exit ${code}' ${signal}; echo ready; while :; do sleep 0.1; done`,
      ],
    ]);
    await vmm.line((line) => line === "ready");
    vmm.kill(`SIG${signal}`);
    assertEquals((await vmm.status).code, code, signal);
    assertEquals(vmm.lines, ["ready", "got"]);
  }
  await host.assertRestored(before);
});

Deno.test("attach-vm -- VMM: a terminal's Ctrl-C reaches it once", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.writeFile(
    "/tmp/vmm",
    [
      "#!/bin/bash",
      "count=0",
      "trap 'count=$((count + 1))' INT",
      "echo ready",
      "for round in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done",
      "echo count=$count",
    ].join("\n"),
    0o755,
  );
  const command = `${Deno.execPath()} run -A ${ROOT}/scripts/attach-vm.ts web -- /tmp/vmm`;
  // script(1) gives it a terminal, where the byte 3 is Ctrl-C.
  const terminal = host.spawn("script", ["-qec", command, "/dev/null"]);
  await terminal.line((line) => line.endsWith("ready"));
  await terminal.write("\x03");
  assertMatch(await terminal.line((line) => line.includes("count=")), /count=1$/);
  await terminal.status;
});

Deno.test("attach-vm -- VMM: Ctrl-C while it attaches starts no VMM and leaves nothing", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  // Wherever it strikes: before the process has a handler, while it attaches, after it.
  for (let delay = 20; delay <= 300; delay += 40) {
    const vmm = attachVmm(host, ["web"], ["sleep", "20"]);
    await new Promise((resolve) => setTimeout(resolve, delay));
    vmm.kill("SIGINT");
    assertEquals((await vmm.status).code, 130);
    await host.assertRestored(before);
  }
});

Deno.test("attach-vm: what its caller holds does not go on in what it starts", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("mkdir /tmp/place; mount -t tmpfs tmpfs /tmp/place");
  const attach = `${Deno.execPath()} run -A ${ROOT}/scripts/attach-vm.ts web`;
  await host.sh(
    `cd /tmp/place; (flock 9; ${attach} >/dev/null 2>&1) 9>/tmp/lock`,
    { env: { A_SECRET: "hunter2", DENO_AUTH_TOKENS: "hunter2@example.test" } },
  );
  await host.sh("flock --nonblock /tmp/lock true");
  await eventually(5000, "the DHCP server leaves the directory", async () => {
    return (await host.run("umount", ["/tmp/place"])).code === 0;
  });
  const server = (await host.sh("pgrep -f '[s]erve.* --exit'")).trim();
  const environment = (await host.readFile(`/proc/${server}/environ`)).split("\0");
  assertEquals(environment.filter((line) => line.includes("hunter2")), []);
  assert(environment.some((line) => line.startsWith("PATH=")));
  assert(environment.includes("DENO_NO_UPDATE_CHECK=1"));
  const { stdout } = await host.run("bash", [
    "-c",
    `exec 7</etc/hosts; ${attach} -- sh -c 'ls /proc/self/fd; echo $A_SECRET'`,
  ], { env: { A_SECRET: "the VMM's" } });
  assertEquals(stdout.trim().split("\n").filter((line) => line === "7"), []);
  assertMatch(stdout, /^the VMM's$/m);
});
