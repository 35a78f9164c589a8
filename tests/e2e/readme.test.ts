/**
 * README.md: the recording of the demo is what the demo prints, and its commands do what it says.
 */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { BlankDebian } from "../support/blank-debian.ts";
import { makeBootDisk } from "../support/boot-disk.ts";
import { Host } from "../support/host.ts";
import { eventually, ROOT } from "../support/machine.ts";
import { withoutKvm } from "../support/page.ts";

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

/** The blocks of code below a heading, up to the next one. */
function blocksOf(heading: string): string[] {
  const [, rest = ""] = Deno.readTextFileSync(`${ROOT}/README.md`).split(`\n## ${heading}\n`);
  const [section = ""] = rest.split("\n## ");
  return [...section.matchAll(/^```\n([^]*?)^```$/gm)].map(([, text]) => text!.trimEnd());
}

/**
 * What the first block downloads comes by the machine's network; all else is typed in a throwaway host. The
 * disk boots the tests' own guest: the one of docs/qemu.md, which the text refers to, is tried by its test.
 */
Deno.test("README.md: typed line by line on a blank Debian", async () => {
  await using debian = await BlankDebian.create();
  await using host = await Host.create();
  const peer = await host.addLan();
  await withoutKvm(host);
  const [install = "", boot = "", fetch = "", run = "", ...others] = blocksOf("Quick start");
  assertEquals(others, []);
  const [update = "", packages = "", bundle = "", attach = ""] = install.split("\n");
  for (const line of [update, packages]) await debian.download(line);
  const ours = "find /usr/local /etc/systemd /etc/sysctl.d -exec stat -c '%n %f %s' {} + | sort";
  const before = await debian.download(ours);
  const installs = blocksOf("Install")[0]!.split("\n");
  // No systemd runs here: see install-systemd.test.ts.
  const plain = installs.filter((line) => !line.includes(" --systemd"));
  assertEquals([installs.length, plain.length], [3, 2]);
  for (const line of plain) await debian.download(line);
  assertEquals(await debian.download(ours), before);
  await debian.download(bundle);
  await makeBootDisk(debian.path("/root/tapkit/disk.qcow2"));
  await debian.enter(host);
  assertStringIncludes(await debian.type(host, "ls /usr/local/bin"), "attach-vm\n");

  const record = JSON.parse(await debian.type(host, attach));
  assertEquals([record.vm, record.ports[0].hostPort, record.ports[0].vmPort], ["web", 8080, 80]);
  assertStringIncludes(await host.sh("ip -brief address show ignite0"), "ignite0");
  const answers = async () => {
    await eventually(120_000, "the guest answers", async () => {
      return (await peer.fetch("http://192.0.2.1:8080/")).status === 200;
    });
    assertEquals(await debian.type(host, fetch), "web at your service\n");
  };
  {
    await using _vmm = debian.start(host, boot);
    await answers();
  }
  const [map, unmap, ...more] = transcript(blocksOf("Ports").join("\n"));
  assertEquals(more, []);
  for (const { command, output } of [map!, unmap!]) {
    assertEquals(await debian.type(host, command), output);
  }
  await debian.type(host, "attach-vm web --remove");
  {
    const vmm = debian.start(host, run);
    await answers();
    // As Ctrl-C at a terminal ends both.
    await host.sh("pkill -INT -f -- '-netdev tap'");
    await vmm.status;
  }
  assertEquals(await debian.type(host, "attach-vm --list"), "");
});

/** The commands of a block that shows what each prints. */
function transcript(text: string): { command: string; output: string }[] {
  return text.split(/^\$ /m).slice(1).map((part) => {
    const end = part.indexOf("\n") + 1;
    return { command: part.slice(0, end).trimEnd(), output: `${part.slice(end).trimEnd()}\n` };
  });
}
