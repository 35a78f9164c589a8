/**
 * README.md: the recording of the demo is what the demo prints, and the first commands of the Quick start
 * do what it says.
 */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { Host } from "../support/host.ts";
import { ROOT } from "../support/machine.ts";

/** What differs from run to run: how long things take, and the MAC address. */
function masked(text: string): string[] {
  return text.trimEnd().split("\n").map((line) =>
    line.replace(/^ *\d+ ms/, "N ms")
      .replace(/\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b/, "MAC")
      .replace(/("bootSeconds":)[\d.]+/, "$1N")
  );
}

/** The block of README.md that ends in the demo's result. */
function recording(): string {
  const blocks = Deno.readTextFileSync(`${ROOT}/README.md`).matchAll(/^```\n([^]*?)^```$/gm);
  const [block] = [...blocks].map(([, text]) => text!).filter((text) => text.includes('{"demo":'));
  assert(block !== undefined, "README.md has no recording of the demo");
  return block;
}

Deno.test("README.md: the demo prints what is recorded", async () => {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", `${ROOT}/tests/demo.ts`],
    env: { NO_COLOR: "1" },
  }).output();
  const decoder = new TextDecoder();
  const told = decoder.decode(stderr);
  assert(success, told);
  const printed = masked(told + decoder.decode(stdout));
  // Before that it tells what it downloads, where it has not yet.
  const begin = printed.findIndex((line) =>
    line.endsWith("a guest to boot: Debian's kernel and busybox")
  );
  assertEquals(printed.slice(begin), masked(recording()));
});

/** The lines of the first block of code below a heading. */
function commandsOf(heading: string): string[] {
  const [, section = ""] = Deno.readTextFileSync(`${ROOT}/README.md`).split(`\n## ${heading}\n`);
  const [, block] = /^```\n([^]*?)^```$/m.exec(section) ?? [];
  assert(block !== undefined, `README.md has no commands below "${heading}"`);
  return block.trimEnd().split("\n");
}

/**
 * The host has an empty /usr/local. Deno and the packages are the tests' own, and stand for those that
 * a person downloads.
 */
Deno.test("README.md: the Quick start installs the commands, attaches a VM, and is undone", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("mount -t tmpfs -o mode=755 tmpfs /usr/local && mkdir /run/deno");
  await host.must("ln", ["-s", Deno.execPath(), "/run/deno/deno"]);
  const shell = { env: { PATH: "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/deno" } };
  const type = (line: string) => host.sh(`cd '${ROOT}' && ${line}`, shell);

  const [install = "", attach = "", ...others] = commandsOf("Quick start");
  assertEquals(others, []);
  await type(install);
  assertStringIncludes(await host.sh("ls /usr/local/bin"), "attach-vm\n");
  // What npx runs is in npm's cache, which is emptied sooner or later.
  const launcher = await host.readFile("/usr/local/bin/attach-vm");
  assert(!/\/(_npx|\.npm)\//.test(launcher), launcher);
  const record = JSON.parse(await type(attach));
  assertEquals([record.vm, record.ports[0].hostPort, record.ports[0].vmPort], ["web", 8080, 80]);
  assertStringIncludes(await host.sh("ip -brief address show ignite0"), "ignite0");

  await type("attach-vm web --remove");
  await type(commandsOf("Install").find((line) => line.includes("--uninstall"))!);
  assertEquals(await host.sh("ls -A /usr/local"), "");
});
