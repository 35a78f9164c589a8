/** The resident's clients that hang, send garbage or too much, or do not read: they harm nobody. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";
import { eventually } from "../support/machine.ts";
import { postLines, ResidentServer } from "../support/resident.ts";

const TIMEOUT = { clientTimeout: 1 };

/** All that comes on a connection until it ends. */
async function readAll(connection: Deno.UnixConn): Promise<string> {
  return await new Response(connection.readable).text().catch((error) => `${error}`);
}

/** The memory of a resident that is its own, in MiB. */
async function memoryOf(host: Host): Promise<number> {
  const pid = (await host.must("pgrep", ["-f", "await serve"])).trim().split("\n").at(-1);
  const text = await host.readFile(`/proc/${pid}/smaps_rollup`);
  return Number(/Private_Dirty:\s+(\d+)/.exec(text)![1]) / 1024;
}

Deno.test("serve: clients that send nothing, half a head, or a byte at a time", async () => {
  await using host = await Host.create();
  await using server = await ResidentServer.start(host, TIMEOUT);
  const idle = await Promise.all(
    Array.from(
      { length: 600 },
      (_, n) => server.raw(n % 2 === 0 ? "" : "GET /v1/health HTTP/1.1\r\nx"),
    ),
  );
  const head = "POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
  const slow = await server.raw(`${head}content-length: 100\r\n\r\n{`);
  const from = performance.now();
  let sending = true;
  const trickle = (async () => {
    while (sending) {
      await slow.write(new TextEncoder().encode(" ")).catch(() => sending = false);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  })();
  assertEquals((await server.ask("GET", "/v1/health")).status, 200);
  const answer = new Uint8Array(1024);
  const length = await slow.read(answer);
  sending = false;
  const said = new TextDecoder().decode(answer.subarray(0, length!));
  assertMatch(said, /^HTTP\/1.1 408 [^]*"message":"the body did not arrive within 1 seconds"/);
  assert(performance.now() - from < 10_000);
  await trickle;
  slow.close();
  assertEquals((await server.ask("GET", "/v1/health")).status, 200);
  for (const connection of idle) connection.close();
  assertEquals((await server.end()).code, 0);
});

Deno.test("serve: garbage, and more than may be sent", async () => {
  await using host = await Host.create();
  await using server = await ResidentServer.start(host, TIMEOUT);
  for (
    const garbage of ["\0\x01\xff\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9\r\n\r\n", "\r\n".repeat(9)]
  ) {
    const connection = await server.raw(garbage);
    await connection.closeWrite();
    const said = await readAll(connection);
    assert(said === "" || /^HTTP\/1.1 4\d\d /.test(said) || /rror/.test(said), said);
  }
  const header = await server.raw();
  const large = new TextEncoder().encode(
    `GET / HTTP/1.1\r\nx: ${"y".repeat(4 * 1024 * 1024)}\r\n\r\n`,
  );
  await header.write(large).catch(() => {});
  header.close();
  const before = await memoryOf(host);
  for (const length of ["content-length: 9999999999\r\n", "transfer-encoding: chunked\r\n"]) {
    const head = "POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/jsonl\r\n";
    const flood = await server.raw(`${head}${length}\r\n`);
    const piece = new TextEncoder().encode(`10000\r\n${"x".repeat(0x10000)}\r\n`);
    // A quarter of a gigabyte, unless the server has had enough. The runtime takes what it does not
    // give to the server, but keeps none of it.
    const sending = (async () => {
      const writer = flood.writable.getWriter();
      for (let sent = 0; sent < 2 ** 28; sent += piece.length) await writer.write(piece);
    })().catch(() => {});
    const answer = new Uint8Array(1024);
    const read = await flood.read(answer).catch(() => 0);
    const said = new TextDecoder().decode(answer.subarray(0, read ?? 0));
    assert(said === "" || said.startsWith("HTTP/1.1 413 "), said);
    assertEquals((await server.client.health()).vms, 0);
    await sending;
    try {
      flood.close();
    } catch { // It has ended.
    }
  }
  const grown = await memoryOf(host) - before;
  assert(grown < 64, `its memory grew by ${grown} MiB`);
  assertEquals((await server.end()).code, 0);
});

Deno.test("serve: clients that do not read", async () => {
  await using host = await Host.create();
  await host.addLan();
  await using server = await ResidentServer.start(host, TIMEOUT);
  const deaf = await Promise.all(
    Array.from({ length: 20 }, () => server.raw("GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")),
  );
  const names = Array.from({ length: 40 }, (_, n) => `vm${n}`);
  const unread = await server.raw(postLines(names));
  await eventually(
    30_000,
    "all are attached",
    async () => (await server.client.listVms()).length === 40,
  );
  const before = await memoryOf(host);
  // Each has an answer of a megabyte to read.
  const openapi = `GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n`.repeat(100);
  const many = await Promise.all(Array.from({ length: 20 }, () => server.raw(openapi)));
  for (let round = 0; round < 20; round++) {
    await server.client.mapPorts("vm0", [`${9000 + round}:80`]);
    assertEquals((await server.client.health()).vms, 40);
  }
  const grown = await memoryOf(host) - before;
  assert(grown < 64, `its memory grew by ${grown} MiB`);
  const removed = await Array.fromAsync(server.client.removeVms(names));
  assertEquals(removed.filter(({ removed }) => removed).length, 40);
  for (const connection of [...deaf, ...many, unread]) connection.close();
  assertEquals((await server.end()).code, 0);
});
