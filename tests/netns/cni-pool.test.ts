import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { allocate, holdsAddress, release } from "../../lib/cni/plugins/host-local.ts";
import { parseHostLocal } from "../../lib/cni/plugins/host-local-config.ts";
import { AddressHeldError, CniCode, CniError } from "../../lib/cni/types.ts";
import { UndoStack } from "../../lib/undo.ts";

type Ipam = Record<string, unknown>;

/** A pool in a directory of its own. */
class Pool implements Disposable {
  readonly dataDir = Deno.makeTempDirSync();
  readonly #ipam: Ipam;

  constructor(ipam: Ipam) {
    this.#ipam = { ...ipam, dataDir: this.dataDir };
  }

  config(extra: Record<string, unknown> = {}) {
    const ipam = { type: "host-local", ...this.#ipam };
    return parseHostLocal({ type: "bridge", name: "net", ipam, ...extra }, {});
  }

  add(containerId: string, options: { ips?: string[]; undo?: UndoStack; fresh?: boolean } = {}) {
    const { ips, undo = new UndoStack(), fresh = false } = options;
    const config = this.config(ips === undefined ? {} : { runtimeConfig: { ips } });
    const result = allocate(config, { containerId, ifName: "eth0" }, undo, fresh);
    return result.ips.map(({ address }) => address);
  }

  del(containerId: string, known?: string[]): void {
    release(this.config(), { containerId, ifName: "eth0" }, known);
  }

  files(): string[] {
    return [...Deno.readDirSync(`${this.dataDir}/net`)].map(({ name }) => name).sort();
  }

  read(name: string): string {
    return Deno.readTextFileSync(`${this.dataDir}/net/${name}`);
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.dataDir, { recursive: true });
  }
}

Deno.test("allocate: goes round the range, and leaves the reference plugin's files", () => {
  using pool = new Pool({ subnet: "10.0.0.0/29" });
  assertEquals(pool.add("a"), ["10.0.0.2/29"]);
  assertEquals(pool.read("10.0.0.2"), "a\r\neth0");
  assertEquals(pool.read("last_reserved_ip.0"), "10.0.0.2");
  assertEquals(pool.files(), ["10.0.0.2", "last_reserved_ip.0", "lock"]);
  pool.del("a");
  assertEquals(pool.files(), ["last_reserved_ip.0", "lock"]);
  assertEquals(["b", "c", "d", "e", "f"].map((id) => pool.add(id)[0]), [
    "10.0.0.3/29",
    "10.0.0.4/29",
    "10.0.0.5/29",
    "10.0.0.6/29",
    "10.0.0.2/29",
  ]);
});

Deno.test("allocate: a full pool is an error with the figures, and leaves nothing", () => {
  using pool = new Pool({ subnet: "10.0.0.0/30" });
  pool.add("a");
  const error = assertThrows(() => pool.add("b"), CniError);
  assertStringIncludes(error.message, "10.0.0.1-10.0.0.2");
  assertStringIncludes(error.message, "1 of 1 are taken");
  assertStringIncludes(error.message, `"net"`);
  assertEquals(error.code, CniCode.TRY_AGAIN_LATER);
  assertEquals(pool.files(), ["10.0.0.2", "last_reserved_ip.0", "lock"]);
});

Deno.test("allocate: one address of each range set, all or none", async () => {
  const ranges = [[{ subnet: "10.0.0.0/29" }], [{ subnet: "fd00::/126" }]];
  using pool = new Pool({ ranges });
  assertEquals(pool.add("a"), ["10.0.0.2/29", "fd00::2/126"]);
  assertEquals(pool.add("b"), ["10.0.0.3/29", "fd00::3/126"]);
  const undo = new UndoStack();
  assertThrows(() => pool.add("c", { undo }), CniError, "no free address");
  assertEquals(await undo.unwind(), []);
  assertEquals(pool.files().filter((name) => name.startsWith("10.0.0.4")), []);
});

