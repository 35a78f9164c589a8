import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { SyscallError, TapkitError } from "../../lib/errors.ts";
import { Epoll } from "../../lib/sys/epoll.ts";
import { lockFile } from "../../lib/sys/flock.ts";
import { Inotify, InotifyEvent } from "../../lib/sys/inotify.ts";
import { closeFd, errnoName, writeFd } from "../../lib/sys/libc.ts";
import { currentNetns, type Netns, newNetns, openNetns, withNetns } from "../../lib/sys/netns.ts";
import { openPacketSocket } from "../../lib/sys/packet.ts";
import { spawnSession } from "../../lib/sys/spawn.ts";
import { createTap, openTap } from "../../lib/sys/tap.ts";

function inside(netns: Netns, program: string, ...args: string[]): string {
  const output = withNetns(netns, () => new Deno.Command(program, { args }).outputSync());
  const decoder = new TextDecoder();
  assertEquals(output.success, true, decoder.decode(output.stderr));
  return decoder.decode(output.stdout);
}

const namespaceOf = () => Deno.readLinkSync("/proc/thread-self/ns/net");

Deno.test("raiseDescriptorLimit: to what is wanted, and to no more than the hard limit", async () => {
  const code = `
    import { raiseDescriptorLimit } from "${new URL(
    "../../lib/sys/descriptors.ts",
    import.meta.url,
  )}";
    const [soft, hard, most] = Deno.args;
    // Deno has raised it.
    const lower = ["--pid", Deno.pid, \`--nofile=\${soft}:\${hard}\`].map(String);
    new Deno.Command("prlimit", { args: lower }).outputSync();
    const now = raiseDescriptorLimit(Number(most));
    const line = /^Max open files +(\\d+) +(\\d+)/m.exec(Deno.readTextFileSync("/proc/self/limits"));
    console.log(now, line[1], line[2]);`;
  const limits = async (...args: string[]) => {
    const config = ["--config", new URL("../../deno.json", import.meta.url).pathname];
    const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["eval", ...config, "--ext=ts", code, ...args],
    }).output();
    return new TextDecoder().decode(stdout).trim() || new TextDecoder().decode(stderr);
  };
  assertEquals(await limits("256", "4096", "1000"), "1000 1000 4096");
  assertEquals(await limits("256", "4096", "65536"), "4096 4096 4096");
  assertEquals(await limits("2000", "4096", "1000"), "2000 2000 4096");
});

Deno.test("withNetns: enters, and comes back after a throw too", () => {
  using netns = newNetns();
  const outside = namespaceOf();
  const within = withNetns(netns, namespaceOf);
  assert(within !== outside);
  assertThrows(() =>
    withNetns(netns, () => {
      throw new Error("no");
    }), Error);
  assertEquals(namespaceOf(), outside);
});

Deno.test("withNetns: refuses a promise and comes back", () => {
  using netns = newNetns();
  const outside = namespaceOf();
  // @ts-expect-error an asynchronous function is refused by type as well
  assertThrows(() => withNetns(netns, () => Promise.resolve(1)), TypeError, "synchronous");
  assertEquals(namespaceOf(), outside);
});

Deno.test("openNetns: tells a missing path from one that is no namespace", () => {
  const missing = assertThrows(() => openNetns("/nowhere"), SyscallError);
  assertEquals(missing.code, "ENOENT");
  assertThrows(() => openNetns("/etc/passwd"), TapkitError, "not a network namespace");
  using own = openNetns("/proc/self/ns/net");
  using current = currentNetns();
  assert(own.fd !== current.fd);
});

Deno.test("createTap: persistent, with its owner, group and queues; not made twice", () => {
  using netns = newNetns();
  const options = { name: "vm_eth0", owner: 1234, group: 5678, multiQueue: true };
  withNetns(netns, () => createTap(options));
  const [link] = JSON.parse(inside(netns, "ip", "-d", "-j", "link", "show", "vm_eth0"));
  const data = link.linkinfo.info_data;
  assertEquals(
    [data.type, data.persist, data.multi_queue, data.vnet_hdr],
    ["tap", true, true, false],
  );
  assertEquals([Number(data.user), Number(data.group)], [1234, 5678]);
  const taken = assertThrows(() => withNetns(netns, () => createTap(options)), SyscallError);
  assertEquals(taken.code, "EBUSY");
  assertThrows(() => createTap({ name: "a".repeat(16) }), RangeError);
});

