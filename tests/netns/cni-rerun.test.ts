import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import type { MadeAttachment } from "../../lib/cni/plan.ts";
import { replace } from "../../lib/cni/rerun.ts";
import { addNetwork, checkNetwork, delNetwork } from "../../lib/cni/runtime.ts";
import type { PluginConfig } from "../../lib/cni/types.ts";
import { TapkitError } from "../../lib/errors.ts";
import { Fixture } from "../support/recording-fixture.ts";

const VERSION = "1.0.0";
const ONE = {
  cniVersion: VERSION,
  interfaces: [{ name: "eth0", mac: "02:00:00:00:00:01", sandbox: "/run/netns/x" }],
  ips: [{ interface: 0, address: "10.1.0.2/24" }],
  dns: {},
};
/** As bandwidth does: a link of the host more, which is another one each time. */
const withLink = (mac: string) => ({
  ...ONE,
  interfaces: [...ONE.interfaces, { name: "ifb0", mac }],
});
const TWO = withLink("02:00:00:00:00:02");

/** A chain of three that was made: the second adds to the result, the third passes it on. */
async function makeChain(fixture: Fixture): Promise<MadeAttachment> {
  for (const [name, result] of [["one", ONE], ["two", TWO], ["three", TWO]] as const) {
    fixture.plugins.behave(name, "ADD", `echo '${JSON.stringify(result)}'`);
  }
  const plugins = [{ type: "one" }, { type: "two", key: "old" }, { type: "three" }];
  const plan = fixture.plan({ cniVersion: VERSION, plugins });
  const { attachment } = await addNetwork(plan, fixture.environment);
  fixture.plugins.calls();
  return JSON.parse(JSON.stringify(attachment));
}

/** Another version of an attachment: one whose plugin at that place has this configuration. */
function withConfig(made: MadeAttachment, at: number, config: PluginConfig): MadeAttachment {
  const plugins = made.plugins.map((one, place) => place === at ? { ...one, config } : one);
  return { ...made, plugins };
}

const conf = (type: string, more = {}) => ({ type, name: "net", cniVersion: VERSION, ...more });

function observed(fixture: Fixture): unknown[] {
  return fixture.plugins.calls().map(({ plugin, verb, stdin }) => [plugin, verb, stdin]);
}

Deno.test("replace: DEL observes what all gave, ADD what the plugin before gave", async () => {
  using fixture = new Fixture("one", "two", "three");
  const made = await makeChain(fixture);
  const config = conf("two", { key: "old" });
  assertEquals(made.plugins.map(({ prevResult }) => prevResult?.interfaces.length), [
    undefined,
    1,
    undefined,
  ]);
  const environment = { host: fixture.pluginHost, netns: fixture.guest.path };
  const rerun = (place: number, config: PluginConfig, also: MadeAttachment[] = []) =>
    replace(made, new Map([[place, config]]), { ...environment, also });

  const same = await rerun(1, config);
  assertEquals(same, made);
  assertEquals(observed(fixture), [
    ["two", "DEL", { ...config, prevResult: TWO }],
    ["two", "ADD", { ...config, prevResult: ONE }],
  ]);

  // The last one's previous result is what all gave.
  await rerun(2, conf("three"));
  assertEquals(observed(fixture), [
    ["three", "DEL", { ...conf("three"), prevResult: TWO }],
    ["three", "ADD", { ...conf("three"), prevResult: TWO }],
  ]);

  // Another configuration, after a change to a third one was cut off.
  const [doubted, changed] = [conf("two", { key: "doubted" }), conf("two", { key: "new" })];
  const now = await rerun(1, changed, [withConfig(made, 1, doubted)]);
  assertEquals(now.plugins[1]?.config, changed);
  assertEquals(observed(fixture), [
    ["two", "DEL", { ...doubted, prevResult: TWO }],
    ["two", "DEL", { ...config, prevResult: TWO }],
    ["two", "ADD", { ...changed, prevResult: ONE }],
  ]);
  const [cached] = fixture.plugins.cached();
  assertEquals(cached, "net-c1-eth0");
  const entry = JSON.parse(
    Deno.readTextFileSync(`${fixture.plugins.stateDir}/cni/results/${cached}`),
  );
  assertEquals(JSON.parse(atob(entry.config)).plugins[1].key, "new");
});

