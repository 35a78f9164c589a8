/**
 * Compiled binaries. Deno downloads what it makes them of; TAPKIT_TEST_COMPILER names the Deno that
 * makes them, where DENORT_BIN names that.
 *
 * @module
 */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { eventually, ROOT } from "../support/machine.ts";
import { Host } from "../support/host.ts";

const COMPILER = Deno.env.get("TAPKIT_TEST_COMPILER") ?? Deno.execPath();

async function run(...args: string[]) {
  const { success, stdout, stderr } = await new Deno.Command(COMPILER, {
    args: ["run", "-A", ...args],
  }).output();
  const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
  return { success, out: out!, err: err! };
}

/** Why this machine cannot compile; undefined where it can. */
async function whyNot(): Promise<string | undefined> {
  const directory = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${directory}/empty.ts`, "");
    const { success, stderr } = await new Deno.Command(COMPILER, {
      args: [
        "compile",
        "-q",
        "--no-config",
        "--output",
        `${directory}/empty`,
        `${directory}/empty.ts`,
      ],
    }).output();
    if (success) return undefined;
    const said = new TextDecoder().decode(stderr);
    return /error: .*/i.exec(said)?.[0] ?? said;
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

const unable = await whyNot();
const why = unable === undefined ? "" : ` (Deno's runtime cannot be had: ${unable})`;

Deno.test({
  name: `compile.ts: tapkit by its own name and by links, attach-vm alone; they serve DHCP${why}`,
  ignore: unable !== undefined,
  async fn(t) {
    const output = await Deno.makeTempDir({ prefix: "tapkit-compile-" });
    try {
      const { success, out, err } = await run(
        ...[`${ROOT}/compile.ts`, "tapkit", "attach-vm", "--output", output] as const,
      );
      assert(success, err);
      const made = out.trim().split("\n").map((line) => JSON.parse(line));
      const directory = `${output}/${Deno.build.arch}`;
      assertEquals(made.map(({ path }) => path), [`${directory}/tapkit`, `${directory}/attach-vm`]);
      for (const { path, bytes } of made) assertEquals(bytes, (await Deno.stat(path)).size);
      await t.step("attach, map, check, remove", () => useOn(directory));
      await t.step("install.ts --from-binary", () => installFrom(`${directory}/tapkit`));
      await t.step("a binary for another processor is refused", () => refuseOther(output));
    } finally {
      await Deno.remove(output, { recursive: true });
    }
  },
});

async function useOn(directory: string): Promise<void> {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.sh(`mkdir /tmp/links; ln -s ${directory}/tapkit /tmp/links/map-port
    ln -s ${directory}/tapkit /tmp/links/attach-vm; ln -s ${directory}/attach-vm /tmp/links/alone`);
  const json = async (program: string, ...args: string[]) =>
    JSON.parse(await host.must(program, args));

  const record = await json("/tmp/links/attach-vm", "web", "--ports", "8080:80");
  assertEquals(record.ports[0].hostPort, 8080);
  await host.awaitDhcp();
  assertStringIncludes(await host.must("pgrep", ["-af", "--", "[-]-serve"]), directory);
  assertEquals((await json("/tmp/links/map-port", "web", "8081:81")).ports.length, 2);
  assertEquals(await json(`${directory}/tapkit`, "attach-vm", "web", "--check"), {
    vm: "web",
    problems: [],
  });
  await json("/tmp/links/alone", "db");
  assertMatch(await host.must(`${directory}/attach-vm`, ["--version"]), /^attach-vm \d/);
  assertMatch(await host.must(`${directory}/tapkit`, ["--version"]), /^tapkit \d/);
  await host.must("/tmp/links/alone", ["--remove", "web", "db"]);
  await eventually(
    10_000,
    "the server has ended",
    async () => (await host.run("pgrep", ["-f", "--", "[-]-serve"])).code !== 0,
  );

  // The one that is of a script starts the server too.
  await json("/tmp/links/alone", "web");
  await host.awaitDhcp();
  await host.must("/tmp/links/alone", ["--remove", "web"]);
  await host.sh("rm -rf /tmp/links /var/lib/tapkit");
  await host.assertRestored(before);
}

async function installFrom(binary: string): Promise<void> {
  const prefix = await Deno.makeTempDir({ prefix: "tapkit-install-" });
  try {
    const install = async (...flags: string[]) => {
      const { success, out, err } = await run(`${ROOT}/install.ts`, "--prefix", prefix, ...flags);
      assert(success, err);
      return JSON.parse(out);
    };
    const { written } = await install("--from-binary", binary);
    assert(!written.some((path: string) => path.endsWith("/deno")));
    assertEquals(await Deno.readLink(`${prefix}/bin/map-port`), "tapkit");
    const said = await new Deno.Command(`${prefix}/bin/map-port`, { args: ["--version"] }).output();
    assertMatch(new TextDecoder().decode(said.stdout), /^map-port \d/);
    assertEquals((await install("--check")).problems, []);
    assertEquals((await install("--from-binary", binary)).written, []);
    await install("--uninstall");
    assertEquals([...Deno.readDirSync(prefix)], []);
  } finally {
    await Deno.remove(prefix, { recursive: true });
  }
}

/** Where DENORT_BIN is set, it is taken for every processor. */
async function refuseOther(output: string): Promise<void> {
  const other = Deno.build.arch === "x86_64" ? "aarch64" : "x86_64";
  const { success, out, err } = await run(
    ...[`${ROOT}/compile.ts`, "tapkit", "--arch", other, "--output", output] as const,
  );
  if (Deno.env.has("DENORT_BIN")) {
    assertStringIncludes(err, `is not a program for ${other}`);
    assert(!success);
  } else {
    assert(success, err);
    assert(JSON.parse(out).bytes > 50_000_000);
  }
}
