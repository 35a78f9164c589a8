import { assertEquals } from "@std/assert";
import { currentResolvers, HostResolvers, hostResolvers } from "../../lib/vm/resolvers.ts";
import { isReachable, resolversOf } from "../../lib/vm/resolvers.ts";

/** Files of these texts, undefined for one that is missing, while `use` runs. */
function withFiles(texts: readonly (string | undefined)[], use: (files: string[]) => void): void {
  const directory = Deno.makeTempDirSync();
  const files = texts.map((_, index) => `${directory}/${index}`);
  texts.forEach((text, index) => text === undefined || Deno.writeTextFileSync(files[index]!, text));
  try {
    use(files);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

// To Deno 2.5, functions of libc that are looked up during a test are a leak.
Deno.test("hostResolvers: the servers behind a stub, with the host's own search list", {
  sanitizeResources: false,
}, () => {
  const stub = "nameserver 127.0.1.1\nsearch corp.example\n";
  const table: [texts: (string | undefined)[], nameservers: string[], search: string[]][] = [
    [["nameserver 192.0.2.53\nsearch a.example b.example\n"], ["192.0.2.53"], [
      "a.example",
      "b.example",
    ]],
    [[stub, "nameserver 192.0.2.1\n"], ["192.0.2.1"], ["corp.example"]],
    [[stub, undefined, "nameserver 192.0.2.1\nsearch other.example\n"], ["192.0.2.1"], [
      "corp.example",
    ]],
    [["nameserver 127.0.0.53\n", "nameserver 192.0.2.1\nsearch up.example\n"], ["192.0.2.1"], [
      "up.example",
    ]],
    [["nameserver 0.0.0.0\nnameserver ::\nnameserver fe80::1%eth0\nnameserver fe80::1\n"], [], []],
    [[undefined, stub], [], ["corp.example"]],
    [["nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n"], ["192.0.2.1"], []],
  ];
  for (const [texts, nameservers, search] of table) {
    withFiles(texts, (files) => assertEquals(hostResolvers(files), { nameservers, search }));
  }
});

Deno.test("HostResolvers: sees a file that is written, replaced or taken away", () => {
  withFiles([undefined], ([file]) => {
    const resolvers = new HostResolvers([file!]);
    assertEquals([resolvers.refresh(), resolvers.current.nameservers], [false, []]);
    const steps: [act: () => void, nameservers: string[]][] = [
      [() => Deno.writeTextFileSync(file!, "nameserver 192.0.2.1\n"), ["192.0.2.1"]],
      [() => {
        Deno.writeTextFileSync(`${file}.new`, "nameserver 192.0.2.2\n");
        Deno.renameSync(`${file}.new`, file!);
      }, ["192.0.2.2"]],
      [() => Deno.removeSync(file!), []],
    ];
    for (const [act, nameservers] of steps) {
      act();
      assertEquals([resolvers.refresh(), resolvers.current.nameservers], [true, nameservers]);
      assertEquals(resolvers.refresh(), false);
    }
  });
});

Deno.test("resolversOf: the networks' servers, else the host's; a search list without servers stays", () => {
  const host = { nameservers: ["192.0.2.53"], search: ["host.example"] };
  const own = { nameservers: ["10.0.0.53", "127.0.0.1"], search: ["net.example"] };
  assertEquals(resolversOf([{}, own], host), {
    nameservers: ["10.0.0.53"],
    search: ["net.example"],
  });
  assertEquals(resolversOf([{ nameservers: ["10.0.0.53"] }], host).search, []);
  assertEquals(resolversOf([{ domain: "net.example" }], host), {
    ...host,
    search: ["net.example"],
  });
  assertEquals(resolversOf([undefined, {}], host), host);
});

Deno.test("currentResolvers: what is recorded, until the host has some", () => {
  const recorded = { nameservers: ["192.0.2.1"], search: [] };
  const record = { dns: recorded, networks: [{ attachment: {} }] };
  const none = { nameservers: [], search: [] };
  const host = { nameservers: ["192.0.2.2"], search: ["new.example"] };
  assertEquals(currentResolvers(record, none), recorded);
  assertEquals(currentResolvers(record, host), host);
  const networks = [{ attachment: { result: { dns: { nameservers: ["10.0.0.53"] } } } }];
  assertEquals(currentResolvers({ dns: recorded, networks }, host).nameservers, [
    "10.0.0.53",
  ]);
});

Deno.test("isReachable: an address that is not the host's alone", () => {
  for (const server of ["192.0.2.1", "2001:db8::1", "169.254.169.253"]) {
    assertEquals(isReachable(server), true, server);
  }
  for (
    const server of ["127.0.0.53", "::1", "0.0.0.0", "::", "fe80::1", "fe80::1%2", "x", 5, null]
  ) {
    assertEquals(isReachable(server), false, String(server));
  }
});