Deno.test("replace: what gives something else has those behind it run again, unless the guest were told other things", async () => {
  using fixture = new Fixture("one", "two", "three");
  const made = await makeChain(fixture);
  const config = conf("two", { key: "old" });
  const environment = { host: fixture.pluginHost, netns: fixture.guest.path };
  const rerun = () => replace(made, new Map([[1, config]]), environment);

  const other = withLink("02:00:00:00:00:03");
  for (const name of ["two", "three"]) {
    fixture.plugins.behave(name, "ADD", `echo '${JSON.stringify(other)}'`);
  }
  const now = await rerun();
  assertEquals(observed(fixture), [
    ["two", "DEL", { ...config, prevResult: TWO }],
    ["two", "ADD", { ...config, prevResult: ONE }],
    ["three", "DEL", { ...conf("three"), prevResult: TWO }],
    ["three", "ADD", { ...conf("three"), prevResult: other }],
  ]);
  assertEquals([now.result.interfaces, now.plugins.map(({ prevResult }) => prevResult?.ips)], [
    other.interfaces,
    [undefined, ONE.ips, undefined],
  ]);
  assertEquals(await delNetwork(now, fixture.environment), []);
  assertEquals(fixture.plugins.calls().map(({ stdin }) => stdin.prevResult), [other, other, other]);

  const moved = { ...TWO, ips: [{ interface: 0, address: "10.1.0.3/24" }] };
  for (const name of ["two", "three"]) {
    fixture.plugins.behave(name, "ADD", `echo '${JSON.stringify(moved)}'`);
  }
  const error = await assertRejects(rerun, TapkitError);
  assertMatch(error.message, /network "net" now gives another address/);
});

Deno.test("delNetwork: of a change that was cut off, plugins go with either configuration", async () => {
  using fixture = new Fixture("one", "two", "three");
  const made = await makeChain(fixture);
  const changed = conf("two", { key: "new" });
  const also = [withConfig(made, 1, changed), made];
  assertEquals(await delNetwork(made, { ...fixture.environment, also }), []);
  assertEquals(observed(fixture), [
    ["three", "DEL", { ...conf("three"), prevResult: TWO }],
    ["two", "DEL", { ...changed, prevResult: TWO }],
    ["two", "DEL", { ...conf("two", { key: "old" }), prevResult: TWO }],
    ["one", "DEL", { ...conf("one"), prevResult: TWO }],
  ]);
});

Deno.test("checkNetwork: what was so right after ADD is ignored, another failure is not", async () => {
  using fixture = new Fixture("one", "two", "three");
  const made = await makeChain(fixture);
  const say = (words: string) =>
    fixture.plugins.behave("two", "CHECK", `echo '{"code": 9, "msg": "${words}"}'; exit 1`);
  say("never");
  const [finding] = await checkNetwork(made, fixture.environment);
  const problem = "CHECK failed with code 9: never";
  assertEquals(finding, { object: "two:", problem, executed: 1 });
  const known = {
    ...made,
    plugins: made.plugins.map((plugin, place) =>
      place === 1 ? { ...plugin, checkFailure: `two: ${problem}` } : plugin
    ),
  };
  assertEquals(await checkNetwork(known, fixture.environment), [
    { object: "two:", problem, executed: 1, ignored: true },
  ]);
  say("now");
  assertEquals(await checkNetwork(known, fixture.environment), [
    { object: "two:", problem: "CHECK failed with code 9: now", executed: 1 },
  ]);
});
