import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { parseCommand } from "../../lib/cli/args.ts";
import { ATTACH_VM, readAttachCommand } from "../../lib/cli/attach-command.ts";
import type { AttachTable } from "../../lib/cli/attach-table.ts";
import { thisProcess } from "../../lib/caller.ts";
import { Cli } from "../../lib/cli/cli.ts";
import { validateAttach } from "../../lib/vm/request.ts";
import { InputError } from "../../lib/errors.ts";

const UNIT_TEST = new Cli("unit-test", { caller: thisProcess });

function read(...args: string[]) {
  const parsed = parseCommand(ATTACH_VM, args);
  assert(typeof parsed === "object");
  return readAttachCommand(parsed, UNIT_TEST);
}

async function withLines<T>(lines: readonly string[], use: (path: string) => Promise<T>) {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(path, lines.join("\n"));
    return await use(path);
  } finally {
    await Deno.remove(path);
  }
}

Deno.test("readAttachCommand: turns flags into a request", async () => {
  const command = await read(
    ...["web", "--ports", "8080:80", "--ports=53:53/udp", "--ip", "10.0.0.9", "--mtu", "1400"],
    ...["--mac", "02:00:00:00:00:01", "--netns", "/run/netns/x", "--tap-owner", "1000:1000"],
    ...["--queues", "4"],
    ...["--network", "a", "--network", "b", "--plugins", "builtin", "--mode", "tc-redirect"],
    ...["--capability", 'aliases=["w=1"]', "--cni-arg", "K8S_POD_NAME=web", "--cni-arg=A=b"],
  );
  assertEquals(command, {
    verb: "attach",
    output: "json",
    vmm: [],
    all: false,
    requests: [{
      name: "web",
      ports: ["8080:80", "53:53/udp"],
      ip: "10.0.0.9",
      mtu: 1400,
      mac: "02:00:00:00:00:01",
      netns: "/run/netns/x",
      tapOwner: "1000:1000",
      queues: 4,
      networks: ["a", "b"],
      plugins: "builtin",
      mode: "tc-redirect",
      capabilities: { aliases: ["w=1"] },
      cniArgs: { K8S_POD_NAME: "web", A: "b" },
    }],
  });
  assertEquals((await read("web")).requests, [{ name: "web" }]);
  assertEquals((await read("web", "--ports", "none")).requests, [{ name: "web", ports: "none" }]);
});

Deno.test("readAttachCommand: policies, by flags and by lines", async () => {
  const { requests } = await read(
    ...["web", "--isolated", "--no-antispoof", "--deny-egress", "10.0.0.0/8", "--deny-egress"],
    ...["::/0", "--allow-egress", "none"],
  );
  const wanted = {
    name: "web",
    isolated: true,
    antispoof: false,
    denyEgress: ["10.0.0.0/8", "::/0"],
    allowEgress: "none" as const,
  };
  assertEquals(requests, [wanted]);
  const line = '{"name":"web","isolated":true,"no-antispoof":true,' +
    '"deny-egress":["10.0.0.0/8","::/0"],"allow-egress":[]}';
  await withLines([line], async (path) => {
    assertEquals((await read("--from", path)).requests, [wanted]);
  });
  const other = await read("web", "--no-isolated", "--antispoof", "--deny-egress", "none");
  assertEquals(other.requests, [
    { name: "web", isolated: false, antispoof: true, denyEgress: "none" },
  ]);
  await withLines(['{"name":"web","isolated":false}'], async (path) => {
    await assertRejects(() => read("--from", path), InputError, '"isolated" is false');
  });
  for (const flag of ["--isolated", "--deny-egress=::/0"]) {
    await assertRejects(() => read("web", "--remove", flag), InputError, "does not go with");
  }
});

