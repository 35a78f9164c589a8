import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { readCache } from "../../lib/cni/cache.ts";
import { parseConfig } from "../../lib/cni/conflist.ts";
import { gcNetwork } from "../../lib/cni/executed.ts";
import { planNetwork } from "../../lib/cni/plan.ts";
import { addNetwork, checkNetwork, delNetwork } from "../../lib/cni/runtime.ts";
import { CNI_VERSIONS } from "../../lib/cni/types.ts";
import { TapkitError } from "../../lib/errors.ts";
import { Fixture } from "../support/recording-fixture.ts";

type Conf = Record<string, unknown>;

const IS_OLD = (version: string) => version === "0.1.0" || version === "0.2.0";

/** The result of a made-up IPAM, as a version writes it. */
function resultOf(cniVersion: string): Conf {
  if (IS_OLD(cniVersion)) return { cniVersion, ip4: { ip: "10.1.0.2/24" }, dns: {} };
  const family = cniVersion.startsWith("0.") ? { version: "4" } : {};
  return { cniVersion, ips: [{ ...family, address: "10.1.0.2/24" }], dns: {} };
}

Deno.test("executed plugins: are given what the specification prescribes, at every verb and version", async (t) => {
  for (const cniVersion of CNI_VERSIONS) {
    await t.step(cniVersion, async () => {
      using fixture = new Fixture("one", "two");
      const { plugins, environment } = fixture;
      const result = resultOf(cniVersion);
      plugins.behave("one", "ADD", `echo '${JSON.stringify(result)}'`);
      plugins.behave("two", "ADD", `echo '${JSON.stringify(result)}'`);
      const portMappings = [{ hostPort: 80, containerPort: 8080, protocol: "tcp" }];
      const attachment = fixture.plan({
        cniVersion,
        plugins: [
          { type: "one", key: [1, { a: null }] },
          { type: "two", capabilities: { portMappings: true, aliases: false } },
        ],
      }, { portMappings, aliases: ["x"] });
      const one = { type: "one", key: [1, { a: null }], name: "net", cniVersion };
      const two = {
        type: "two",
        capabilities: { portMappings: true, aliases: false },
        name: "net",
        cniVersion,
        runtimeConfig: { portMappings },
      };

      const { attachment: added, result: given } = await addNetwork(attachment, environment);
      assertEquals(given.ips, [{ address: "10.1.0.2/24" }], cniVersion);
      const status = cniVersion === "1.1.0";
      const { runtimeConfig: _, ...twoWithout } = two;
      const none = { CNI_CONTAINERID: "", CNI_NETNS: "", CNI_IFNAME: "" };
      assertEquals(plugins.calls(), [
        ...status
          ? [
            { plugin: "one", verb: "STATUS", env: fixture.env("STATUS", none), stdin: one },
            { plugin: "two", verb: "STATUS", env: fixture.env("STATUS", none), stdin: twoWithout },
          ]
          : [],
        { plugin: "one", verb: "ADD", env: fixture.env("ADD"), stdin: one },
        {
          plugin: "two",
          verb: "ADD",
          env: fixture.env("ADD"),
          stdin: { ...two, prevResult: result },
        },
      ], cniVersion);
      assertEquals(plugins.cached(), ["net-c1-eth0"]);

      // CHECK and the previous result of DEL came with 0.4.0.
      const recorded: typeof added = JSON.parse(JSON.stringify(added));
      const modern = !["0.1.0", "0.2.0", "0.3.0", "0.3.1"].includes(cniVersion);
      assertEquals(await checkNetwork(recorded, environment), []);
      const prevResult = modern ? { prevResult: result } : {};
      assertEquals(
        plugins.calls(),
        modern
          ? [
            {
              plugin: "one",
              verb: "CHECK",
              env: fixture.env("CHECK"),
              stdin: { ...one, prevResult: result },
            },
            {
              plugin: "two",
              verb: "CHECK",
              env: fixture.env("CHECK"),
              stdin: { ...two, prevResult: result },
            },
          ]
          : [],
        cniVersion,
      );

      assertEquals(await delNetwork(recorded, environment), []);
      assertEquals(plugins.calls(), [
        { plugin: "two", verb: "DEL", env: fixture.env("DEL"), stdin: { ...two, ...prevResult } },
        { plugin: "one", verb: "DEL", env: fixture.env("DEL"), stdin: { ...one, ...prevResult } },
      ], cniVersion);
      assertEquals(plugins.cached(), []);

      // With the namespace gone there is no path to name.
      const { vmNl: __, ...gone } = environment;
      assertEquals(await delNetwork(recorded, gone), []);
      assertEquals(plugins.calls().map(({ env }) => env.CNI_NETNS), ["", ""]);
    });
  }
});

