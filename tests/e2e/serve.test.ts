/** The resident: its socket, and that the server is what openapi.json says. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { Ajv2020 } from "ajv";
import { document, operations } from "../../lib/resident/api.ts";
import {
  type AttachRequest,
  ConflictError,
  InputError,
  PortConflictError,
  TapkitError,
} from "../../mod.ts";
import { scriptWords } from "../support/bundle.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { eventually } from "../support/machine.ts";
import { type Answer, ResidentServer } from "../support/resident.ts";

const SOCKET = "/run/tapkit/tapkit.sock";

async function hostOnLan(): Promise<Host> {
  const host = await Host.create();
  await host.addLan();
  return host;
}

/** A function that holds an answer against the document, and notes what it was an answer to. */
function holdAgainstDocument() {
  const text = JSON.stringify(document).replaceAll("#/components/", "api#/components/");
  const { paths, components } = JSON.parse(text);
  const ajv = new Ajv2020({ strict: false });
  ajv.addSchema({ $id: "api", components });
  const seen = new Set<string>();
  const hold = (id: string, { status, headers, text: body }: Answer): void => {
    // deno-lint-ignore no-explicit-any
    const found = Object.values(paths).flatMap((item) => Object.values(item as any))
      // deno-lint-ignore no-explicit-any
      .find((one: any) => one.operationId === id) as any;
    const documented = found.responses[status];
    assert(documented !== undefined, `${id} answers ${status}, which is not documented: ${body}`);
    const { $ref } = documented;
    const response = $ref === undefined ? documented : components.responses[$ref.split("/").at(-1)];
    const type = headers.get("content-type")?.split(";")[0] ?? "";
    assert(response.content[type] !== undefined, `${id} ${status}: ${type} is not documented`);
    const values = type === "application/jsonl"
      ? body.trimEnd().split("\n").filter((line) => line !== "").map((line) => JSON.parse(line))
      : [type === "application/json" ? JSON.parse(body) : body];
    const validate = ajv.compile(response.content[type].schema);
    for (const value of values) {
      const is = validate(value);
      assert(is, `${id} ${status}: ${ajv.errorsText(validate.errors)}: ${JSON.stringify(value)}`);
    }
    seen.add(`${id} ${status} ${type}`);
  };
  return { hold, seen };
}

