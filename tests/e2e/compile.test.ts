/**
 * Compiled binaries, used as they are and installed.
 *
 * @module
 */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { compile, whyNoCompiler } from "../support/compiled.ts";
import { eventually } from "../support/machine.ts";
import { Host } from "../support/host.ts";

const unable = await whyNoCompiler();

Deno.test({
  name: `compile.ts: tapkit by its own name and by links, attach-vm alone; they serve DHCP${
    unable === undefined ? "" : ` (${unable})`
  }`,
  ignore: unable !== undefined,
  async fn(t) {
    const output = await Deno.makeTempDir({ prefix: "tapkit-compile-" });
    try {
      const { success, out, err } = await compile("tapkit", "attach-vm", "--output", output);
      assert(success, err);
      const made = out.trim().split("\n").map((line) => JSON.parse(line));
      const directory = `${output}/${Deno.build.arch}`;
      assertEquals(made.map(({ path }) => path), [`${directory}/tapkit`, `${directory}/attach-vm`]);
      for (const { path, bytes } of made) assertEquals(bytes, (await Deno.stat(path)).size);
      await t.step("attach, map, check, remove", () => useOn(directory));
      await t.step("tapkit install", () => installFrom(`${directory}/tapkit`));
      await t.step("a binary for another processor is refused", () => refuseOther(output));
    } finally {
      await Deno.remove(output, { recursive: true });
    }
  },
});

Deno.test("compile.ts: refuses what it does not know before it compiles anything", async () => {
  for (
    const [args, message] of [
      [["tapkitt"], /^compile\.ts: there is no command tapkitt: did you mean tapkit\?\n$/],
      [["--arch", "riscv64"], /^compile\.ts: --arch "riscv64" is not known: use /],
    ] as const
  ) {
    const { success, out, err } = await compile(...args);
    assertEquals([success, out], [false, ""]);
    assertMatch(err, message);
  }
});

async function useOn(directory: string): Promise<void> {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.sh(`mkdir /tmp/links; ln -s ${directory}/tapkit /tmp/links/map-port
    ln -s ${directory}/tapkit /tmp/links/attach-vm; ln -s ${directory}/attach-vm /tmp/links/alone`);
  const json = async (program: string, ...args: string[]) =>
    JSON.parse(await host.must(program, args));

  const few = "ulimit -Sn 512; exec /tmp/links/attach-vm web --ports 8080:80";
  const record = await json("sh", "-c", few);
  assertEquals(record.ports[0].hostPort, 8080);
  await host.awaitDhcp();
  assertStringIncludes(await host.must("pgrep", ["-af", "--", "[-]-serve"]), directory);
  // It is to serve more VMs than whoever starts it may have files.
  const limits = await host.sh("cat /proc/$(pgrep -f -- '[-]-serve')/limits");
  assert(Number(/^Max open files +(\d+)/m.exec(limits)?.[1]) > 512, limits);
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

/** The binary installs itself, or another, and needs no sources; without them it can do nothing else. */
async function installFrom(binary: string): Promise<void> {
  const prefix = await Deno.makeTempDir({ prefix: "tapkit-install-" });
  const run = async (program: string, ...args: string[]) => {
    const { code, stdout, stderr } = await new Deno.Command(program, { args }).output();
    const [out = "", err = ""] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
    return { code, out, err };
  };
  const install = async (program: string, ...flags: string[]) => {
    const { code, out, err } = await run(program, "install", "--prefix", prefix, ...flags);
    assertEquals(code, 0, err);
    return JSON.parse(out);
  };
  try {
    const { written } = await install(binary);
    assert(!written.some((path: string) => path.endsWith("/deno")));
    assertEquals(await Deno.readLink(`${prefix}/bin/map-port`), "tapkit");
    assertMatch((await run(`${prefix}/bin/map-port`, "--version")).out, /^map-port \d/);
    const installed = `${prefix}/bin/tapkit`;
    assertEquals((await install(installed, "--check")).problems, []);
    assertEquals((await install(installed, "--from-binary", binary)).written, []);
    for (const flag of ["--run", "--bundle", "--compile", "--cloud-init"]) {
      const words = flag === "--cloud-init" ? [flag] : ["--prefix", prefix, flag];
      const { code, err } = await run(binary, "install", ...words);
      assertEquals(code, 2, err);
      assertStringIncludes(err, "tapkit install: there are no sources here");
    }
    await install(installed, "--uninstall");
    assertEquals([...Deno.readDirSync(prefix)], []);
  } finally {
    await Deno.remove(prefix, { recursive: true });
  }
}

/** Where DENORT_BIN is set, it is taken for every processor. */
async function refuseOther(output: string): Promise<void> {
  const other = Deno.build.arch === "x86_64" ? "aarch64" : "x86_64";
  const { success, out, err } = await compile("tapkit", "--arch", other, "--output", output);
  if (Deno.env.has("DENORT_BIN")) {
    assertStringIncludes(err, `is not a program for ${other}`);
    assert(!success);
  } else {
    assert(success, err);
    assert(JSON.parse(out).bytes > 50_000_000);
  }
}