Deno.test("executed plugins: addresses and MACs are asked for by capability, else by args and CNI_ARGS", async () => {
  using fixture = new Fixture("one");
  const wanted = { ips: ["10.1.0.7/24"], mac: "02:00:00:00:00:07" };
  const stdinAndArgs = async (capabilities: Conf) => {
    const plan = fixture.plan(
      { cniVersion: "1.0.0", plugins: [{ type: "one", capabilities }] },
      wanted,
    );
    await addNetwork(plan, fixture.environment);
    const call = fixture.plugins.calls()[0]!;
    return [call.stdin.runtimeConfig, call.stdin.args, call.env.CNI_ARGS];
  };
  assertEquals(await stdinAndArgs({ ips: true, mac: true }), [wanted, undefined, ""]);
  assertEquals(await stdinAndArgs({}), [
    undefined,
    { cni: wanted },
    "IgnoreUnknown=1;IP=10.1.0.7;MAC=02:00:00:00:00:07",
  ]);
});

Deno.test("executed plugins: get this process's environment, but for the variables of the specification", async () => {
  using fixture = new Fixture("one");
  const file = `${fixture.plugins.root}/seen`;
  fixture.plugins.behave("one", "ADD", `echo "$TAPKIT_TEST $PATH" > ${file}; echo '{}'`);
  const ours = { TAPKIT_TEST: "here", CNI_IFNAME: "stale", CNI_ARGS: "IP=192.0.2.9" };
  for (const [name, value] of Object.entries(ours)) Deno.env.set(name, value);
  try {
    const plan = fixture.plan({ plugins: [{ type: "one" }] });
    await addNetwork(plan, fixture.environment);
  } finally {
    for (const name of Object.keys(ours)) Deno.env.delete(name);
  }
  assertEquals(Deno.readTextFileSync(file), `here ${Deno.env.get("PATH")}\n`);
  const [call] = fixture.plugins.calls();
  // Without a version the configuration is of the oldest one.
  assertEquals([call?.env, call?.stdin.cniVersion], [fixture.env("ADD"), "0.1.0"]);
});

Deno.test("executed plugins: one that fails is named with its words, and everything is undone", async () => {
  const cases: [behaviour: string, words: RegExp][] = [
    [
      `echo oops >&2; echo '{"code": 11, "msg": "later", "details": "the pool"}'; exit 1`,
      /^two: ADD failed with code 11: later: the pool \(it said: oops\)$/,
    ],
    [`exit 3`, /^two: ADD failed with exit code 3 and no message$/],
    [
      String
        .raw`printf 'x\npanic: no map\n[signal 11: pc=0x%s]\n\ngoroutine 1 [running]:\nmain()\n' $$ >&2; exit 2`,
      /^two: ADD failed with exit code 2 and no message \(it said: x \| panic: no map\)$/,
    ],
    [
      `echo garbage; exit 1`,
      /^two: ADD failed with exit code 1 and what is not a CNI error: garbage$/,
    ],
    [`echo garbage`, /^two: ADD gave no usable result: what it printed is not JSON: garbage$/],
    [`:`, /^two: ADD gave no usable result: .*nothing$/],
    [`echo '{"ips": [{"address": "x"}]}'`, /no usable result: an address is "x"/],
    [`echo '{"cniVersion": "7.0.0"}'`, /unknown cniVersion "7\.0\.0"/],
    [`sleep 100`, /^two: ADD did not end within 1\.5 s, and was killed$/],
    [`sleep 100 & wait`, /^two: ADD did not end within 1\.5 s, and was killed$/],
    [`exec cat /dev/zero`, /^two: ADD printed more than 4 MiB, and was killed$/],
    [`kill -SEGV $$`, /^two: ADD was ended by SIGSEGV$/],
  ];
  for (const [behaviour, words] of cases) {
    using fixture = new Fixture("one", "two", "three");
    fixture.plugins.behave("two", "ADD", behaviour);
    const plan = fixture.plan({
      cniVersion: "1.0.0",
      plugins: [{ type: "one" }, { type: "two" }, { type: "three" }],
    });
    const error = await assertRejects(() => addNetwork(plan, fixture.environment), TapkitError);
    assertMatch(error.message, words);
    assert(error.mend !== undefined, behaviour);
    assertEquals(await fixture.undo.unwind(), []);
    assertEquals(fixture.plugins.calls().map(({ plugin, verb }) => [plugin, verb]), [
      ["one", "ADD"],
      ["two", "ADD"],
      ["two", "DEL"],
      ["one", "DEL"],
    ]);
    assertEquals(fixture.plugins.cached(), []);
  }
});