Deno.test("serve: every operation answers as openapi.json says", async () => {
  await using host = await hostOnLan();
  const before = await host.snapshot();
  await using server = await ResidentServer.start(host);
  const { hold, seen } = holdAgainstDocument();
  const ask = async (id: string, status: number, ...request: Parameters<typeof server.ask>) => {
    const answer = await server.ask(...request);
    assertEquals([id, answer.status, answer.text], [id, status, answer.text]);
    hold(id, answer);
    return answer;
  };
  const lines = (...values: object[]) => values.map((value) => JSON.stringify(value)).join("\n");
  const jsonl = "application/jsonl";
  const web = { name: "web", ports: ["8080:80"] };
  const { json: attached } = await ask("attachVms", 200, "POST", "/v1/vms", web);
  assertEquals(attached.changes.length > 3, true);
  assertEquals((await ask("attachVms", 200, "POST", "/v1/vms", web)).json.changes, []);
  await ask("attachVms", 400, "POST", "/v1/vms", { name: "a b" });
  await ask("attachVms", 400, "POST", "/v1/vms", "{");
  const taken = await ask("attachVms", 409, "POST", "/v1/vms", { ...web, name: "api" });
  assertEquals(taken.json.error.class, "PortConflictError");
  await ask("attachVms", 413, "POST", "/v1/vms", `{"name":"${"x".repeat(1024 * 1024)}"}`);
  await ask("attachVms", 415, "POST", "/v1/vms", "name=web", "text/plain");
  const many = lines({ name: "a" }, { name: "b", ports: ["8080:80"] }, { name: "c" });
  const { text } = await ask("attachVms", 200, "POST", "/v1/vms", many, jsonl);
  const done = text.trimEnd().split("\n").map((line) => JSON.parse(line));
  assertEquals(done.map(({ name, error }) => [name, error?.class]), [
    ["a", undefined],
    ["b", "PortConflictError"],
    ["c", undefined],
  ]);
  const torn = await ask("attachVms", 400, "POST", "/v1/vms", `${lines({ name: "d" })}\n{}`, jsonl);
  assertMatch(torn.json.error.message, /^line 2 /);
  assertEquals((await ask("listVms", 200, "GET", "/v1/vms")).json.vms.length, 3);
  await ask("getVm", 200, "GET", "/v1/vms/web");
  await ask("getVm", 404, "GET", "/v1/vms/nobody");
  await ask("getVm", 400, "GET", "/v1/vms/a%20b");
  await ask("changeVm", 200, "PATCH", "/v1/vms/web", { newConnections: 100 });
  await ask("changeVm", 404, "PATCH", "/v1/vms/nobody", {});
  await ask("changeVm", 400, "PATCH", "/v1/vms/web", { name: "api" });
  await ask("changeVm", 409, "PATCH", "/v1/vms/web", { mac: "02:00:00:00:00:01" });
  await ask("changeVm", 413, "PATCH", "/v1/vms/web", `{"ip":"${"x".repeat(1024 * 1024)}"}`);
  await ask("changeVm", 415, "PATCH", "/v1/vms/web", "{}", jsonl);
  await eventually(
    10_000,
    "nothing differs",
    async () => (await ask("checkVm", 200, "GET", "/v1/vms/web/check")).json.problems.length === 0,
  );
  // A TAP that is gone stays so until it is asked for: healing would take away what guests hold.
  await host.must("ip", ["netns", "exec", "tapkit-web", "ip", "link", "delete", "vm_eth0"]);
  const differs = (await ask("checkVm", 200, "GET", "/v1/vms/web/check")).json;
  assert(differs.problems.length > 0 && differs.problems.length === differs.differences.length);
  await ask("checkVm", 400, "GET", "/v1/vms/a%20b/check");
  await ask("restoreVms", 200, "POST", "/v1/restore");
  assertEquals((await ask("checkVm", 200, "GET", "/v1/vms/web/check")).json.problems, []);
  for (
    const [suffix, path] of [["", "/v1/vms/web/ports"], [
      "Address",
      "/v1/addresses/192.0.2.2/ports",
    ]] as const
  ) {
    const list = suffix === "" ? "listVmPorts" : "listAddressPorts";
    const [map, unmap] = [`map${suffix}Ports`, `unmap${suffix}Ports`];
    const port = suffix === "" ? "9000:90" : "9001:90";
    await ask(map, 200, "PUT", path, { ports: [port] });
    await ask(map, 409, "PUT", path.replace("web", "a"), {
      ports: ["8080:90"],
    });
    await ask(map, 400, "PUT", path, { ports: ["x"] });
    await ask(map, 413, "PUT", path, { ports: ["x".repeat(1024 * 1024)] });
    await ask(map, 415, "PUT", path, "{}", "text/plain");
    await ask(list, 200, "GET", path);
    await ask(unmap, 200, "DELETE", path, { ports: [port] });
    await ask(unmap, 400, "DELETE", path, { ports: [] });
    await ask(unmap, 413, "DELETE", path, { ports: ["x".repeat(1024 * 1024)] });
    await ask(unmap, 415, "DELETE", path, "{}", "text/plain");
  }
  await ask("mapPorts", 404, "PUT", "/v1/vms/nobody/ports", { ports: ["1:1"] });
  await ask("unmapPorts", 404, "DELETE", "/v1/vms/nobody/ports", { ports: ["1:1"] });
  await ask("listVmPorts", 404, "GET", "/v1/vms/nobody/ports");
  await ask("listVmPorts", 400, "GET", "/v1/vms/a%20b/ports");
  await ask("listAddressPorts", 400, "GET", "/v1/addresses/nowhere/ports");
  assertEquals((await ask("listPorts", 200, "GET", "/v1/ports")).json.ports.length, 3);
  const { json: health } = await ask("health", 200, "GET", "/v1/health");
  assertEquals([health.vms, health.stateDir], [3, "/var/lib/tapkit"]);
  await ask("openapi", 200, "GET", "/v1/openapi.json");
  await ask("metrics", 200, "GET", "/metrics");
  await host.must("ip", ["netns", "delete", "tapkit-c"]);
  const gone = await ask("collectVms", 200, "POST", "/v1/gc");
  assertEquals(JSON.parse(gone.text), { name: "c", removed: true, notes: [] });
  await ask("collectVms", 400, "POST", "/v1/gc?all");
  await ask("removeVms", 200, "POST", "/v1/remove", { names: ["a", "nobody"] });
  await ask("removeVms", 400, "POST", "/v1/remove", { names: ["a b"] });
  await ask("removeVms", 413, "POST", "/v1/remove", { names: ["x".repeat(1024 * 1024)] });
  await ask("removeVms", 415, "POST", "/v1/remove", "{}", "text/plain");
  assertEquals((await ask("removeVm", 200, "DELETE", "/v1/vms/web")).json.removed, true);
  assertEquals((await ask("removeVm", 200, "DELETE", "/v1/vms/web")).json.removed, false);
  await ask("removeVm", 400, "DELETE", "/v1/vms/web?forse");
  const own = await Deno.stat(host.path("/proc/1/ns/net"));
  const mounts = await Deno.stat(host.path("/proc/1/ns/mnt"));
  const command = {
    id: "c1",
    command: "attach-vm",
    args: ["web", "--list"],
    cwd: "/",
    hasTerminal: false,
    environment: {},
    version: health.version,
    namespaces: { net: `net:[${own.ino}]`, mnt: `mnt:[${mounts.ino}]` },
  };
  const commands = "/v1/commands";
  const ran = await ask("runCommand", 200, "POST", commands, command);
  assertEquals(ran.text.trimEnd().split("\n").map((line) => Object.keys(JSON.parse(line))), [
    ["stderr"],
    ["exit"],
  ]);
  await ask("runCommand", 400, "POST", commands, { ...command, args: ["web", "--", "vmm"] });
  await ask("runCommand", 400, "POST", commands, { ...command, command: "setup-weave" });
  await ask("runCommand", 413, "POST", commands, { ...command, stdin: "x".repeat(1024 * 1024) });
  await ask("runCommand", 415, "POST", commands, "{}", "text/plain");
  await ask("runCommand", 421, "POST", commands, { ...command, version: "0.0.1" });
  for (const kind of ["net", "mnt"]) {
    const namespaces = { ...command.namespaces, [kind]: `${kind}:[1]` };
    await ask("runCommand", 421, "POST", commands, { ...command, namespaces });
  }
  const environment = { NETCONFPATH: "/elsewhere" };
  await ask("runCommand", 421, "POST", commands, { ...command, environment });
  await ask("endCommand", 404, "DELETE", `${commands}/c1?signal=2`);
  await ask("endCommand", 400, "DELETE", `${commands}/c1?signal=9`);
  seen.add("runCommand 404 application/json");
  const slow = { cniVersion: "1.0.0", name: "slow", plugins: [{ type: "slow" }] };
  await host.writeFile("/etc/cni/net.d/91-slow.conflist", JSON.stringify(slow));
  await host.writeFile("/opt/cni/bin/slow", "#!/bin/sh\nexec sleep 60\n", 0o755);
  const args = ["slow", "--network", "slow"];
  const running = server.ask("POST", commands, { ...command, id: "c2", args });
  await eventually(
    10_000,
    "the command runs",
    async () => (await server.ask("DELETE", `${commands}/c2?signal=2`)).status === 200,
  );
  seen.add("endCommand 200 application/json");
  assertMatch((await running).text, /interrupted by SIGINT.*\n\{"exit":130\}\n$/);
  await host.must("rm", ["-r", "/etc/cni/net.d/91-slow.conflist", "/opt/cni"]);
  const events = await server.raw("GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n");
  await events.read(new Uint8Array(1));
  events.close();
  seen.add("events 200 application/jsonl");
  const bad = { cniVersion: "1.0.0", name: "bad", plugins: [{ type: "bad" }] };
  await host.writeFile("/etc/cni/net.d/90-bad.conflist", JSON.stringify(bad));
  await host.writeFile("/opt/cni/bin/bad", "#!/bin/sh\n[ $CNI_COMMAND != ADD ]\n", 0o755);
  const onBad = { name: "bad", networks: ["bad"] };
  const failed = await ask("attachVms", 500, "POST", "/v1/vms", onBad);
  const { class: name, fields } = failed.json.error;
  assertEquals([name, fields.plugin], ["CniError", "bad"]);
  await host.must("rm", ["-r", "/etc/cni/net.d/90-bad.conflist", "/opt/cni"]);
  await using vmm = host.spawn(Deno.execPath(), [
    ...scriptWords("attach-vm"),
    ...["vmm", "--", "sh", "-c", "echo runs; exec sleep 777"],
  ]);
  await vmm.line((line) => line === "runs");
  const refused = await ask("removeVm", 409, "DELETE", "/v1/vms/vmm");
  assertEquals(refused.json.error.class, "ConflictError");
  await ask("removeVm", 200, "DELETE", "/v1/vms/vmm?force");
  vmm.kill();
  await vmm.status;
  // Any operation may fail, be slow, or find the resident ending.
  const elsewhere = / (408|500|503) /;
  const every = Object.values(document.paths).flatMap((item) =>
    Object.values(item).flatMap((one) => {
      if (!("responses" in one)) return [];
      return Object.entries(one.responses).flatMap(([status, response]) => {
        const content = "content" in (response as object)
          ? Object.keys((response as { content: object }).content)
          : ["application/json"];
        return content.map((type) => `${one.operationId} ${status} ${type}`);
      });
    })
  );
  assertEquals(new Set(every.map((one) => one.split(" ")[0])).size, operations().length);
  assertEquals(every.filter((one) => !seen.has(one) && !elsewhere.test(one)), []);
  for (const [method, path] of [["GET", "/"], ["GET", "/v1"], ["POST", "/v1/vms/web/x"]] as const) {
    assertEquals((await server.ask(method, path)).status, 404);
  }
  const wrong = await server.ask("PUT", "/v1/vms");
  assertEquals([wrong.status, wrong.headers.get("allow")], [405, "GET, POST"]);
  const { code, stderr } = await server.end();
  assertEquals(code, 0);
  assertMatch(stderr, /attachVms "web": done in \d+ ms/);
  assertMatch(stderr, /attachVms "api": 409: host port 8080\/tcp is already mapped/);
  await host.must("rm", ["-rf", "/var/lib/tapkit"]);
  await host.assertRestored(before);
});

