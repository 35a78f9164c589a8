import { assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { thisProcess } from "../../lib/caller.ts";
import { Cli } from "../../lib/cli/cli.ts";
import { requireRoot, serveCommand } from "../../lib/cli/main.ts";
import { InputError, TapkitError } from "../../lib/errors.ts";

const MAIN = new URL("../../lib/cli/main.ts", import.meta.url).href;
const ERRORS = new URL("../../lib/errors.ts", import.meta.url).href;
const ROOT = fromFileUrl(new URL("../../", import.meta.url));

const UNIT_TEST = new Cli("unit-test", { caller: thisProcess });

/** Runs `body` inside runScript in a process of its own, through a shell's `redirection`. */
function runScript(
  body: string,
  redirection = "",
  env: Record<string, string> = {},
  terminal = false,
) {
  const directory = Deno.makeTempDirSync({ prefix: "tapkit-main-" });
  try {
    const path = `${directory}/script.ts`;
    Deno.writeTextFileSync(
      path,
      `import * as main from "${MAIN}";
import { InputError, SyscallError, TapkitError } from "${ERRORS}";
const command = { name: "cook", summary: "", usage: [""], options: [], examples: [] };
void [InputError, SyscallError, TapkitError];
Deno.exit(await main.runScript(command, Deno.args, async (_, cli) => { ${body}; return 0; }));`,
    );
    const deno = `'${Deno.execPath()}' run -A --no-check --config '${ROOT}deno.json' '${path}'`;
    const { code, stdout, stderr } = new Deno.Command("bash", {
      args: terminal
        ? ["-c", `script -qec "${deno}" /dev/null </dev/null`]
        : ["-c", `set -o pipefail; ${deno} ${redirection}`],
      env: { TAPKIT_DEBUG: "", ...env },
    }).outputSync();
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    return { code, out: text(stdout), err: text(stderr) };
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

Deno.test("runScript: an error is one line with its mend, and its class is the exit code", () => {
  const cases = [
    [`throw new TapkitError("no\\nroom", { mend: "make some" })`, 1, "cook: no room: make some\n"],
    [`throw new InputError("bad salt")`, 2, "cook: bad salt\n"],
    [
      `throw new SyscallError({ op: "setns", object: "/x", errno: 22, code: "EINVAL" })`,
      1,
      "cook: setns /x: EINVAL\n",
    ],
    [`return 3`, 3, ""],
    [
      `await Deno.readTextFile("/nonexistent")`,
      1,
      /^cook: [a-z]+ '\/nonexistent': No such file or directory \(ENOENT\): check that it exists\n$/,
    ],
    [
      `throw new RangeError("oops")`,
      1,
      "cook: this is a bug in tapkit: RangeError: oops: run it again with TAPKIT_DEBUG=1 to see where\n",
    ],
  ] as const;
  for (const [body, code, err] of cases) {
    const ran = runScript(body);
    assertEquals(ran.code, code, body);
    if (typeof err === "string") assertEquals(ran.err, err);
    else assertMatch(ran.err, err);
    assertEquals(ran.out, "");
  }
});

Deno.test("runScript: TAPKIT_DEBUG shows where a bug is", () => {
  const ran = runScript(`throw new RangeError("oops")`, "", { TAPKIT_DEBUG: "1" });
  assertEquals(ran.code, 1);
  assertMatch(
    ran.err,
    /^cook: this is a bug in tapkit: RangeError: oops\ncook: RangeError: oops\n\s+at /,
  );
});

Deno.test("runScript: others' text cannot steer the terminal, wherever it is printed", () => {
  const evil = "\x1b]0;x\x07\x1b[2K\r\x9b1A\u202eok\u2066 \u061c\u200b\x7f|";
  const shown = "\\u001b]0;x\\u0007\\u001b[2K\\u000d\\u009b1A\\u202eok\\u2066 \\u061c\\u200b";
  // deno-lint-ignore no-control-regex -- those are what it is about.
  const controls = /[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2066-\u2069]/;
  const text = JSON.stringify(evil);
  const lines = JSON.stringify(`${evil}\nfake: line`);
  const cases: readonly (readonly [body: string, stream: "err" | "out"])[] = [
    [`throw new TapkitError(${lines}, { mend: ${text} })`, "err"],
    [`throw new RangeError(${text})`, "err"],
    [`cli.note(${lines})`, "err"],
    [`cli.hostOptions({}).note(${text})`, "err"],
    [`throw new TapkitError("x: " + ${text})`, "err"],
    [`cli.text(${text})`, "out"],
    [`cli.problems({ name: ${text} }, [${lines}])`, "out"],
  ];
  for (const [body, stream] of cases) {
    const printed = runScript(body)[stream];
    assertEquals(controls.exec(printed), null, body);
    assertEquals(printed.trimEnd().split("\n").length, 1, body);
    // JSON has its own way to write a carriage return.
    assertStringIncludes(printed.replace("\\r", "\\u000d"), shown, body);
  }
  // Of JSON it is another way to write the same.
  assertEquals(JSON.parse(runScript(`cli.json(${text})`).out), evil);
  const { err } = runScript(`throw new RangeError(${text})`, "", { TAPKIT_DEBUG: "1" });
  assertEquals(controls.exec(err), null);
});

Deno.test("Cli.json: whole lines reach a reader that is slow", () => {
  const body = `for (let i = 0; i < 3; i++) cli.json({ i, fill: "x".repeat(200_000) })`;
  const ran = runScript(body, "| (sleep 0.2; cat)");
  assertEquals([ran.code, ran.err], [0, ""]);
  const lines = ran.out.trimEnd().split("\n").map((line) => JSON.parse(line));
  assertEquals(lines.map(({ i, fill }) => [i, fill.length]), [[0, 200000], [1, 200000], [
    2,
    200000,
  ]]);
});

Deno.test("Cli.json: a reader that has gone away ends nothing and says nothing", () => {
  const body = `for (let i = 0; i < 50; i++) cli.json({ fill: "x".repeat(10_000) });
    await Deno.writeTextFile("/dev/stderr", "the work went on")`;
  const ran = runScript(body, "| true");
  assertEquals([ran.code, ran.out, ran.err], [0, "", "the work went on"]);
});

Deno.test("Cli.json: a full disk is an error, and stderr that cannot be written is none", () => {
  const full = runScript(`cli.json({})`, ">/dev/full");
  assertEquals(full.code, 1);
  assertStringIncludes(full.err, "cook: stdout cannot be written: ");
  assertEquals(runScript(`throw new InputError("x")`, "2>/dev/full").code, 2);
});

Deno.test("Cli.forEachVm: goes on past failures, and one failure among successes is 1", async () => {
  const cases: readonly (readonly [outcomes: (number | Error)[], code: number])[] = [
    [[0, 0], 0],
    [[0, new TapkitError("x")], 1],
    [[0, new InputError("x")], 1],
    [[new InputError("x"), new InputError("x")], 2],
    [[new InputError("x"), new TapkitError("x")], 1],
    [[0, 3, 0], 3],
    [[3, new TapkitError("x")], 1],
    [[], 0],
  ];
  for (const [outcomes, code] of cases) {
    const done: (number | Error)[] = [];
    const vms = outcomes.map((outcome) => ({ name: "web", outcome }));
    const got = await UNIT_TEST.forEachVm({ verb: "attach" }, vms, ({ outcome }) => {
      done.push(outcome);
      if (typeof outcome === "number") return outcome;
      throw outcome;
    });
    assertEquals([got, done], [code, outcomes]);
  }
});

Deno.test("Cli.forEachVm: a failure may bring its exit code, or be given another", async () => {
  class NotFound extends TapkitError {
    readonly exitCode = 127;
  }
  const cases = [[new TapkitError("x"), 125], [new NotFound("x"), 127], [new InputError("x"), 2]];
  for (const [error, code] of cases) {
    const doing = { verb: "run", failed: 125 };
    const got = await UNIT_TEST.forEachVm(doing, [{ name: "web" }], () => {
      throw error;
    });
    assertEquals(got, code);
  }
});

Deno.test("Cli.forEachVm: says on a terminal how far it is when it takes long", () => {
  const body = `const vms = ["a", "b", "c"].map((name) => ({ name }));
    let now = 0;
    performance.now = () => now;
    await cli.forEachVm({ verb: "boil" }, vms, ({ name }) => {
      now += 600;
      if (name === "c") cli.note("salted");
    })`;
  const line = "cook: boil: 2 of 3 done, 1 s";
  const gone = `\r${" ".repeat(line.length)}\r`;
  const { out } = runScript(body, "", {}, true);
  assertEquals(out, `${line}${gone}cook: salted\r\n`);
  assertEquals(runScript(body).err, "cook: salted\n");
  const soon = body.replace("600", "1");
  assertEquals(runScript(soon, "", {}, true).out, "cook: salted\r\n");
});

Deno.test("requireRoot: names the capability that is missing", () => {
  requireRoot(undefined, "Name:\tx\nCapEff:\t000001ffffffffff\n");
  requireRoot(["CAP_NET_ADMIN"], "CapEff:\t0000000000001000\n");
  const none = () => requireRoot(undefined, "CapEff:\t0000000000000000\n");
  assertThrows(none, TapkitError, "CAP_NET_ADMIN and CAP_SYS_ADMIN");
  const partly = () => requireRoot(undefined, "CapEff:\t0000000000001000\n");
  assertThrows(partly, TapkitError, "this process lacks CAP_SYS_ADMIN");
});

Deno.test("serveCommand: names a script when the program is not one of tapkit's", () => {
  const command = serveCommand(UNIT_TEST, { "state-dir": "/x" });
  assertEquals(command.slice(0, 3), [Deno.execPath(), "run", "-A"]);
  assertMatch(command[3] ?? "", /\/scripts\/serve\.ts$/);
  assertEquals(command.slice(4), ["--exit-when-idle", "--state-dir=/x"]);
});