Deno.test("allocate: several ranges of one set are used one after the other", () => {
  const set = [{ subnet: "10.0.0.0/30" }, { subnet: "10.9.0.0/29", rangeStart: "10.9.0.5" }];
  using pool = new Pool({ ranges: [set] });
  assertEquals(["a", "b", "c"].map((id) => pool.add(id)[0]), [
    "10.0.0.2/30",
    "10.9.0.5/29",
    "10.9.0.6/29",
  ]);
  pool.del("a");
  assertEquals(pool.add("d"), ["10.0.0.2/30"]);
});

Deno.test("allocate: a requested address is given, or its holder named", () => {
  using pool = new Pool({ subnet: "10.0.0.0/24" });
  assertEquals(pool.add("a", { ips: ["10.0.0.77"] }), ["10.0.0.77/24"]);
  const error = assertThrows(() => pool.add("b", { ips: ["10.0.0.77"] }), AddressHeldError);
  assertEquals(error.holder, { containerId: "a", ifName: "eth0" });
  assertEquals(error.address, "10.0.0.77");
  assertStringIncludes(error.message, "held by container a (eth0)");
  assertThrows(() => pool.add("b", { ips: ["10.0.0.8", "10.0.0.9"] }), CniError, "10.0.0.9");
});

Deno.test("allocate: a second address for the same interface is refused", () => {
  using pool = new Pool({ subnet: "10.0.0.0/24" });
  pool.add("a");
  assertThrows(() => pool.add("a"), AddressHeldError, "holds 10.0.0.2");
  assertThrows(() => pool.add("a", { ips: ["10.0.0.9"] }), AddressHeldError, "holds 10.0.0.2");
  assertEquals(pool.add("a", { fresh: true }), ["10.0.0.3/24"]);
  pool.del("a");
  assertEquals(pool.files(), ["last_reserved_ip.0", "lock"]);
});

Deno.test("release: by known addresses, by content, of old versions, of nothing", () => {
  using pool = new Pool({ subnet: "10.0.0.0/24" });
  const holder = { containerId: "a", ifName: "eth0" };
  pool.del("a");
  pool.add("a");
  pool.add("b");
  assertEquals(holdsAddress(pool.config(), holder, "10.0.0.2"), true);
  pool.del("a", ["10.0.0.3"]);
  assertEquals(pool.files(), ["10.0.0.3", "last_reserved_ip.0", "lock"]);
  pool.add("a");
  pool.del("a", ["10.0.0.4"]);
  pool.del("a", ["10.0.0.4"]);
  assertEquals(pool.files(), ["10.0.0.3", "last_reserved_ip.0", "lock"]);
  Deno.writeTextFileSync(`${pool.dataDir}/net/10.0.0.9`, "a");
  Deno.writeTextFileSync(`${pool.dataDir}/net/.a.eth0`, "a\r\neth0");
  pool.del("a");
  assertEquals(pool.files(), ["10.0.0.3", "last_reserved_ip.0", "lock"]);
});

Deno.test("allocate: reads the resolvers that resolvConf names", () => {
  using pool = new Pool({ subnet: "10.0.0.0/24" });
  const path = `${pool.dataDir}/resolv.conf`;
  Deno.writeTextFileSync(
    path,
    "# c\n; c\nnameserver 192.0.2.1\nnameserver 192.0.2.2\ndomain d.test\nsearch a.test  b.test\n" +
      "options ndots:1 rotate\nnameserver\n",
  );
  const config = { ...pool.config(), resolvConf: path };
  const { dns } = allocate(config, { containerId: "a", ifName: "e" }, new UndoStack(), false);
  assertEquals(dns, {
    nameservers: ["192.0.2.1", "192.0.2.2"],
    domain: "d.test",
    search: ["a.test", "b.test"],
    options: ["ndots:1", "rotate"],
  });
});