Deno.test("readAttachCommand: knows the verb by its flag", async () => {
  for (const args of [["--list"], ["--list", "--all"], ["--list", "--output", "qemu"]]) {
    assertEquals((({ verb, all }) => [verb, all])(await read(...args)), ["list", true]);
  }
  for (const args of [["--check"], ["--check", "--all"]]) {
    assertEquals((({ verb, all }) => [verb, all])(await read(...args)), ["check", true]);
  }
  const removal = await read("--remove", "--all");
  assertEquals([removal.verb, removal.all, removal.requests], ["remove", true, []]);
  const look = await read("a", "--list", "--output", "env");
  assertEquals([look.verb, look.all, look.requests, look.output], [
    ...["list", false, [{ name: "a" }], "env"],
  ]);
  assertEquals((await read("--restore")).verb, "restore");
  assertEquals((await read("a", "b", "--check")).verb, "check");
  assertEquals((await read("a", "b", "--remove")).verb, "remove");
  const run = await read("a", "--record-file", "/tmp/r", "--", "qemu", "--list");
  assertEquals([run.verb, run.vmm], ["run", ["qemu", "--list"]]);
});

Deno.test("readAttachCommand: several VMs may share what they can share", async () => {
  const { requests } = await read("a", "b", "--ports", "0:80", "--mtu", "1400");
  assertEquals(requests, [
    { name: "a", ports: ["0:80"], mtu: 1400 },
    { name: "b", ports: ["0:80"], mtu: 1400 },
  ]);
});

Deno.test("readAttachCommand: refuses what does not go together", async () => {
  const cases: readonly string[][] = [
    [],
    ["--remove"],
    ["--all"],
    ["web", "--all"],
    ["web", "--remove", "--all"],
    ["--restore", "--all"],
    ["--all", "--", "qemu"],
    ["--list", "--output", "env"],
    ["a", "b", "--list", "--output", "env"],
    ["a", "b", "--container", "c1"],
    ["--list", "--network-plugin", "cni"],
    ["web", "web"],
    ["web", "--check", "--remove"],
    ["web", "--list", "--remove"],
    ["web", "--remove", "--", "qemu"],
    ["web", "--"],
    ["web", "--remove", "--ports", "8080:80"],
    ["web", "--check", "--ip", "10.0.0.2"],
    ["--list", "--network", "a"],
    ["web", "--remove", "--output", "env"],
    ["web", "--output", "json", "--", "qemu"],
    ["web", "--record-file", "/tmp/r"],
    ["a", "b", "--ip", "10.0.0.2"],
    ["a", "b", "--mac", "02:00:00:00:00:01"],
    ["a", "b", "--netns", "/run/netns/x"],
    ["a", "b", "--ports", "8080:80"],
    ["a", "b", "--ports", "0:81", "--ports", "9000-9001:9000-9001"],
    ["a", "b", "--output", "env"],
    ["a", "b", "--", "qemu"],
    ["web", "--ports", "none", "--ports", "8080:80"],
    ["web", "--mtu", "12e2"],
    ["web", "--mtu", "-1"],
    ["web", "--mtu", "1500.0"],
    ["web", "--from", "/dev/null"],
    ["--from", "/dev/null"],
    ["--from", "/nonexistent"],
    ["--from", "/dev/null", "--remove"],
  ];
  for (const args of cases) {
    await assertRejects(async () => await read(...args), InputError, "", args.join(" "));
  }
});

Deno.test("readAttachCommand: --from gives each VM its own", async () => {
  const lines = [
    '{"name":"a","ports":["8080:80","53:53/udp"],"ip":"10.0.0.2","mtu":1400,"tap-owner":"1000"}',
    "",
    '{"name":"b","ports":"none","network":["x","y"],"mode":"auto","mtu":"9000"}',
    '{"name":"c","ports":[],"netns":"/run/netns/c"}',
    '{"name":"d"}',
  ];
  const { requests } = await withLines(lines, (path) => read("--from", path, "--mtu", "1300"));
  assertEquals(requests, [
    { name: "a", ports: ["8080:80", "53:53/udp"], ip: "10.0.0.2", mtu: 1400, tapOwner: "1000" },
    { name: "b", ports: "none", networks: ["x", "y"], mode: "auto", mtu: 9000 },
    { name: "c", ports: "none", netns: "/run/netns/c", mtu: 1300 },
    { name: "d", mtu: 1300 },
  ]);
});