Deno.test("openPacketSocket: hears a TAP's frames after the namespace was left, by epoll", async () => {
  using netns = newNetns();
  const tap = withNetns(netns, () => openTap({ name: "t0" }));
  try {
    inside(netns, "ip", "link", "set", "t0", "up");
    const [link] = JSON.parse(inside(netns, "ip", "-j", "link", "show", "t0"));
    using socket = withNetns(netns, () => openPacketSocket({ ifindex: link.ifindex }));
    using epoll = new Epoll();
    epoll.add(socket.fd);
    // The kernel's own IPv6 chatter passes as well.
    const frame = new Uint8Array(60).fill(0xab);
    writeFd(tap, frame);
    const buffer = new Uint8Array(2048);
    for (let round = 0; round < 50; round++) {
      const [ready] = await epoll.wait(1000);
      assert(ready !== undefined, "the frame did not arrive");
      const length = socket.receive(buffer);
      if (length === frame.length && buffer[0] === 0xab) return;
    }
    throw new Error("the frame was not among those heard");
  } finally {
    closeFd(tap);
  }
});

Deno.test("lockFile: excludes, releases, and takes its file away when asked", () => {
  const directory = Deno.makeTempDirSync();
  try {
    const path = `${directory}/lock`;
    const held = lockFile(path, { remove: true });
    assertEquals(lockFile(path, { wait: false }), undefined);
    held[Symbol.dispose]();
    assertThrows(() => Deno.statSync(path), Deno.errors.NotFound);
    using _again = lockFile(path, { wait: false })!;
    assertEquals(lockFile(path, { wait: false }), undefined);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("Inotify: wakes an epoll when a file arrives, and is drained by name", async () => {
  const directory = Deno.makeTempDirSync();
  try {
    using inotify = new Inotify();
    using epoll = new Epoll();
    inotify.watch(directory, InotifyEvent.MOVED_TO | InotifyEvent.DELETE);
    epoll.add(inotify.fd);
    Deno.writeTextFileSync(`${directory}/a.tmp`, "");
    Deno.renameSync(`${directory}/a.tmp`, `${directory}/a`);
    assertEquals(await epoll.wait(1000), [inotify.fd]);
    assertEquals(inotify.drain(), new Set(["a"]));
    assertEquals(await epoll.wait(0), []);
    assertEquals(inotify.drain(), new Set());
    Deno.writeTextFileSync(`${directory}/other`, "");
    Deno.removeSync(`${directory}/other`);
    Deno.removeSync(`${directory}/a`);
    assertEquals(inotify.drain(), new Set(["other", "a"]));
    Deno.removeSync(directory);
    assertEquals(inotify.drain(), undefined);
    Deno.mkdirSync(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("spawnSession: a session of its own, /dev/null as stdio, arguments and environment", async () => {
  const directory = Deno.makeTempDirSync();
  const path = `${directory}/said`;
  const script = `
    stdio=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)
    { echo "$stdio"
      [ "$(cut -d' ' -f6 /proc/$$/stat)" = $$ ] && echo leader
      echo "$1 $HOME"; } >${path}.tmp
    mv ${path}.tmp ${path}`;
  try {
    spawnSession("sh", ["-c", script, "sh", "two words"], Deno.env.toObject());
    const directoryHas = () => [...Deno.readDirSync(directory)].some(({ name }) => name === "said");
    for (let tries = 0; tries < 200 && !directoryHas(); tries++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const lines = ["/dev/null", "/dev/null", "/dev/null", "leader"];
    lines.push(`two words ${Deno.env.get("HOME")}`, "");
    assertEquals(Deno.readTextFileSync(path).split("\n"), lines);
    const error = assertThrows(() => spawnSession("no-such-program", [], {}), SyscallError);
    assertEquals(error.code, "ENOENT");
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("errnoName: names what it knows", () => {
  assertEquals([errnoName(17), errnoName(999)], ["EEXIST", "errno 999"]);
});

Deno.test("SyscallError: names the call, its object and the code", () => {
  const error = assertThrows(() => openNetns("/nowhere"), SyscallError);
  assertStringIncludes(error.message, "open /nowhere: ENOENT");
});