Deno.test("executed plugins: DEL of what was cut off gets the result that is known", async () => {
  using fixture = new Fixture("one", "two", "three");
  const { plugins, environment } = fixture;
  const list = {
    cniVersion: "1.0.0",
    plugins: [{ type: "one" }, { type: "two" }, { type: "three" }],
  };
  const result = resultOf("1.0.0");
  for (const name of ["one", "two"]) {
    plugins.behave(name, "ADD", `echo '${JSON.stringify(result)}'`);
  }
  plugins.behave("three", "ADD", "exit 1");
  const deleted = () =>
    plugins.calls().filter(({ verb }) => verb === "DEL").map(({ plugin, stdin }) => [
      plugin,
      stdin.prevResult,
    ]);
  const plan = fixture.plan(list);
  await assertRejects(() => addNetwork(plan, environment), TapkitError);
  assertEquals(await fixture.undo.unwind(), []);
  const all = [["three", result], ["two", result], ["one", result]];
  assertEquals(deleted(), all);

  // After a crash the record has no result yet, and the cache may have it.
  plugins.behave("three", "ADD", `echo '${JSON.stringify(result)}'`);
  await addNetwork(plan, environment);
  assertEquals(await delNetwork(plan, environment), []);
  assertEquals(deleted(), all);
  assertEquals(plugins.cached(), []);
});

Deno.test("executed plugins: a child that keeps the pipes open is not waited for", async () => {
  using fixture = new Fixture("one");
  const pidFile = `${fixture.plugins.root}/pid`;
  fixture.plugins.behave("one", "ADD", `sleep 100 & echo $! > ${pidFile}; echo '{}'`);
  const plan = fixture.plan({ cniVersion: "1.0.0", plugins: [{ type: "one" }] });
  await addNetwork(plan, fixture.environment);
  const pid = Number(Deno.readTextFileSync(pidFile));
  assertMatch(Deno.readTextFileSync(`/proc/${pid}/stat`), /\) [RS] /, "the child lives");
  Deno.kill(pid, "SIGKILL");
});

Deno.test("executed plugins: one that refuses the version is asked which it knows", async () => {
  using fixture = new Fixture("one");
  fixture.plugins.behave("one", "ADD", `echo '{"code": 1, "msg": "too new"}'; exit 1`);
  const versions = { cniVersion: "0.4.0", supportedVersions: ["0.3.1", "0.4.0"] };
  fixture.plugins.behave("one", "VERSION", `echo '${JSON.stringify(versions)}'`);
  const plan = fixture.plan({ cniVersion: "1.0.0", plugins: [{ type: "one" }] });
  const error = await assertRejects(() => addNetwork(plan, fixture.environment), TapkitError);
  assertStringIncludes(error.mend ?? "", "write one of 0.3.1, 0.4.0 as cniVersion");
  const [, version] = fixture.plugins.calls();
  const none = { CNI_CONTAINERID: "", CNI_NETNS: "", CNI_IFNAME: "" };
  assertEquals([version?.env, version?.stdin], [
    fixture.env("VERSION", none),
    { cniVersion: "1.0.0" },
  ]);
});

Deno.test("executed plugins: a network that is not ready is refused before anything is added", async () => {
  using fixture = new Fixture("one");
  const plan = fixture.plan({ cniVersion: "1.1.0", plugins: [{ type: "one" }] });
  fixture.plugins.behave("one", "STATUS", `echo '{"code": 50, "msg": "daemon is down"}'; exit 1`);
  const error = await assertRejects(() => addNetwork(plan, fixture.environment), TapkitError);
  assertMatch(error.message, /network "net" is not ready: .*daemon is down/);
  assertEquals(fixture.plugins.calls().map(({ verb }) => verb), ["STATUS"]);
  fixture.plugins.behave("one", "STATUS", `echo '{"code": 51, "msg": "limited"}'; exit 1`);
  await addNetwork(plan, fixture.environment);
  assertEquals(fixture.plugins.calls().map(({ verb }) => verb), ["STATUS", "ADD"]);
});

Deno.test("checkNetwork: what CHECK of an executed plugin says; disableCheck asks for none", async () => {
  using fixture = new Fixture("one");
  fixture.plugins.behave("one", "CHECK", `echo '{"code": 999, "msg": "the link is gone"}'; exit 1`);
  for (const disableCheck of [false, true]) {
    const plan = fixture.plan({ cniVersion: "1.0.0", disableCheck, plugins: [{ type: "one" }] });
    const { attachment } = await addNetwork(plan, fixture.environment);
    const problem = "CHECK failed with code 999: the link is gone";
    assertEquals(
      await checkNetwork(attachment, fixture.environment),
      disableCheck ? [] : [{ object: "one:", problem, executed: 0 }],
    );
    // In mode dhcp-bridge the identity is not where CHECK looks for it.
    const moved = { ...fixture.environment, identityMoved: true };
    assertEquals(await checkNetwork(attachment, moved), []);
  }
});

