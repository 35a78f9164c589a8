/**
 * The scripts as processes, as far as they go without touching anything: help, versions, and
 * refusals. They are run without the permission to call foreign functions or start programs.
 */

import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { fromFileUrl } from "@std/path";
import { thisProcess } from "../../lib/caller.ts";
import { parseCommand } from "../../lib/cli/args.ts";
import { ATTACH_VM, readAttachCommand } from "../../lib/cli/attach-command.ts";
import { Cli } from "../../lib/cli/cli.ts";
import { COMMAND_NAMES } from "../../lib/cli/tapkit-table.ts";
import { InputError, validateAttach } from "../../mod.ts";

const UNIT_TEST = new Cli("unit-test", { caller: thisProcess });

const SCRIPTS = fromFileUrl(new URL("../../scripts", import.meta.url));
const NAMES = [
  "attach-vm",
  "doctor",
  "install-default-cni",
  "map-port",
  "serve",
  "serve-dhcp",
  "setup-weave",
  "tapkit",
] as const;

interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

async function run(name: string, args: readonly string[]): Promise<Ran> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--no-check", "-R", "-E", `${SCRIPTS}/${name}.ts`, ...args],
    env: { TAPKIT_STATE_DIR: "/nonexistent/state", NETCONFPATH: "/nonexistent/net.d" },
    stdin: "null",
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, out: text(stdout), err: text(stderr) };
}

Deno.test("scripts: --help has usage, options, examples and exit codes", async () => {
  for (const name of NAMES) {
    const { code, out, err } = await run(name, ["--help"]);
    assertEquals([code, err], [0, ""]);
    assertMatch(out, new RegExp(`^${name}: `));
    for (const part of ["\nusage: ", "\nexamples:\n", "\nexit codes:\n"]) {
      assertStringIncludes(out, part);
    }
    assertMatch(out, /\n(other )?options:\n/);
    assertEquals(out.split("\n").filter((line) => line.length > 100), []);
  }
});

Deno.test("scripts: --version is the one of deno.json", async () => {
  const { default: { version } } = await import("../../deno.json", { with: { type: "json" } });
  for (const name of NAMES) {
    assertEquals(await run(name, ["--version"]), { code: 0, out: `${name} ${version}\n`, err: "" });
  }
});

Deno.test("tapkit: what it does beside the scripts has help, by either way", async () => {
  for (const name of ["ls", "inspect", "rm", "events"]) {
    const { code, out, err } = await run("tapkit", [name, "--help"]);
    assertEquals([code, err], [0, ""]);
    assertMatch(out, new RegExp(`^tapkit ${name}: [^]*\\nusage: tapkit ${name}`));
    assertEquals(await run("tapkit", ["help", name]), { code, out, err });
  }
  const all = await run("tapkit", ["--help"]);
  assertEquals(await run("tapkit", ["help"]), all);
  assertMatch(all.out, /\nevery day:\n {2}attach-vm +attach virtual machines/);
  assertMatch(all.out, /\nthe host:\n {2}doctor +examine this host/);
  for (const name of COMMAND_NAMES) assertMatch(all.out, new RegExp(`^  ${name} `, "m"));
  assertEquals((await run("tapkit", ["help", "map-port"])).out.split(":")[0], "map-port");
});

Deno.test("tapkit: runs the script it is told to", async () => {
  assertEquals(await run("tapkit", ["serve-dhcp", "--help"]), await run("serve-dhcp", ["--help"]));
  const refused = await run("tapkit", ["attach-vm", "--prots"]);
  assertEquals([refused.code, refused.err], [
    2,
    "attach-vm: unknown flag --prots: did you mean --ports?\n",
  ]);
});