Deno.test("serve: guests get their leases; events and metrics tell of them", async () => {
  await using host = await hostOnLan();
  await using server = await ResidentServer.start(host);
  const stop = new AbortController();
  const told: string[] = [];
  const listening = (async () => {
    for await (const { event, vm, record } of server.client.events({ signal: stop.signal })) {
      told.push(`${event} ${vm}${record === undefined ? "" : ` ${record.ports.length}`}`);
    }
  })();
  listening.catch(() => {});
  await assertRejects(() => server.client.getVm("nobody"), TapkitError, "is not attached");
  const { record } = await server.client.attachVm({ name: "web" });
  // Changes that are close to each other are told as one.
  await eventually(5000, "it is told", () => told.includes("attached web 0"));
  await server.client.mapPorts("web", ["8080:80"]);
  const guest = await NetnsGuest.start(host, record);
  const { ip: address } = await guest.dhcp();
  assertEquals(`${address}/16`, record.interfaces[0]!.addresses[0]!.address);
  await guest.must("busybox", ["ping", "-c", "2", "-W", "2", "172.18.0.1"]);
  const { text } = await server.ask("GET", "/metrics");
  assertMatch(text, /^tapkit_vms 1$/m);
  assertMatch(text, /^tapkit_dhcp_messages_total\{outcome="acked"\} [1-9]/m);
  assertMatch(text, /^tapkit_attach_seconds_count 1$/m);
  for (const way of ["receive", "transmit"]) {
    const sample = new RegExp(
      `^tapkit_tap_${way}_bytes_total\\{vm="web",tap="vm_eth0"\\} (\\d+)$`,
      "m",
    );
    const [, bytes] = sample.exec(text) ?? [];
    assert(Number(bytes) > 2 * 98, `${way}: ${bytes} bytes`);
  }
  // A conflict is told, whichever way the request came.
  const api = { name: "api", ports: ["8080:80"] };
  await assertRejects(() => server.client.attachVm(api), PortConflictError);
  const args = ["--to", "192.0.2.2", "8080:80"];
  const byCommand = await host.tapkit("map-port", ...args, { env: { TAPKIT_SOCKET: "" } });
  assertEquals(byCommand.code, 1);
  const { text: counted } = await server.ask("GET", "/metrics");
  assertMatch(counted, /^tapkit_errors_total\{class="PortConflictError"\} 2$/m);
  // What a command does is told too.
  await host.mustTapkit("attach-vm", "web", "--remove");
  await eventually(5000, "all is told", () => told.includes("removed web"));
  assertEquals(told.toSorted(), [
    "attached web 0",
    "changed web 1",
    "denied api",
    "denied undefined",
    "lease web",
    "removed web",
  ]);
  stop.abort(new Error("enough"));
  await assertRejects(() => listening, Error, "enough");
  await guest[Symbol.asyncDispose]();
});

