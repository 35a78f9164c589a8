/** The parts of the resident that need no host. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { HANDED_OVER } from "../../lib/caller.ts";
import { bodyType, document, loadValidation, operations, route } from "../../lib/resident/api.ts";
import { Events } from "../../lib/resident/events.ts";
import { HANDLERS } from "../../lib/resident/handlers.ts";
import {
  errorResponse,
  failureOf,
  HttpError,
  readBody,
  statusOf,
} from "../../lib/resident/http.ts";
import { clientGone, jsonLines, paced } from "../../lib/resident/lines.ts";
import { Metrics } from "../../lib/resident/metrics.ts";
import { Turns } from "../../lib/resident/turns.ts";
import { ConflictError, InputError, PortConflictError, TapkitError } from "../../mod.ts";

const LIVE = new AbortController().signal;

Deno.test("openapi.json: each operation has a handler, and each handler is documented", () => {
  const ids = operations().map(({ id }) => id);
  assertEquals(ids.toSorted(), Object.keys(HANDLERS).toSorted());
  assertEquals(new Set(ids).size, ids.length);
});

Deno.test("openapi.json: has the commands that are handed over", () => {
  const { command } = document.components.schemas.CommandRequest.properties;
  assertEquals(command.enum, [...HANDED_OVER]);
});

Deno.test("openapi.json: its references lead somewhere, and all of its schemas are used", () => {
  const text = JSON.stringify(document);
  const used = [...text.matchAll(/"#\/components\/(schemas|responses)\/(\w+)"/g)]
    .map(([, kind, name]) => `${kind}/${name}`);
  const defined = (["schemas", "responses"] as const)
    .flatMap((kind) => Object.keys(document.components[kind]).map((name) => `${kind}/${name}`));
  assertEquals([...new Set(used)].sort(), defined.sort());
});

Deno.test("route: finds the operation, the names in the path and the query", () => {
  const found = route("DELETE", "http+unix://x/v1/vms/web.1?force");
  assertEquals(found.operation.id, "removeVm");
  assertEquals([found.params, found.query], [{ name: "web.1" }, { force: "" }]);
  assertEquals(route("GET", "http://x/v1/vms/a%2Fb").params, { name: "a/b" });
  const refused = (method: string, path: string) =>
    statusOf(assertThrows(() => route(method, `http://x${path}`)));
  assertEquals(refused("GET", "/v1/vms/"), 404);
  assertEquals(refused("GET", "/v1/vms/a/b"), 404);
  assertEquals(refused("GET", "/v1/openapiXjson"), 404);
  assertEquals(refused("PUT", "/v1/vms"), 405);
  assertEquals(refused("DELETE", "/v1/vms/web?forse"), 400);
  assertEquals(refused("DELETE", "/v1/vms/web?force=perhaps"), 400);
  assertEquals(refused("GET", "/v1/vms/%ff"), 400);
  const error = assertThrows(() => route("PUT", "http://x/v1/vms"), HttpError);
  assertEquals(error.headers, { allow: "GET, POST" });
});

Deno.test("bodies: their type, and what the schemas refuse", async () => {
  const { operation } = route("POST", "http://x/v1/vms");
  assertEquals(bodyType(operation, "Application/JSON; charset=utf-8"), "application/json");
  for (const other of [null, "", "text/plain", "application/json5"]) {
    assertEquals(statusOf(assertThrows(() => bodyType(operation, other))), 415);
  }
  const validate = await loadValidation();
  const check = (body: unknown) => validate(operation, "application/json", body, "the body");
  check({
    name: "web",
    ports: ["8080:80", { hostIP: "", hostPort: 1, vmPort: 2, protocol: "tcp" }],
  });
  check({
    name: "web",
    ports: "none",
    maxConnections: "default",
    capabilities: { aliases: ["a"] },
  });
  for (
    const wrong of [null, [], "web", {}, { name: 1 }, { name: "web", prots: [] }, {
      name: "web",
      ports: "8080:80",
    }]
  ) assertThrows(() => check(wrong), InputError, "the body");
  assertThrows(() => check({ name: "web", prots: [] }), InputError, '"prots"');
});

Deno.test("readBody: refuses what is too large without reading it, and what does not arrive", async () => {
  const send = (body: BodyInit, headers = {}) =>
    new Request("http://x/", { method: "POST", body, headers });
  const options = { timeoutMs: 50, signal: LIVE };
  assertEquals(await readBody(send("{}"), "application/json", options), "{}");
  let pulled = 0;
  const endless = new ReadableStream({
    pull: (controller) => (pulled++, controller.enqueue(new Uint8Array(64 * 1024))),
  });
  const large = await assertRejects(() => readBody(send(endless), "application/json", options));
  assertEquals([statusOf(large), pulled < 40], [413, true]);
  const announced = send("{}", { "content-length": "99999999" });
  const refused = await assertRejects(() => readBody(announced, "application/jsonl", options));
  assertEquals(statusOf(refused), 413);
  const hanging = new ReadableStream({ pull: () => new Promise(() => {}) });
  const late = await assertRejects(() => readBody(send(hanging), "application/json", options));
  assertEquals(statusOf(late), 408);
});

Deno.test("errors: the status and the fields of each class", async () => {
  const port = { protocol: "tcp", hostIP: "", hostPort: 80, owner: "api" } as const;
  const conflict = new PortConflictError(port, 'already mapped to VM "api"');
  const statuses = [conflict, new ConflictError("x"), new InputError("x"), clientGone()]
    .concat([new TapkitError("x"), new TypeError("x") as never]).map(statusOf);
  assertEquals(statuses, [409, 409, 400, 503, 500, 500]);
  const { class: name, object, fields } = failureOf(conflict, "web");
  assertEquals([name, object, fields], ["PortConflictError", "web", { ...port }]);
  const response = errorResponse(
    new HttpError(405, "no", { headers: { allow: "GET" } }),
    undefined,
  );
  assertEquals([response.status, response.headers.get("allow")], [405, "GET"]);
  assertEquals(await response.json(), { error: { class: "TapkitError", message: "no" } });
});

Deno.test("paced: a client that does not read is given up, and the source with it", async () => {
  let given = 0;
  let returned = false;
  async function* source() {
    try {
      while (true) yield await Promise.resolve(given++);
    } finally {
      returned = true;
    }
  }
  const { promise: reason, resolve: abort } = Promise.withResolvers<Error>();
  const { promise: ended, resolve: onEnd } = Promise.withResolvers<void>();
  const reader = paced(jsonLines(source()), { stallMs: 30, abort, onEnd }).getReader();
  assertEquals(new TextDecoder().decode((await reader.read()).value), "0\n");
  assertEquals((await reason).message, "the client read nothing for 0.03 seconds");
  await ended;
  assertEquals([returned, given <= 2], [true, true]);
  await assertRejects(() => reader.read());
});

Deno.test("Events: a slow listener is dropped, and holds up nobody", async () => {
  const events = new Events();
  const stop = new AbortController();
  const [slow, quick] = [events.listen(stop.signal), events.listen(stop.signal)];
  const firsts = [slow.next(), quick.next()];
  events.tell({ event: "removed", vm: "0" });
  await Promise.all(firsts);
  for (let n = 1; n <= 3000; n++) {
    events.tell({ event: "removed", vm: `${n}` });
    assertEquals((await quick.next()).value?.vm, `${n}`);
  }
  const unread = [];
  for await (const { event } of slow) unread.push(event);
  assertEquals([unread.length, unread.at(-1)], [1001, "dropped"]);
  const waiting = quick.next();
  stop.abort();
  assertEquals((await waiting).done, true);
});

Deno.test("Turns: one at a time, the next when one waits or ends, and not after an abort", async () => {
  const turns = new Turns();
  const order: string[] = [];
  const first = Promise.withResolvers<void>();
  const a = turns.take(LIVE, async (waits) => {
    order.push("a");
    waits();
    await first.promise;
    order.push("a ended");
  });
  const b = turns.take(LIVE, async () => {
    order.push("b");
    await Promise.resolve();
    throw new Error("b failed");
  });
  const gone = new AbortController();
  const c = turns.take(gone.signal, async () => await Promise.resolve(order.push("c")));
  gone.abort(clientGone());
  await assertRejects(() => c, Error, "the client went away");
  await assertRejects(() => b, Error, "b failed");
  await turns.take(LIVE, async () => await Promise.resolve(order.push("d")));
  first.resolve();
  await a;
  assertEquals(order, ["a", "b", "d", "a ended"]);
});

Deno.test("Metrics: the text format", async () => {
  const metrics = new Metrics();
  metrics.count("requests", { operation: "getVm", status: 200 });
  metrics.count("errors", { class: 'a"b\\c\nd' });
  await metrics.time("attach", () => Promise.resolve());
  await assertRejects(() => metrics.time("attach", () => Promise.reject(new Error("no"))));
  const lines = metrics.lines();
  assert(lines.includes('tapkit_requests_total{operation="getVm",status="200"} 1'));
  assert(lines.includes('tapkit_errors_total{class="a\\"b\\\\c\\nd"} 1'));
  assert(lines.includes('tapkit_attach_seconds_bucket{le="+Inf"} 1'));
  assert(lines.includes("tapkit_attach_seconds_count 1"));
});