Deno.test("scripts: what is wrong is refused with exit code 2, one line and its object", async () => {
  const cases: readonly (readonly [name: string, args: string[], object: string])[] = [
    ["tapkit", [], "tapkit --help"],
    ["tapkit", ["attach"], '"attach"'],
    ["tapkit", ["serve-dchp"], "did you mean serve-dhcp?"],
    ["tapkit", ["help", "ls", "rm"], "more than one command is named"],
    ["tapkit", ["help", "attch-vm"], "did you mean attach-vm?"],
    ["tapkit", ["rm"], "name VMs, or give --all"],
    ["tapkit", ["rm", "web", "--all"], "names and --all do not go together"],
    ["tapkit", ["inspect"], "see tapkit ls"],
    ["tapkit", ["ls", "web"], '"web"'],
    ["tapkit", ["ls", "--output", "yaml"], "use table or json"],
    ["tapkit", ["events", "--outptu", "json"], "did you mean --output?"],
    ["tapkit", ["toString"], '"toString"'],
    ["doctor", ["web"], '"web"'],
    ["doctor", ["--fxi"], "did you mean --fix?"],
    ["doctor", ["--output", "yaml"], "use table or json"],
    ["serve-dhcp", ["web"], '"web"'],
    ["setup-weave", ["web"], '"web"'],
    ["setup-weave", ["--peer", "192.0.2.1"], "did you mean --peers?"],
    ["setup-weave", ["--print", "--check"], "--print and --check do not go together"],
    ["setup-weave", ["--purge"], "--purge is for --remove: add --remove, or leave out --purge"],
    ["setup-weave", ["--mtu", "big"], "is not a whole number"],
    ["serve-dhcp", ["--exit-when-idel"], "did you mean --exit-when-idle?"],
    ["install-default-cni", ["--print", "--remove"], "--print and --remove"],
    ["install-default-cni", ["--mtu", "fast"], '"fast"'],
    ["install-default-cni", ["--subnet"], "--subnet"],
    ["map-port", [], "no VM"],
    ["map-port", ["web", "80:80", "--list"], '"80:80" does not go with --list'],
    ["map-port", ["web", "--remove", "--check"], "--remove and --check"],
    ["map-port", ["web", "--removed"], "did you mean --remove?"],
    ["map-port", ["web"], "no port is named"],
    ["map-port", ["web", "80"], '"80"'],
    ["map-port", ["web", "80:80"], '"web" is not attached'],
    ["attach-vm", [], "no VM"],
    ["attach-vm", ["-p", "8080:80"], "did you mean --ports?"],
    ["attach-vm", ["--publish", "8080:80"], "did you mean --ports?"],
    ["attach-vm", ["web", "--rm"], "did you mean --remove?"],
    ["attach-vm", ["--remove"], "--remove --all"],
    ["attach-vm", ["rm", "web"], "did you mean attach-vm web --remove?"],
    ["map-port", ["rm", "web", "80:80"], '"rm" is refused as the name of a VM: see map-port'],
    ["attach-vm", ["web", "--restore"], "--restore takes no names"],
    ["attach-vm", ["--restore", "--ports", "8080:80"], "--ports does not go with --restore"],
    ["attach-vm", ["--restore", "--list"], "--list and --restore"],
    ["attach-vm", ["web", "--gc"], "--gc"],
    ["attach-vm", ["web", "--network-plugin", "podman"], '"podman"'],
    ["bridge-legacy", ["web", "--plugins", "exec"], "--plugins"],
    ["attach-vm", ["web", "--mode", "macvtap"], '"macvtap"'],
    ["attach-vm", ["web", "--plugins", "all"], '"all"'],
    ["attach-vm", ["web", "--exclusive"], "--exclusive is for --gc"],
    ["attach-vm", ["--gc", "--bandwidth", "1mbit"], "--bandwidth does not go with --gc"],
    ["attach-vm", ["web", "--output", "bhyve"], '"bhyve"'],
  ];
  for (const [name, args, object] of cases) {
    const { code, out, err } = await run(name, args);
    const what = `${name} ${args.join(" ")}: ${err}`;
    assertEquals([code, out], [2, ""], what);
    assertMatch(err, new RegExp(`^${name}( [a-z]+)?: [^\n]+\n$`), what);
    assert(err.includes(object), what);
  }
});

Deno.test("attach-vm: malformed values are refused before anything is touched", async () => {
  const cases: readonly (readonly string[])[] = [
    [""],
    ["-web"],
    [".web"],
    ["we/b"],
    ["wéb"],
    ["w b"],
    ["x".repeat(64)],
    ["web", "--ports", "80"],
    ["web", "--ports", "0:0"],
    ["web", "--ports", "8080:65536"],
    ["web", "--ports", "8080:80/icmp"],
    ["web", "--ports", "8080:80/"],
    ["web", "--ports", "08080:80"],
    ["web", "--ports", "[::1]:8080:80"],
    ["web", "--ports", "9000-9001:9000-9003"],
    ["web", "--ports", "8080:80", "--ports", "8080:81"],
    ["web", "--ip", "10.0.0"],
    ["web", "--ip", "010.0.0.1"],
    ["web", "--ip", "10.0.0.1/33"],
    ["web", "--mac", "01:00:5e:00:00:01"],
    ["web", "--mac", "02:00"],
    ["web", "--mtu", "67"],
    ["web", "--mtu", "65536"],
    ["web", "--mtu", "0x5dc"],
    ["web", "--tap-owner", "no-such-user-here"],
    ...["0", "257", "1.5", "many"].map((queues) => ["web", "--queues", queues]),
    ["web", "--queues", "2", "--output", "firecracker"],
    ["web", "--tap-owner", "0:no-such-group-here"],
    ["web", "--network", "no/such"],
    ["web", "--check", "--remove"],
    ["web", "bad/name", "--remove"],
    ["web", "bad/name", "--check"],
  ];
  for (const args of cases) {
    const parsed = () => {
      const parsed = parseCommand(ATTACH_VM, args);
      assert(typeof parsed === "object");
      return parsed;
    };
    const error = await assertRejects(
      async () => (await readAttachCommand(parsed(), UNIT_TEST)).requests.forEach(validateAttach),
      InputError,
      "",
      args.join(" "),
    );
    assert(error.mend !== undefined, `${args.join(" ")}: ${error.message}`);
  }
});

Deno.test("attach-vm: validates every VM before it attaches the first", async () => {
  const { code, out, err } = await run("attach-vm", ["web", "bad/name"]);
  assertEquals([code, out], [2, ""]);
  assertStringIncludes(err, '"bad/name"');
});
