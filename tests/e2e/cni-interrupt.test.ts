/**
 * Signals while a plugin of another maker runs.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import {
  REFERENCE_BRIDGE,
  REFERENCE_PORTMAP,
  referenceNetwork,
  requireReference,
  SHARED,
} from "../support/cni-reference.ts";
import { Host } from "../support/host.ts";
import { ROOT } from "../support/machine.ts";

requireReference();

/** What stays: see the plugin, too. */
const EXCEPT = [...SHARED, / \/tmp\/(at|done)-/];

/** Says which verb it is at, and takes long over it. */
const SLOW = `#!/bin/sh
touch /tmp/at-$CNI_COMMAND-$CNI_CONTAINERID
case $CNI_COMMAND in
  ADD) sleep \${SLOW_ADD:-777} & wait; echo '{"cniVersion":"1.0.0"}' ;;
  DEL) sleep 0.5; touch /tmp/done-$CNI_CONTAINERID ;;
esac
`;

async function slowHost(): Promise<Host> {
  const host = await Host.create();
  const plugins = [REFERENCE_BRIDGE, REFERENCE_PORTMAP, { type: "slow" }];
  await host.writeFile("/etc/cni/net.d/10-net.conflist", referenceNetwork(plugins));
  await host.writeFile("/opt/cni/bin/slow", SLOW);
  await host.must("chmod", ["755", "/opt/cni/bin/slow"]);
  return host;
}

/** Runs attach-vm, signals it when the plugin is at the verb for all VMs, and waits for it. */
async function interrupt(
  host: Host,
  signal: string,
  verb: string,
  args: string,
  { before = "", vms = 1 } = {},
) {
  const { stdout, stderr } = await host.run("bash", [
    "-c",
    `set -m
    rm -f /tmp/at-* /tmp/done-*
    ${before} ${Deno.execPath()} run -A ${ROOT}/scripts/attach-vm.ts ${args} > /dev/null &
    set +m
    until [ "$(ls /tmp/at-${verb}-* 2> /dev/null | wc -l)" = ${vms} ]; do sleep 0.02; done
    kill -${signal} $!
    wait $!
    echo $?
    pgrep -f 'sleep 777'`,
  ]);
  return { said: stdout, stderr };
}

Deno.test("attach-vm: a signal ends the plugin that runs, and all is undone", async () => {
  await using host = await slowHost();
  const before = await host.snapshot();
  for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143], ["SIGHUP", 129]] as const) {
    const { said, stderr } = await interrupt(host, signal, "ADD", "web db --ports 0:80", {
      vms: 2,
    });
    assertEquals(said, `${code}\n`, stderr);
    assertEquals(
      stderr.trimEnd().split("\n").sort(),
      ["db", "web"].map((vm) =>
        `attach-vm: cannot attach "${vm}": interrupted by ${signal}: what was begun is undone`
      ),
    );
    await host.assertRestored(before, { except: EXCEPT });
  }
  const vmm = await interrupt(host, "SIGTERM", "ADD", "web -- sleep 778");
  assertEquals(vmm.said, "143\n", vmm.stderr);
  await host.assertRestored(before, { except: EXCEPT });
  // What nohup keeps from it ends nothing.
  const nohup = await interrupt(host, "SIGHUP", "ADD", "web", { before: "SLOW_ADD=0.5 nohup" });
  assertMatch(nohup.said, /^0\n$/, nohup.stderr);
});

Deno.test("attach-vm: a signal ends a plugin that has only just begun", async () => {
  await using host = await slowHost();
  const before = await host.snapshot();
  // On a busy machine setsid(1) may be about to begin for a while: until then there is no group to kill.
  await host.writeFile(
    "/run/setsid",
    `#!/bin/sh
    [ "$CNI_COMMAND $1" != "ADD /opt/cni/bin/slow" ] || {
      touch /tmp/at-ADD-$CNI_CONTAINERID
      sleep 0.5
    }
    exec /run/real-setsid "$@"`,
    0o755,
  );
  await host.sh("cp /usr/bin/setsid /run/real-setsid; mount --bind /run/setsid /usr/bin/setsid");
  const { said, stderr } = await interrupt(host, "SIGTERM", "ADD", "web");
  assertEquals(said, "143\n", stderr);
  await host.sh("umount /usr/bin/setsid; rm /run/setsid /run/real-setsid");
  await host.assertRestored(before, { except: EXCEPT });
});

Deno.test("attach-vm --remove: a signal does not cut plugins' DELs short", async () => {
  await using host = await slowHost();
  const before = await host.snapshot();
  await host.mustTapkit("attach-vm", "web", "db", { env: { SLOW_ADD: "0" } });
  const { said, stderr } = await interrupt(host, "SIGTERM", "DEL", "web db --remove", { vms: 2 });
  assertEquals(said, "143\n", stderr);
  assertMatch(
    stderr,
    /^attach-vm: interrupted by SIGTERM: ("(web|db)" was done before(; |\n)){2}$/,
  );
  assertEquals((await host.sh("ls /tmp/done-* | wc -l")).trim(), "2");
  assertEquals((await host.mustTapkit("attach-vm", "--list")).json, []);
  await host.assertRestored(before, { except: EXCEPT });
});