Deno.test("connect: the library's verbs, results and errors", async () => {
  await using host = await hostOnLan();
  await using server = await ResidentServer.start(host);
  const { client } = server;
  const notes: string[] = [];
  const note = (text: string) => notes.push(text);
  const { record, changes } = await client.attachVm({ name: "web", ports: ["8080:80"] }, { note });
  assertEquals([record.vm, changes[0]?.layer], ["web", "netns"]);
  assertMatch(notes.join("\n"), /installed .*10-ignite/);
  const conflict = await assertRejects(
    () => client.attachVm({ name: "api", ports: ["8080:80"] }),
    PortConflictError,
  );
  const { name, owner, hostPort, protocol, mend = "" } = conflict;
  assertEquals([name, owner, hostPort, protocol], ["PortConflictError", "web", 8080, "tcp"]);
  assertMatch(mend, /choose another host port/);
  await assertRejects(
    () => client.attachVm({ name: "web", mac: "02:00:00:00:00:01" }),
    ConflictError,
  );
  await assertRejects(() => client.mapPorts("web", ["x"]), InputError);
  const both = [];
  for await (
    const { name, error } of client.attachVms([{ name: "a" }, { name: "b", ip: "1.2.3.4" }])
  ) {
    both.push([name, error === undefined, error instanceof TapkitError]);
  }
  assertEquals(both, [["a", true, false], ["b", false, true]]);
  assertEquals((await client.listVms()).map(({ vm }) => vm), ["a", "web"]);
  assertEquals((await client.getVm("a")).vm, "a");
  const mapped = await client.mapPorts({ to: "192.0.2.2" }, ["9000:90"]);
  assertEquals("to" in mapped && mapped.to, "192.0.2.2");
  assertEquals((await client.listPorts()).length, 3);
  assertEquals((await client.listPorts("web"))[0]!.ports[0]!.hostPort, 8080);
  assertEquals((await client.unmapPorts({ to: "192.0.2.2" }, ["9000:90"])).ports, []);
  assertEquals(await client.checkVm("web"), []);
  const [missing] = await client.checkVm("nobody");
  assertEquals(missing?.layer, "record");
  await host.must("ip", ["netns", "exec", "tapkit-web", "ip", "link", "delete", "vm_eth0"]);
  assertEquals((await client.checkVm("web")).some(({ layer }) => layer === "wire"), true);
  const restored = await Array.fromAsync(client.restoreVms());
  assertEquals(restored.map((vm) => [vm.name, vm.record && vm.tapReplaced]), [
    ["a", false],
    ["web", true],
  ]);
  await host.must("ip", ["netns", "delete", "tapkit-a"]);
  assertEquals(await Array.fromAsync(client.collectVms()), [{ name: "a" }]);
  assertEquals(await client.removeVm("web"), true);
  const removed = await Array.fromAsync(client.removeVms(["web"]));
  assertEquals(removed, [{ name: "web", removed: false }]);
  assertEquals((await client.health()).vms, 0);
  await server.end();
  await assertRejects(() => client.listVms(), TapkitError, "nothing answers at");
});