Deno.test("gcNetwork: gives the living attachments, from 1.1.0 on, unless it is disabled", async () => {
  using fixture = new Fixture("one", "two");
  const valid = [{ containerID: "c1", ifname: "eth0" }];
  const gc = async (list: Conf) => {
    const plugins = [{ type: "one", key: 1 }, { type: "two" }];
    const parsed = parseConfig(JSON.stringify({ name: "net", plugins, ...list }), "f");
    assertEquals(await gcNetwork(parsed, fixture.pluginHost, valid), []);
    return fixture.plugins.calls();
  };
  assertEquals(await gc({ cniVersion: "1.0.0" }), []);
  assertEquals(await gc({ cniVersion: "1.1.0", disableGC: true }), []);
  const calls = await gc({ cniVersions: ["1.0.0", "1.1.0"] });
  const none = { CNI_CONTAINERID: "", CNI_NETNS: "", CNI_IFNAME: "" };
  assertEquals(calls.map(({ verb, env }) => [verb, env]), [
    ["GC", fixture.env("GC", none)],
    ["GC", fixture.env("GC", none)],
  ]);
  assertEquals(calls[0]?.stdin, {
    type: "one",
    key: 1,
    name: "net",
    cniVersion: "1.1.0",
    "cni.dev/valid-attachments": valid,
    "cni.dev/attachments": valid,
  });
});

Deno.test("readCache: what libcni would read; broken files are passed over", async () => {
  using fixture = new Fixture("one");
  const { stateDir } = fixture.plugins;
  fixture.plugins.behave("one", "ADD", `echo '${JSON.stringify(resultOf("0.4.0"))}'`);
  const plan = fixture.plan({ cniVersion: "0.4.0", plugins: [{ type: "one", key: 1 }] });
  await addNetwork(plan, fixture.environment);
  const results = `${stateDir}/cni/results`;
  const entry = JSON.parse(Deno.readTextFileSync(`${results}/net-c1-eth0`));
  assertEquals(entry, {
    kind: "cniCacheV1",
    containerId: "c1",
    config: btoa(
      JSON.stringify({ cniVersion: "0.4.0", name: "net", plugins: [{ type: "one", key: 1 }] }),
    ),
    ifName: "eth0",
    networkName: "net",
    netns: fixture.guest.path,
    result: resultOf("0.4.0"),
  });
  Deno.writeTextFileSync(`${results}/net-c1-eth1`, "{");
  Deno.writeTextFileSync(`${results}/other-c1-eth0`, `{"kind": "theirs"}`);
  const [cached, ...others] = readCache(stateDir, "c1");
  assertEquals([cached?.list.name, cached?.result?.ips, others], [
    "net",
    [{ address: "10.1.0.2/24" }],
    [],
  ]);
  assertEquals(readCache(stateDir, "c2"), []);
});

Deno.test("planNetwork: auto executes what is there, and takes built-in plugins for what is missing", () => {
  using fixture = new Fixture("weave-net", "bridge", "host-local");
  const bridge = {
    type: "bridge",
    bridge: "br0",
    ipam: { type: "host-local", subnet: "10.7.0.0/24" },
  };
  const portmap = { type: "portmap", capabilities: { portMappings: true } };
  const how = (mode: "auto" | "builtin" | "exec", isDefault: boolean, ...plugins: Conf[]) => {
    const list = parseConfig(JSON.stringify({ cniVersion: "1.0.0", name: "net", plugins }), "f");
    const choice = { mode, isDefault, host: fixture.pluginHost };
    try {
      return planNetwork({ list, containerId: "c", ifName: "eth0", choice }).plugins
        .map(({ implementation }) => implementation).join();
    } catch (error) {
      return (error as Error).message;
    }
  };
  assertEquals(how("auto", true, bridge, portmap), "builtin,builtin");
  assertEquals(how("auto", false, bridge), "exec");
  // Whatever is shared between them is made by one maker.
  assertEquals(how("auto", false, bridge, portmap), "builtin,builtin");
  assertEquals(how("auto", true, { ...bridge, vlan: 7 }, portmap), "exec,builtin");
  assertEquals(how("auto", false, { type: "weave-net" }, portmap), "exec,builtin");
  assertEquals(how("exec", true, bridge), "exec");
  assertStringIncludes(how("exec", true, bridge, portmap), `"portmap", which is in none of`);
  assertStringIncludes(how("auto", false, { type: "calico" }), `"calico", which is in none of`);
  assertStringIncludes(how("builtin", false, { type: "weave-net" }), "not built in");
});
