import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { Host } from "../support/host.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url));

Deno.test("install.ts --bundle: commands that need the sources no more", async () => {
  const prefix = await Deno.makeTempDir();
  try {
    const install = async (...more: string[]) => {
      const args = ["run", "-A", `${ROOT}install.ts`, "--prefix", prefix, ...more];
      const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args })
        .output();
      assert(success, new TextDecoder().decode(stderr));
      return JSON.parse(new TextDecoder().decode(stdout));
    };
    const bundle = `${prefix}/share/tapkit/tapkit.js`;
    const first = await install("--bundle");
    const apart = ["zx", "ajv", "install", "scripts"].map((name) =>
      `${prefix}/share/tapkit/${name}.js`
    );
    const made = first.written.filter((path: string) => path.endsWith(".js"));
    assertEquals(made, [...apart, bundle]);
    assertEquals((await install("--bundle")).written, []);
    const loads = { "tapkit.js": ["scripts"], "scripts.js": ["zx", "ajv", "install"] };
    for (const [file, others] of Object.entries(loads)) {
      const text = await Deno.readTextFile(`${prefix}/share/tapkit/${file}`);
      assert(!text.includes(ROOT));
      // deno-lint-ignore no-control-regex -- it is about all that is not ASCII.
      assertEquals(/[^\x00-\x7f]/.exec(text), null, "V8 would take twice the memory for it");
      assertEquals(text.match(/^import .*/gm), null, "every command would load this");
      // What a text names, Deno reads at once.
      const imports = others.map((name) => `import(new URL("./${name}.js", import.meta.url).href)`);
      assertEquals(text.match(/\bimport\((new URL\()?"\.[^)]*\)[^)]*\)/g), imports);
    }
    await useIn(prefix, bundle);
    await useCacheIn(prefix, bundle);
    const { stdout } = await new Deno.Command(`${prefix}/bin/tapkit`, {
      args: ["install", "--prefix", prefix, "--check"],
    }).output();
    assertEquals(JSON.parse(new TextDecoder().decode(stdout)).problems, []);
    await install("--uninstall");
    assertEquals([...Deno.readDirSync(prefix)], []);
  } finally {
    await Deno.remove(prefix, { recursive: true });
  }
});

async function useIn(prefix: string, bundle: string): Promise<void> {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const run = async (name: string, ...args: string[]) =>
    JSON.parse(await host.must(`${prefix}/bin/${name}`, args));
  const record = await run("attach-vm", "web", "--ports", "8080:80");
  assertEquals(record.ports[0].hostPort, 8080);
  assertEquals(await run("attach-vm", "web", "--check"), { vm: "web", problems: [] });
  // It serves DHCP by executing itself.
  const servers = await host.sh(
    `for i in $(seq 50); do pgrep -af -- '${bundle} --serve ' && break; sleep 0.1; done`,
  );
  assertStringIncludes(servers, `${bundle} --serve `);
  // With flags of V8's that need a code cache of their own.
  const environ = await host.readFile(`/proc/${parseInt(servers)}/environ`);
  assertStringIncludes(environ, `DENO_DIR=${prefix}/share/tapkit/cache/resident\0`);
  assertStringIncludes(environ, "DENO_V8_FLAGS=--max-semi-space-size=1");
  assertEquals((await run("tapkit", "map-port", "web", "8081:81")).ports.length, 2);
  await run("attach-vm", "web", "--remove");
  const server = host.spawn(`${prefix}/bin/serve`, [], { env: { TAPKIT_SOCKET: "" } });
  const socket = ["-s", "--retry", "50", "--retry-delay", "1", "--retry-all-errors"]
    .concat("--unix-socket", "/run/tapkit/tapkit.sock");
  const answer = await host.must("curl", [...socket, "localhost/v1/vms", "--json", "{}"]);
  assertStringIncludes(answer, "required property");
  server.kill();
  assertEquals((await server.status).code, 0);
  await host.must("rm", ["-rf", "/var/lib/tapkit"]);
  await host.assertRestored(before, { except: [OF_CACHE] });
}

/** What Deno writes into the bundle's own cache. */
const OF_CACHE = /^file \S+\/share\/tapkit\/cache\//;

async function useCacheIn(prefix: string, bundle: string): Promise<void> {
  await using host = await Host.create();
  await host.addLan();
  const scripts = bundle.replace("tapkit.js", "scripts.js");
  const [cache, callers] = [`${prefix}/share/tapkit/cache`, "/tmp/callers"];
  const attachVm = (...args: string[]) =>
    host.must(`${prefix}/bin/attach-vm`, args, { env: { DENO_DIR: callers } });
  const kept = () =>
    sqlite(host, cache, `SELECT length(data) FROM codecache WHERE specifier = 'file://${scripts}'`);

  assertEquals(await host.sh(`find ${cache} -name '*-wal' -size +0`), "");
  // Without functions it has 300,000 bytes.
  const isWarm = async () => (await kept()).some((bytes) => bytes > 400_000);
  assert(await isWarm());
  const vmm = 'echo "${DENO_DIR-none} ${TAPKIT_CALLER_DENO_DIR-none}"';
  assertEquals(await attachVm("web", "--", "sh", "-c", vmm), `${callers} none\n`);
  const others = () => host.sh(`mkdir -p ${callers}; ls ${callers}`);
  assertEquals(await others(), "");

  // What is of another Deno is made again.
  await sqlite(host, cache, "UPDATE codecache SET data = zeroblob(1)");
  await sqlite(host, cache, "UPDATE info SET value = '0.0.0' WHERE key = 'CLI_VERSION'");
  assertStringIncludes(await attachVm("--version"), "attach-vm ");
  await attachVm("web");
  assert(await isWarm());
  assertEquals(await others(), "");

  // Who may not write there has a cache of their own.
  await host.sh(`mount --bind ${cache} ${cache} && mount -o remount,bind,ro ${cache}`);
  await attachVm("web", "--remove");
  assertStringIncludes(await others(), "v8_code_cache");
}

/** What an SQL statement returns of Deno's code cache, the first column of each row. */
async function sqlite(host: Host, cache: string, statement: string): Promise<number[]> {
  const program = `import { DatabaseSync } from "node:sqlite";
    const database = new DatabaseSync(Deno.args[0] + "/v8_code_cache_v2");
    const rows = database.prepare(Deno.args[1]).all();
    console.log(JSON.stringify(rows.map((row) => Object.values(row)[0])));`;
  const url = `data:text/javascript,${encodeURIComponent(program)}`;
  return JSON.parse(await host.must(Deno.execPath(), ["run", "-A", url, cache, statement]));
}

Deno.test("scripts: from a checkout without network, they end and say which package they miss", async () => {
  await using host = await Host.create();
  for (const script of ["scripts/attach-vm.ts", "scripts/tapkit.ts", "install.ts"]) {
    const args = ["run", "-A", `${ROOT}${script}`, "--help"];
    const { code, stdout, stderr } = await host.run(Deno.execPath(), args, {
      env: { DENO_DIR: `/tmp/${script}` },
    });
    assertEquals([code, stdout], [1, ""], stderr);
    assertMatch(stderr, /npm package '?[\w-]+@?[^]*dns error/);
    assert(!stderr.includes("killed after"), stderr);
  }
});
