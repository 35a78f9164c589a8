/**
 * What attach-vm passes through to CNI plugins, seen by made-up ones that write down what they get.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";
import { RecordingPlugins } from "../support/recording-plugin.ts";

Deno.test("attach-vm --capability, --cni-arg: reach the plugins, are kept, and cannot change", async (t) => {
  using plugins = new RecordingPlugins("maker", "namer");
  plugins.behave(
    "maker",
    "ADD",
    `ip link add $CNI_IFNAME netns "$CNI_NETNS" type veth peer name host0 >&2
     echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}]}'`,
  );
  await using host = await Host.create();
  const list = {
    cniVersion: "1.0.0",
    name: "net",
    plugins: [{ type: "maker" }, {
      type: "namer",
      capabilities: { aliases: true, dns: true, infinibandGUID: true },
    }],
  };
  await host.writeFile("/etc/cni/net.d/10-net.conflist", JSON.stringify(list));
  // The machine's /tmp is an overlay.
  const written = `${host.upperPath("tmp")}${plugins.root.slice("/tmp".length)}`;
  const calls = () =>
    plugins.calls(written).map(({ plugin, verb, env, stdin }) => [
      ...[plugin, verb, env.CNI_ARGS, stdin.runtimeConfig],
    ]);
  const attach = (...args: string[]) =>
    host.tapkit("attach-vm", "web", "--cni-bin-dir", plugins.binDir, ...args);

  const dns = { servers: ["192.0.2.53"], searches: ["a.test"], options: ["ndots:2"] };
  await t.step("what no plugin declares is refused", async () => {
    const refused = await attach("--capability", "color=1");
    assertEquals(refused.code, 2);
    assertMatch(refused.stderr, /no plugin of network "net" declares the capability "color": add/);
  });
  const wanted = [
    ...["--capability", 'aliases=["web","www"]', "--capability", `dns=${JSON.stringify(dns)}`],
    ...["--capability", 'infinibandGUID="c2:11:22:33:44:55:66:77"'],
    ...["--cni-arg", "K8S_POD_NAME=web", "--cni-arg", "K8S_POD_NAMESPACE=default"],
  ];
  const { code, stderr } = await attach(...wanted);
  assertEquals(code, 0, stderr);
  const args = "K8S_POD_NAME=web;K8S_POD_NAMESPACE=default";
  const runtimeConfig = {
    aliases: ["web", "www"],
    dns,
    infinibandGUID: "c2:11:22:33:44:55:66:77",
  };
  assertEquals(calls(), [
    ["maker", "ADD", `IgnoreUnknown=1;${args}`, undefined],
    ["namer", "ADD", `IgnoreUnknown=1;${args}`, runtimeConfig],
    // Once of a plugin as it is, to know whether it passes then.
    ["maker", "CHECK", `IgnoreUnknown=1;${args}`, undefined],
    ["namer", "CHECK", `IgnoreUnknown=1;${args}`, runtimeConfig],
  ]);

  await t.step("said again or not they are kept, others are refused", async () => {
    assertEquals((await attach(...wanted)).code, 0);
    assertEquals((await attach()).code, 0);
    const changed = await attach("--cni-arg", "K8S_POD_NAME=api");
    assertEquals(changed.code, 1);
    assertMatch(changed.stderr, /its CNI argument cannot be changed while it is attached/);
    calls();
  });

  // DEL gets the same.
  assertEquals((await attach("--remove")).code, 0);
  assertEquals(calls(), [
    ["namer", "DEL", `IgnoreUnknown=1;${args}`, runtimeConfig],
    ["maker", "DEL", `IgnoreUnknown=1;${args}`, undefined],
  ]);
});