Deno.test("serve: TAPs are those that attach-vm alone makes, whatever is ready before it is asked for", async () => {
  await using host = await hostOnLan();
  const kinds: Record<string, Pick<AttachRequest, "tapOwner" | "queues">> = {
    plain: {},
    owned: { tapOwner: "1000" },
    several: { queues: 2 },
    again: {},
  };
  const tapOf = async (name: string) => {
    const args = ["-n", `tapkit-${name}`, "-j", "-d", "link", "show", "vm_eth0"];
    const [{ ifindex: _, address: __, link: ___, ...tap }] = JSON.parse(
      await host.must("ip", args),
    );
    const setting = "cat /proc/sys/net/ipv6/conf/vm_eth0/disable_ipv6";
    const quiet = await host.must("ip", ["netns", "exec", `tapkit-${name}`, "sh", "-c", setting]);
    return { ...tap, quiet: quiet.trim() };
  };
  const alone = new Map<string, unknown>();
  for (const [name, { tapOwner, queues }] of Object.entries(kinds)) {
    const owner = tapOwner === undefined ? [] : ["--tap-owner", tapOwner];
    const many = queues === undefined ? [] : ["--queues", String(queues)];
    await host.mustTapkit("attach-vm", name, ...owner, ...many);
    alone.set(name, await tapOf(name));
    await host.mustTapkit("attach-vm", name, "--remove");
  }
  await using server = await ResidentServer.start(host);
  await server.client.attachVm({ name: "first" });
  for (const [name, kind] of Object.entries(kinds)) {
    await server.client.attachVm({ name, ...kind });
    assertEquals(await tapOf(name), alone.get(name), name);
    assertEquals(await server.client.checkVm(name), []);
  }
});

Deno.test("connect: needs no rights but to open the socket", async () => {
  await using host = await Host.create();
  await using server = await ResidentServer.start(host);
  const module = new URL("../../lib/resident/client.ts", import.meta.url).href;
  await host.writeFile(
    "/tmp/client.ts",
    `import { ResidentClient } from ${JSON.stringify(module)};
    using resident = new ResidentClient();
    console.log((await resident.health()).vms);
    await resident.attachVm({ name: "a b" }).catch(({ name }) => console.log(name));`,
  );
  const flags = ["--no-prompt", "--allow-net"]
    .concat(["read", "write"].map((right) => `--allow-${right}=${SOCKET}`));
  const printed = await host.must(Deno.execPath(), ["run", ...flags, "/tmp/client.ts"]);
  assertEquals(printed, "0\nInputError\n");
  assertEquals((await server.end()).code, 0);
});