Deno.test("readAttachCommand: --from names the line it refuses", async () => {
  const cases: readonly (readonly [line: string, message: string])[] = [
    ["{", "is not a JSON object"],
    ["[]", "is not a JSON object"],
    ["null", "is not a JSON object"],
    ['"a"', "is not a JSON object"],
    ['{"ports":["1:2"]}', "has no name"],
    ['{"name":3}', "has no name"],
    ['{"name":"a","prots":["1:2"]}', 'unknown key "prots"'],
    ['{"name":"a","__proto__":{"ip":"1.2.3.4"}}', 'unknown key "__proto__"'],
    ['{"name":"a","output":"env"}', 'unknown key "output"'],
    ['{"name":"a","ip":["1.2.3.4","1.2.3.5"]}', "--ip is given 2 times"],
    ['{"name":"a","ip":{}}', '"ip" has {}'],
    ['{"name":"a","ip":""}', '"ip" has ""'],
    ['{"name":"a","mtu":1.5}', '--mtu "1.5" is not a whole number'],
    ['{"name":"a","mode":"fast"}', '--mode "fast" is not known'],
    ['{"name":"ok"}', 'VM "ok" is named twice'],
  ];
  for (const [line, message] of cases) {
    const error = await withLines(
      ['{"name":"ok"}', line],
      (path) => assertRejects(() => read("--from", path), InputError),
    );
    assert(error.message.includes(message), `${line}: ${error.message}`);
    if (!message.includes("twice")) assert(error.message.includes(" line 2"), error.message);
  }
});

Deno.test("readAttachCommand: words that are verbs elsewhere name no VM, and the mend is what was meant", async () => {
  const cases: readonly (readonly [args: string, mend: string])[] = [
    ["list", "attach-vm --list"],
    ["ls", "attach-vm --list"],
    ["list web", "attach-vm web --list"],
    ["inspect web", "attach-vm web --list"],
    ["rm web api", "attach-vm web api --remove"],
    ["web delete", "attach-vm web --remove"],
    ["stop", "attach-vm NAME --remove"],
    ["check web", "attach-vm web --check"],
    ["start web --ports 0:80", "attach-vm web"],
    ["run web -- qemu", "attach-vm web -- VMM ARG…"],
    ["help", "attach-vm --help"],
    ["gc", "attach-vm --gc"],
  ];
  for (const [args, mend] of cases) {
    const error = await assertRejects(() => read(...args.split(" ")), InputError);
    assertEquals(error.mend, `did you mean ${mend}?`, args);
  }
  await withLines(['{"name":"list"}'], async (path) => {
    await assertRejects(() => read("--from", path), InputError, 'line 1: "list" is refused');
  });
  // One that has such a name from before is looked at and removed by it.
  for (const flag of ["--list", "--check", "--remove"]) {
    assertEquals((await read("list", flag)).requests, [{ name: "list" }]);
  }
});

Deno.test("readAttachCommand: the network plugin, by flag or by the command", async () => {
  const { requests: [cni] } = await read("web", "--network-plugin", "cni");
  assertEquals(cni, { name: "web", networkPlugin: "cni" });
  const table: AttachTable = { ...ATTACH_VM, asks: { networkPlugin: "docker-bridge" } };
  const parsed = parseCommand(table, ["web", "--image", "busybox"]);
  assert(typeof parsed !== "string");
  const { requests: [docker] } = await readAttachCommand(parsed, UNIT_TEST, table);
  assertEquals(docker, { name: "web", networkPlugin: "docker-bridge", image: "busybox" });
});

Deno.test("validateAttach: the network plugin by variable", () => {
  const variable = "TAPKIT_NETWORK_PLUGIN";
  const before = Deno.env.get(variable);
  try {
    for (const value of ["", "cni", "docker-bridge"]) {
      Deno.env.set(variable, value);
      validateAttach({ name: "web" });
    }
    validateAttach({ name: "web", image: "busybox" });
    Deno.env.set(variable, "weave");
    const message = `${variable} is "weave", which is not a network plugin`;
    assertThrows(() => validateAttach({ name: "web" }), InputError, message);
    // What is said comes before it.
    validateAttach({ name: "web", networkPlugin: "cni" });
    const refused = () => validateAttach({ name: "web", networkPlugin: "cni", container: "c1" });
    assertThrows(refused, InputError, "--container is for Docker's network");
  } finally {
    if (before === undefined) Deno.env.delete(variable);
    else Deno.env.set(variable, before);
  }
});
